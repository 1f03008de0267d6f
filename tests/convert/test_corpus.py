"""A corpus of damaged and foreign files: each ends in a clear error, or in the right bytes."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nemotron_convert.convert import Options, convert
from nemotron_convert.shards import Parallel
from nemotron_convert.target.manifest import Manifest, changed_files
from nemotron_core.errors import NemotronError
from tests.convert.nemo import (
    NEMO,
    WEIGHTS,
    add_array,
    add_settings,
    edit_zarray,
    pack,
    unpack,
    unstack,
)

LAYERS = "model.decoder.layers."
TP2 = Options(Parallel(2, 1))
RIGHT = ""
"""Stands for a file that is converted to the right bytes."""

Build = Callable[[Path], Path]
"""Makes a source in an empty folder and returns its path."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return convert(NEMO, tmp_path_factory.mktemp("corpus") / "expected", TP2)


def folder(*edits: Callable[[Path], object]) -> Build:
    """Return a builder of the golden `.nemo` as a folder that `edits` change."""

    def build(place: Path) -> Path:
        nemo = unpack(place / "in")
        for edit in edits:
            edit(nemo)
        return nemo

    return build


def array(name: str, *shape: int, dtype: str = "bfloat16") -> Callable[[Path], object]:
    return lambda nemo: add_array(nemo, name, shape, dtype, size=4 if dtype == "<f4" else 2)


def settings(**values: object) -> Build:
    return folder(lambda nemo: add_settings(nemo, **values))


def without_weights(nemo: Path) -> None:
    for path in (nemo / WEIGHTS).glob("model.*"):
        shutil.rmtree(path)


def adapter(scheme: str, *tensors: str) -> Build:
    """Return a builder of a file that holds nothing but adapter tensors."""
    arrays = [array(name, 4, 8) for name in tensors]
    return folder(
        without_weights, *arrays, lambda nemo: add_settings(nemo, peft={"peft_scheme": scheme})
    )


def packed(level: int = 9, damage: Callable[[bytearray], object] | None = None) -> Build:
    """Return a builder of the gzipped golden `.nemo`, whose bytes `damage` changes."""

    def build(place: Path) -> Path:
        tar = pack(unpack(place / "in"), place / "model.tar")
        data = bytearray(gzip.compress(tar.read_bytes(), level))
        if damage:
            damage(data)
        (place / "model.nemo").write_bytes(data)
        return place / "model.nemo"

    return build


def flip(position: int) -> Callable[[bytearray], object]:
    """Flip a bit of a byte, counted from the end if negative."""

    def damage(data: bytearray) -> None:
        data[position] ^= 0x10

    return damage


def cut(count: int) -> Callable[[bytearray], object]:
    def damage(data: bytearray) -> None:
        del data[-count:]

    return damage


def plain_tar(damage: Callable[[bytearray], object]) -> Build:
    def build(place: Path) -> Path:
        tar = pack(unpack(place / "in"), place / "model.nemo")
        data = bytearray(tar.read_bytes())
        damage(data)
        tar.write_bytes(data)
        return tar

    return build


def damage_header(data: bytearray) -> None:
    """Make the header of a member in the middle unreadable."""
    at = data.index(b"./model_weights/model.output_layer.weight/.zarray")
    data[at + 148] ^= 0xFF


def two_tars(data: bytearray) -> None:
    second = io.BytesIO()
    with tarfile.open(fileobj=second, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("more"))
    data += second.getvalue()


def raw(data: bytes) -> Build:
    def build(place: Path) -> Path:
        (place / "model.nemo").write_bytes(data)
        return place / "model.nemo"

    return build


def tokenizer(data: bytes) -> Build:
    return folder(lambda nemo: next(nemo.glob("*.model")).write_bytes(data))


def cached(edit: Callable[[Path], object] = lambda snapshot: None) -> Build:
    """Return a builder of a Hugging Face cache: links in a snapshot to blobs of other names."""

    def build(place: Path) -> Path:
        nemo = unpack(place / "in")
        blobs = place / "models--nvidia--tiny" / "blobs"
        snapshot = blobs.parent / "snapshots" / "0123abcd"
        blobs.mkdir(parents=True)
        for number, path in enumerate(sorted(nemo.rglob("*"))):
            if path.is_file():
                path.rename(blobs / f"{number:040x}")
                link = snapshot / path.relative_to(nemo)
                link.parent.mkdir(parents=True, exist_ok=True)
                up = "../" * (len(link.relative_to(snapshot).parts) + 1)
                link.symlink_to(f"{up}blobs/{number:040x}")
        (place / "canary").write_text("secret")
        edit(snapshot)
        return snapshot

    return build


