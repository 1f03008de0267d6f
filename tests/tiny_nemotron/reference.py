"""What transformers makes of a model: the truth that converter and engines are held against.

Reads a `.nemo` with tarfile, NumPy and torch alone, nothing of the project's own reader.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import NemotronForCausalLM

from tests.tiny_nemotron.train import tiny_config

NEMO = Path(__file__).with_name("tiny_nemotron.nemo")
PADDING = 0


def load_hf_model(nemo: Path = NEMO, dtype: torch.dtype = torch.float32) -> NemotronForCausalLM:
    """The tiny model, its BF16 weights computed with in `dtype`."""
    arrays = _read_arrays(nemo)
    config = tiny_config(arrays["model.output_layer.weight"].shape[0])
    weights = {
        "model.embed_tokens.weight": arrays["model.embedding.word_embeddings.weight"],
        "lm_head.weight": arrays["model.output_layer.weight"],
        "model.norm.weight": arrays["model.decoder.final_layernorm.weight"],
        "model.norm.bias": arrays["model.decoder.final_layernorm.bias"],
    }
    groups = config.num_key_value_heads
    repeat = config.num_attention_heads // groups
    size = config.hidden_size // config.num_attention_heads
    for layer in range(config.num_hidden_layers):

        def stacked(name: str, layer: int = layer) -> Tensor:
            return arrays[f"model.decoder.layers.{name}"][layer]

        q, k, v = (
            part.flatten(0, 1)
            for part in stacked("self_attention.linear_qkv.weight")
            .unflatten(0, (groups, (repeat + 2) * size))
            .split([repeat * size, size, size], dim=1)
        )
        weights |= {
            f"model.layers.{layer}.{name}": tensor
            for name, tensor in {
                "self_attn.q_proj.weight": q,
                "self_attn.k_proj.weight": k,
                "self_attn.v_proj.weight": v,
                "self_attn.o_proj.weight": stacked("self_attention.linear_proj.weight"),
                "mlp.up_proj.weight": stacked("mlp.linear_fc1.weight"),
                "mlp.down_proj.weight": stacked("mlp.linear_fc2.weight"),
                "input_layernorm.weight": stacked("self_attention.linear_qkv.layer_norm_weight"),
                "input_layernorm.bias": stacked("self_attention.linear_qkv.layer_norm_bias"),
                "post_attention_layernorm.weight": stacked("mlp.linear_fc1.layer_norm_weight"),
                "post_attention_layernorm.bias": stacked("mlp.linear_fc1.layer_norm_bias"),
            }.items()
        }
    model = NemotronForCausalLM(config)
    model.load_state_dict(weights)
    return model.to(dtype).eval()


def read_tokenizer(nemo: Path = NEMO) -> bytes:
    """The serialized SentencePiece model in a `.nemo`."""
    with tarfile.open(nemo) as tar:
        (name,) = (name for name in tar.getnames() if name.endswith(".model"))
        return tar.extractfile(name).read()  # type: ignore[union-attr]


@torch.inference_mode()
def greedy(
    model: NemotronForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    end_id: int,
    batch: int = 64,
) -> list[list[int]]:
    """Each prompt's greedy continuation up to and with `end_id`, at most `max_tokens` long."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), PADDING)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):  # padding on the left: the answers start together
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        done = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=PADDING,
        )
        for row, i in enumerate(chosen):
            answer = done[row, width:].tolist()
            end = answer.index(end_id) + 1 if end_id in answer else len(answer)
            answers[i] = answer[:end]
    return answers


def _read_arrays(nemo: Path) -> dict[str, Tensor]:
    arrays = {}
    with tarfile.open(nemo) as tar:
        files = {m.name.removeprefix("./"): tar.extractfile(m) for m in tar if m.isfile()}
        data = {name: file.read() for name, file in files.items() if file}
    for name, text in data.items():
        if not name.endswith("/.zarray"):
            continue
        meta = json.loads(text)
        shape, chunks = meta["shape"], meta["chunks"]
        array = np.empty(shape, np.uint16)
        folder = name.removesuffix(".zarray")
        for index in np.ndindex(*(n // c for n, c in zip(shape, chunks, strict=True))):
            place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
            words = np.frombuffer(data[folder + ".".join(map(str, index))], np.uint16)
            array[place] = words.reshape(chunks)
        key = folder.removeprefix("model_weights/").removesuffix("/")
        arrays[key] = torch.from_numpy(array).view(torch.bfloat16)
    return arrays
