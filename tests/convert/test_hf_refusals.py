"""Hugging Face folders that cannot be converted: each is refused by name, with what to do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nemotron_convert.convert import Options, convert
from nemotron_convert.inspect import inspect
from nemotron_convert.shards import Parallel
from nemotron_convert.target.layout import Format
from nemotron_core.errors import NemotronError
from nemotron_core.text.prompt import CHAT_TEMPLATE
from tests.convert.hf_folders import (
    copy_tiny,
    edit_config,
    edit_json,
    edit_tensors,
    set_template,
    split_files,
)

HF = Options(Parallel(1, 1), Format.HF)
INDEX = "model.safetensors.index.json"
LAYER = "model.layers.0."


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


def index(**files: str) -> Callable[[Path], None]:
    """Split the weights and give the index other files for tensors."""

    def edit(folder: Path) -> None:
        split_files(folder)
        names = {name.replace("__", "."): file for name, file in files.items()}
        edit_json(folder / INDEX, lambda content: content["weight_map"].update(names))

    return edit


def without(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        split_files(folder)
        (folder / name).unlink()

    return edit


def extra_file(folder: Path) -> None:
    split_files(folder)
    (folder / "model-00004-of-00003.safetensors").write_bytes(b"")


def extra_tensor(folder: Path) -> None:
    split_files(folder)
    edit_json(folder / INDEX, lambda content: content["weight_map"].pop("lm_head.weight"))


def two_sets(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    split_files(folder)
    (folder / "model.safetensors").write_bytes(whole)


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(text)


def quantized(method: str) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, quantization_config={"quant_method": method}) and None


def config(**keys: object) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **keys) and None


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        edit_tensors(folder, lambda t: (edit(t), None)[1])

    return run


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def set_dtype(dtype: torch.dtype) -> Callable[[Path], None]:
    name = LAYER + "mlp.up_proj.weight"
    return tensors(lambda t: t.update({name: t[name].to(dtype)}))


def damaged_json(folder: Path) -> None:
    content = {"model": {}, "added_tokens": [{"id": float("inf"), "content": "x"}]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def damaged_model(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"\xff" * 20)


def added_token(folder: Path) -> None:
    added = {"id": 512, "content": "<|im_end|>", "special": True}
    content = {"model": {"type": "BPE"}, "added_tokens": [added]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "Llama-3.1-Minitron": (
        config(architectures=["LlamaForCausalLM"], model_type="llama"),
        "architecture LlamaForCausalLM, not NemotronForCausalLM.*Llama-3.1-Minitron and Mistral",
    ),
    "Mistral-NeMo-Minitron": (
        config(architectures=["MistralForCausalLM"], model_type="mistral"),
        "architecture MistralForCausalLM.*despite their names",
    ),
    "Nemotron-H": (
        config(architectures=["NemotronHForCausalLM"], auto_map={"AutoConfig": "x.Y"}),
        "architecture NemotronHForCausalLM",
    ),
    "no head": (config(architectures=["NemotronModel"]), "architecture NemotronModel"),
    "no architecture": (config(architectures=None, model_type="gpt2"), "architecture gpt2"),
    "TensorRT-LLM": (
        config(architectures=None, model_type=None, architecture="GPTForCausalLM"),
        "this is a TensorRT-LLM checkpoint.*`nemotron build`",
    ),
    "custom code": (config(auto_map={"AutoModel": "a.B"}), "auto_map: the model has code of its"),
    "pickled": (pickled, r"the weights are pickled \(pytorch_model.bin\).*save_pretrained"),
    "adapter": (adapter, "adapter_config.json: this is an adapter.*merge_and_unload"),
    "AWQ": (quantized("awq"), r"quantized \(awq\).*in BF16 that they were made from"),
    "GPTQ": (quantized("gptq"), r"quantized \(gptq\)"),
    "bitsandbytes": (quantized("bitsandbytes"), r"quantized \(bitsandbytes\)"),
    "ModelOpt": (
        lambda folder: (folder / "hf_quant_config.json").write_text("{}") and None,
        r"quantized \(modelopt\)",
    ),
    "missing file": (
        without("model-00002-of-00003.safetensors"),
        "model-00002-of-00003.safetensors missing, which model.safetensors.index.json names.*hf do",
    ),
    "no index": (without(INDEX), "no model.safetensors.index.json, but model-00001-of-00003"),
    "no weights": (remove("model.safetensors"), "no model.safetensors and no .*no weights"),
    "no config": (remove("config.json"), "no config.json beside the weights"),
    "path in the index": (
        index(lm_head__weight="../model-00001-of-00003.safetensors"),
        "'../model-00001-of-00003.safetensors' is no name of a safetensors file",
    ),
    "pickle in the index": (index(lm_head__weight="pytorch_model.bin"), "is no name of a safe"),
    "wrong file in the index": (
        index(model__embed_tokens__weight="model-00003-of-00003.safetensors"),
        r"tensor model.embed_tokens.weight is not in model-00003-of-00003.safetensors, where",
    ),
    "file beside the index": (extra_file, "does not name model-00004-of-00003.safetensors, which"),
    "tensor beside the index": (extra_tensor, "the index lacks lm_head.weight, which a file has"),
    "two sets of weights": (two_sets, "does not name model.safetensors, which is there"),
    "cut short": (cut, "not a whole safetensors file"),
    "Git-LFS pointer": (pointer, "Git-LFS pointer.*git lfs pull"),
    "no tokenizer": (remove("tokenizer.model"), r"no tokenizer in it.*tokenizer\.json there"),
    "added token": (added_token, r"token 512, '<\|im_end\|>', is in tokenizer.json only"),
    "damaged tokenizer.json": (damaged_json, r"infinity.*tokenizer\.json.*copy it again"),
    "damaged tokenizer.model": (damaged_model, r"tokenizer\.model.*copy it again"),
    "bias of attention": (config(attention_bias=True), "attention_bias or mlp_bias: True, but"),
    "bias of the MLP": (config(mlp_bias=True), "attention_bias or mlp_bias: True, but"),
    "other activation": (config(hidden_act="silu"), "hidden_act: 'silu', but Nemotron-4 has"),
    "stretched positions": (
        config(rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling: linear changes the rotary embedding",
    ),
    "stretched positions of transformers 5": (
        config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        "rope_scaling: yarn changes the rotary embedding",
    ),
    "no layers": (config(num_hidden_layers="four"), "num_hidden_layers: expected a positive int"),
    "more layers": (config(num_hidden_layers=5), r"model.layers.4.input_layernorm.weight is miss"),
    "fewer layers": (config(num_hidden_layers=3), r"no such tensors: model.layers.3.input_layer"),
    "other head size": (
        config(head_dim=16),
        r"q_proj.weight has shape \[128, 128\], config.json asks for \[256, 128\]",
    ),
    "other vocabulary": (config(vocab_size=500), r"has shape \[512, 128\], config.json asks for"),
    "no vocabulary": (config(vocab_size=None), "vocab_size: expected a positive integer"),
    "unknown tensor": (
        tensors(lambda t: t.update({LAYER + "mlp.gate_proj.weight": torch.zeros(2)})),
        "no such tensors: model.layers.0.mlp.gate_proj.weight",
    ),
    "missing tensor": (
        tensors(lambda t: t.pop(LAYER + "self_attn.k_proj.weight")),
        "tensor model.layers.0.self_attn.k_proj.weight is missing",
    ),
    "one tensor of F32": (
        set_dtype(torch.float32),
        "mlp.up_proj.weight is F32, .* is BF16.*one dtype",
    ),
    "reward model": (
        config(reward_model_type="regression"),
        "model.rm_head.weight is not read from a Hugging Face folder.*from a .nemo",
    ),
    "reward model's head": (
        tensors(lambda t: t.update({"model.rm_head.weight": torch.zeros(9, 128)})),
        "model.rm_head.weight is not read from a Hugging Face folder.*from a .nemo",
    ),
    "prompt": (
        tensors(lambda t: t.update({"model.ptuning_adapter.x": torch.zeros(2)})),
        "this is a P-tuning prompt, not a whole model.*--base",
    ),
    "int8": (set_dtype(torch.int8), "up_proj.weight is I8.*BF16, F16, F32"),
    "float64": (set_dtype(torch.float64), "up_proj.weight is F64"),
    "not JSON": (
        lambda folder: (folder / "config.json").write_text("{") and None,
        "not JSON",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    edit, message = REFUSED[name]
    folder = copy_tiny(tmp_path / "in")
    edit(folder)
    with pytest.raises(NemotronError, match=message):
        convert(folder, tmp_path / "out", HF)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


STRIPPING = CHAT_TEMPLATE.replace("turn.content", "turn.content.strip()")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "another format": (
        CHATML,
        r"for a question, the chat template gives '<\|im_start\|>user.*the assistant's turn begins "
        r"with .*, which is no control piece",
    ),
    "begins with BOS": (
        "{{ bos_token }}" + CHAT_TEMPLATE,
        "gives '<s><extra_id_0>System.*no prompt can have the piece <s>",
    ),
    "system messages in the first turn": (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages if m.role != 'system' %}"
        "<extra_id_3>{{ m.role }}: {{ system if loop.first }}{{ m.content }}<extra_id_4>"
        "{% endfor %}{% if add_generation_prompt %}<extra_id_3>assistant: {% endif %}",
        "for a question, the chat template gives '<extra_id_3>user: Why",
    ),
    "not Jinja": ("{% for %}", "the chat template fails: "),
    "unsafe": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "the chat template fails: .*unsaf",
    ),
    "endless": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "the chat template takes too long or too much memory",
    ),
    "huge": ("{{ 'x' * 9999999999 }}", "the chat template (takes too long|fails)"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_another_chat_template_is_refused_unless_it_is_to_be_ignored(
    name: str, tmp_path: Path
) -> None:
    template, message = TEMPLATES[name]
    folder = set_template(copy_tiny(tmp_path / "in"), template, bos_token={"content": "<s>"})
    with pytest.raises(NemotronError, match=f"{message}.*--ignore-template"):
        convert(folder, tmp_path / "out", HF)
    if name == "another format":
        options = Options(Parallel(1, 1), Format.HF, ignore_template=True)
        (note, *_rest) = convert(folder, tmp_path / "out", options).template_notes
        assert "<|im_start|>" in note
        assert not inspect(folder).convertible


@pytest.mark.parametrize("place", ["text", "list", "file"])
def test_small_differences_are_noted(place: str, tmp_path: Path) -> None:
    """A template that strips messages, as that of Nemotron-Mini does, wherever it is kept."""
    folder = copy_tiny(tmp_path / "in")
    if place == "file":
        (folder / "chat_template.jinja").write_text(STRIPPING)
        set_template(folder, CHATML)
    else:
        named = [{"name": "rag", "template": CHATML}, {"name": "default", "template": STRIPPING}]
        set_template(folder, STRIPPING if place == "text" else named)
    manifest = convert(folder, tmp_path / "out", HF)
    assert [note.partition(":")[0] for note in manifest.template_notes] == [
        "white space around a message"
    ]
    assert inspect(folder).convertible


def test_code_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = set_template(copy_tiny(tmp_path / "in"), None, auto_map={"AutoTokenizer": ["a.B"]})
    with pytest.raises(NemotronError, match="auto_map: the tokenizer has code of its own"):
        convert(folder, tmp_path / "out", HF)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
TOKENIZERS = {
    "byte level": ({"pre_tokenizer": BYTE_LEVEL}, "has the step ByteLevel, SentencePiece has none"),
    "word piece": ({"model": {"type": "WordPiece", "vocab": {}}}, "is of the kind WordPiece"),
    "no spaces": ({"normalizer": None, "pre_tokenizer": None}, "does not escape spaces"),
    "gap": ({"added_tokens": [{"id": 9999, "content": "x"}]}, "has no token"),
    "no model": ({"model": None}, "not a tokenizer of a known form"),
    "half a character": (
        {"added_tokens": [{"id": 512, "content": "\ud800"}]},
        r"known form: .*surrogates not allowed.*tokenizer\.json.*copy it again",
    ),
    "endless id": (
        {"added_tokens": [{"id": float("inf"), "content": "x"}]},
        r"not a tokenizer of a known form: .*infinity.*tokenizer\.json.*copy it again",
    ),
    "huge score": (
        {
            "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁", 1e39]]},
            "added_tokens": [],
        },
        r"not a tokenizer of a known form: .*tokenizer\.json.*copy it again",
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_tokenizers_are_refused(name: str, tmp_path: Path) -> None:
    from nemotron_convert.target.hf_tokenizer import hf_tokenizer
    from nemotron_core.text.sentencepiece_model import SentencePieceModel

    keys, message = TOKENIZERS[name]
    folder = copy_tiny(tmp_path / "in")
    parsed = SentencePieceModel.parse((folder / "tokenizer.model").read_bytes())
    content = json.loads(hf_tokenizer(parsed).to_str()) | keys
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer.model").unlink()
    with pytest.raises(NemotronError, match=message):
        convert(folder, tmp_path / "out", HF)