def link_config(target: str) -> Callable[[Path], object]:
    def edit(snapshot: Path) -> None:
        (snapshot / "README.md").symlink_to(target)

    return edit


def in_file_of_cache(place: Path) -> Path:
    blobs = place / "models--nvidia--tiny" / "blobs"
    (blobs.parent / "snapshots" / "0").mkdir(parents=True)
    blobs.mkdir()
    shutil.copy(NEMO, blobs / "aa")
    link = blobs.parent / "snapshots" / "0" / "model.nemo"
    link.symlink_to("../../blobs/aa")
    return link


def as_type(dtype: str) -> Callable[[Path], object]:
    """Store all weights as F16 or F32 numbers."""

    def edit(nemo: Path) -> None:
        for meta in sorted((nemo / WEIGHTS).glob("*/.zarray")):
            for chunk in meta.parent.glob("[0-9]*"):
                words = np.fromfile(chunk, np.uint16)
                numbers = (words.astype(np.uint32) << 16).view(np.float32)
                numbers.astype(dtype).tofile(chunk)
            edit_zarray(nemo, meta.parent.name, dtype=dtype)

    return edit


def drop_layer(nemo: Path) -> None:
    shutil.rmtree(nemo / WEIGHTS / f"{LAYERS}2.mlp.linear_fc2.weight")


def with_file(name: str) -> Callable[[Path], object]:
    def edit(nemo: Path) -> None:
        (nemo / name).parent.mkdir(parents=True, exist_ok=True)
        (nemo / name).write_text("something")

    return edit


def index(**keys: object) -> Callable[[Path], object]:
    return lambda nemo: (nemo / WEIGHTS / "metadata.json").write_text(json.dumps(keys))


def hf_folder(place: Path) -> Path:
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return place


LORA = LAYERS + "0.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight"
NO_SUCH = "Nemotron-4 has no such tensors: "
NO_SETTING = "Nemotron-4 has no such setting: "
FOREIGN_TENSORS: dict[str, tuple[Build, str]] = {
    "bias of QKV": (
        folder(array(LAYERS + "self_attention.linear_qkv.bias", 4, 256)),
        rf"{NO_SUCH}{LAYERS}self_attention\.linear_qkv\.bias \(bfloat16 \[4, 256\]\).*--ignore",
    ),
    "norm of queries": (
        folder(array(LAYERS + "self_attention.q_layernorm.weight", 4, 8)),
        rf"{NO_SUCH}{LAYERS}self_attention\.q_layernorm",
    ),
    "norm of keys": (
        folder(array(LAYERS + "self_attention.k_layernorm.weight", 4, 8)),
        rf"{NO_SUCH}{LAYERS}self_attention\.k_layernorm",
    ),
    "learned positions": (
        folder(array("model.embedding.position_embeddings.weight", 256, 128)),
        rf"{NO_SUCH}model\.embedding\.position_embeddings",
    ),
    "experts": (
        folder(array(LAYERS + "mlp.experts.linear_fc1.weight", 4, 8, 128)),
        rf"{NO_SUCH}{LAYERS}mlp\.experts",
    ),
    "many of them": (
        folder(*(array(f"model.more.{i}", 3, dtype="<f4") for i in range(12))),
        r"model\.more\.0 \(<f4 \[3\]\).* and 2 more",
    ),
    "a tensor twice": (
        folder(array("model.module.output_layer.weight", 512, 128)),
        "model.*output_layer.weight are the same tensor",
    ),
    "optimizer": (folder(array("optimizer.state.exp_avg." + LAYERS + "x", 8)), RIGHT),
    "angles of the rotary embedding": (folder(array("model.rotary_pos_emb.inv_freq", 2)), RIGHT),
    "README and caches": (
        folder(with_file("README.md"), with_file(".cache/huggingface/download/a.lock")),
        RIGHT,
    ),
}
KINDS: dict[str, tuple[Build, str]] = {
    "LoRA": (adapter("lora", LORA), "a LoRA adapter, not a whole.*convert --base BASE"),
    "LoRA beside whole weights": (folder(array(LORA, 4, 8)), "this is a LoRA adapter"),
    "LoRA by its settings": (adapter("qlora"), "this is a LoRA adapter"),
    "P-tuning": (
        adapter("ptuning", "model.embedding.adapter_layer.ptuning_adapter.embedding.weight"),
        "this is a P-tuning prompt",
    ),
    "IA3": (
        adapter("ia3", LAYERS + "0.mlp.adapter_layer.mlp_infused_adapter.scalers"),
        "this is an IA3 adapter",
    ),
    "bottleneck adapter": (
        adapter("adapter", LAYERS + "0.adapter_layer.adapter_1.linear_in.weight"),
        "this is a bottleneck adapter.*cannot be merged",
    ),
    "reward model without its bias": (
        folder(array("model.rm_head.weight", 9, 128)),
        "tensor model.rm_head.bias is missing",
    ),
    "reward model without its head": (
        settings(reward_model_type="regression"),
        "tensor model.rm_head.weight is missing",
    ),
    "SFT": (
        settings(
            target="nemo.collections.nlp.models.language_modeling.megatron_gpt_sft_model.X",
            peft={"peft_scheme": "none"},
            data={"chat_prompt_tokens": {"turn_start": "<extra_id_1>"}},
        ),
        RIGHT,
    ),
    "merged LoRA that kept its settings": (settings(peft={"peft_scheme": "lora"}), RIGHT),
    "DPO": (settings(dpo={"ref_policy_kl_penalty": 0.1}), RIGHT),
}
FOREIGN_SETTINGS: dict[str, tuple[Build, str]] = {
    "interpolated positions": (
        settings(seq_len_interpolation_factor=2.0),
        NO_SETTING + "seq_len_interpolation_factor: 2.0 stretches the positions",
    ),
    "bias": (settings(bias=True), "bias: True, but Nemotron-4 has False"),
    "RMSNorm": (settings(normalization="rmsnorm"), "normalization: 'rmsnorm'"),
    "SwiGLU": (settings(activation="fast-swiglu"), "activation: 'fast-swiglu'"),
    "GELU": (settings(openai_gelu=True), NO_SETTING + "openai_gelu: True"),
    "window": (settings(window_size=[128, 0]), NO_SETTING + "window_size: a list lets attention"),
    "experts by setting": (settings(num_moe_experts=8), NO_SETTING + "num_moe_experts: 8"),
    "scores without a scale": (
        settings(normalize_attention_scores=False),
        NO_SETTING + "normalize_attention_scores: False",
    ),
    "post-norm": (settings(transformer_block_type="post_ln"), "transformer_block_type: post_ln"),
    "two at once": (
        settings(headscale=True, qk_layernorm=True),
        "headscale: True scales the heads; qk_layernorm: True normalizes",
    ),
    "what changes nothing": (
        settings(
            apply_query_key_layer_scaling=False,
            seq_len_interpolation_factor=None,
            num_moe_experts=None,
            fp8=True,
            my_own_setting=[1, 2],
            max_position_embeddings="${.encoder_seq_length}",
        ),
        RIGHT,
    ),
}
CONTAINERS: dict[str, tuple[Build, str]] = {
    "gzip": (packed(), RIGHT),
    "gzip with a flipped byte of a weight": (
        packed(0, lambda data: flip(len(data) // 2)(data)),
        "the gzip is damaged: CRC check failed.*copy it again",
    ),
    "gzip with a flipped byte of compressed data": (
        packed(9, lambda data: flip(len(data) // 2)(data)),
        r"the gzip is damaged|not a \.nemo",
    ),
    "gzip with a flipped checksum": (packed(9, flip(-6)), "the gzip is damaged: CRC"),
    "gzip with a flipped length": (packed(9, flip(-1)), "the gzip is damaged: Incorrect length"),
    "gzip without its end": (packed(9, cut(6)), r"not a \.nemo"),
    "gzip that is cut": (packed(9, cut(5000)), r"not a \.nemo|gzip is damaged"),
    "gzip with something behind it": (packed(9, lambda d: d.extend(b"x" * 99)), "damaged: Not a g"),
    "tar with a damaged header": (plain_tar(damage_header), "not a .nemo.*invalid header"),
    "two tars": (plain_tar(two_tars), "something follows the end of the tar"),
    "tar that is cut": (plain_tar(cut(200_000)), "the tar is cut short"),
    "zstd": (raw(b"\x28\xb5\x2f\xfd" + bytes(99)), "compressed by zstd, not a .nemo.*unpack it"),
    "zip": (raw(b"PK\x03\x04" + bytes(99)), "this is a zip, not a .nemo"),
    "GGUF": (raw(b"GGUF" + bytes(99)), "this is a GGUF file, not a .nemo"),
    "HTML page": (raw(b"<!DOCTYPE html><p>404" * 99), r"not a \.nemo"),
    "Hugging Face folder": (
        hf_folder,
        "the architecture that is not named, not NemotronForCausalLM",
    ),
    "snapshot in a cache": (cached(), RIGHT),
    "file in a cache": (in_file_of_cache, RIGHT),
    "link out of the cache": (
        cached(link_config("../../../canary")),
        "'README.md' is a link that leads out of the cache's blobs",
    ),
    "link to nothing in the cache": (
        cached(link_config("../../blobs/gone")),
        "a blob that is not there.*hf download",
    ),
}
TOKENIZERS: dict[str, tuple[Build, str]] = {
    "no tokenizer": (
        folder(lambda nemo: next(nemo.glob("*.model")).unlink()),
        "is not in the archive",
    ),
    "empty tokenizer": (tokenizer(b""), "the tokenizer is empty"),
    "pointer to a tokenizer": (
        tokenizer(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        "Git-LFS pointer.*git lfs pull",
    ),
    "text for a tokenizer": (tokenizer(b"<html>" * 50), "not a SentencePiece model"),
    "tokenizer of another model": (
        tokenizer(b"\x0a\x05\x0a\x03abc" * 600),
        "the tokenizer has 600 pieces, the embedding 512 rows",
    ),
    "tokenizer of a smaller model": (
        folder(
            lambda nemo: next(nemo.glob("*.model")).write_bytes(b"\x0a\x05\x0a\x03abc" * 5),
            lambda nemo: grow_vocabulary(nemo, 2048),
        ),
        "the tokenizer has 5 pieces, the embedding 2048 rows",
    ),
}
WEIGHTS_AS_STORED: dict[str, tuple[Build, str]] = {
    "F32": (folder(as_type("<f4")), RIGHT),
    "integers": (
        folder(lambda nemo: edit_zarray(nemo, "model.output_layer.weight", dtype="<i2")),
        "dtype is '<i2'",
    ),
    "a tensor for each layer": (folder(unstack), RIGHT),
    "a tensor for each layer, one missing": (
        folder(unstack, drop_layer),
        r"mlp\.linear_fc2\.weight of layer 2 is missing",
    ),
    "an index without a version": (folder(index(sharded_backend="zarr")), RIGHT),
    "an index of the newer version": (
        folder(
            index(
                sharded_backend="zarr",
                sharded_backend_version=1,
                common_backend="torch",
                common_backend_version=1,
            )
        ),
        RIGHT,
    ),
}


def grow_vocabulary(nemo: Path, rows: int) -> None:
    """Make the two vocabulary matrices zeros of another number of rows."""
    for name in ("model.embedding.word_embeddings.weight", "model.output_layer.weight"):
        shutil.rmtree(nemo / WEIGHTS / name)
        add_array(nemo, name, (rows, 128))


CORPUS = FOREIGN_TENSORS | KINDS | FOREIGN_SETTINGS | CONTAINERS | TOKENIZERS | WEIGHTS_AS_STORED


@pytest.mark.parametrize("name", CORPUS)
def test_a_clear_error_or_the_right_bytes(name: str, expected: Manifest, tmp_path: Path) -> None:
    build, message = CORPUS[name]
    (tmp_path / "results").mkdir()
    (tmp_path / "source").mkdir()
    source = build(tmp_path / "source")
    out = tmp_path / "results" / "out"
    if message == RIGHT:
        assert convert(source, out, TP2).files == expected.files
        assert changed_files(out, expected) == []
        return
    with pytest.raises(NemotronError, match=message) as caught:
        convert(source, out, TP2)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500
    assert list((tmp_path / "results").iterdir()) == []
