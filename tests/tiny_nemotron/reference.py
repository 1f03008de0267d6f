"""The model in transformers: the reference for the converter and the engines.

A `.nemo` is read with tarfile, PyYAML, NumPy and torch only, not with the project's own reader.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import NemotronConfig, NemotronForCausalLM

from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import ExactAnswer, answer_text
from tests.tiny_nemotron.dialogues import Question, prompt_ids
from tests.tiny_nemotron.nemo_file import NEMO, read_members

PADDING = 0
MAX_TOKENS = 256
"""Largest number of tokens of an answer. The longest, counting to 60, has 232 tokens."""


def load_hf_model(path: Path = NEMO, dtype: torch.dtype = torch.float32) -> NemotronForCausalLM:
    """Load a zarr `.nemo` tar or a Hugging Face folder as a model that computes in `dtype`.

    The weights are the stored BF16 values; gamma is without the 1 that LayerNorm1P adds.
    """
    if path.is_dir():
        return NemotronForCausalLM.from_pretrained(path, dtype=dtype).eval()
    members = read_members(path)
    arrays = _read_arrays(members)
    config = _read_config(members["model_config.yaml"], arrays)
    model = NemotronForCausalLM(config)
    model.load_state_dict(_hugging_face_weights(arrays, config))
    return model.to(dtype).eval()


@torch.inference_mode()
def greedy(
    model: NemotronForCausalLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    end_id: int,
    batch: int = 32,
) -> list[list[int]]:
    """Continue each prompt greedily, up to and including `end_id`, by at most `max_tokens`."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        indexes = order[start : start + batch]
        width = max(len(prompts[i]) for i in indexes)
        ids = torch.full((len(indexes), width), PADDING)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(indexes):  # padded on the left, so that all answers start together
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=end_id,
            pad_token_id=PADDING,
        )
        for row, i in enumerate(indexes):
            answer = output[row, width:].tolist()
            end = answer.index(end_id) + 1 if end_id in answer else len(answer)
            answers[i] = answer[:end]
    return answers


def _read_arrays(members: dict[str, bytes]) -> dict[str, Tensor]:
    """Return the zarr arrays of `model_weights/` by name, in BF16, assembled from their chunks."""
    arrays = {}
    for name, text in members.items():
        if not name.endswith("/.zarray"):
            continue
        meta = json.loads(text)
        shape, chunks = meta["shape"], meta["chunks"]
        array = np.empty(shape, np.uint16)
        folder = name.removesuffix(".zarray")
        for index in np.ndindex(*(n // c for n, c in zip(shape, chunks, strict=True))):
            place = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
            words = np.frombuffer(members[folder + ".".join(map(str, index))], np.uint16)
            array[place] = words.reshape(chunks)
        key = folder.removeprefix("model_weights/").removesuffix("/")
        arrays[key] = torch.from_numpy(array).view(torch.bfloat16)
    return arrays


def _read_config(text: bytes, arrays: dict[str, Tensor]) -> NemotronConfig:
    settings = yaml.safe_load(text)
    vocab_size, hidden_size = arrays["model.embedding.word_embeddings.weight"].shape
    layers, intermediate_size, _ = arrays["model.decoder.layers.mlp.linear_fc1.weight"].shape
    return NemotronConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=settings["num_attention_heads"],
        num_key_value_heads=settings["num_query_groups"],
        hidden_act="relu2",
        max_position_embeddings=settings["max_position_embeddings"],
        norm_eps=settings["layernorm_epsilon"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": settings["rotary_percentage"],
        },
        tie_word_embeddings=False,
    )


def _hugging_face_weights(arrays: dict[str, Tensor], config: NemotronConfig) -> dict[str, Tensor]:
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
        stored = {
            name.removeprefix("model.decoder.layers."): array[layer]
            for name, array in arrays.items()
            if name.startswith("model.decoder.layers.")
        }
        qkv = stored["self_attention.linear_qkv.weight"]
        by_group = qkv.reshape(groups, (repeat + 2) * size, config.hidden_size)
        q, k, v = (
            part.flatten(0, 1) for part in torch.split(by_group, [repeat * size, size, size], dim=1)
        )
        weights |= {
            f"model.layers.{layer}.{name}": tensor
            for name, tensor in {
                "self_attn.q_proj.weight": q,
                "self_attn.k_proj.weight": k,
                "self_attn.v_proj.weight": v,
                "self_attn.o_proj.weight": stored["self_attention.linear_proj.weight"],
                "mlp.up_proj.weight": stored["mlp.linear_fc1.weight"],
                "mlp.down_proj.weight": stored["mlp.linear_fc2.weight"],
                "input_layernorm.weight": stored["self_attention.linear_qkv.layer_norm_weight"],
                "input_layernorm.bias": stored["self_attention.linear_qkv.layer_norm_bias"],
                "post_attention_layernorm.weight": stored["mlp.linear_fc1.layer_norm_weight"],
                "post_attention_layernorm.bias": stored["mlp.linear_fc1.layer_norm_bias"],
            }.items()
        }
    return weights


def exact_answers(
    model: NemotronForCausalLM, tokenizer: Tokenizer, questions: Sequence[Question]
) -> list[ExactAnswer]:
    """Return the questions that `model` answers exactly under greedy decoding, with the tokens."""
    end_id = tokenizer.end_ids[0]
    prompts = [prompt_ids(tokenizer, question.messages) for question in questions]
    completions = greedy(model, prompts, max_tokens=MAX_TOKENS, end_id=end_id)
    return [
        ExactAnswer(question, ids)
        for question, ids in zip(questions, completions, strict=True)
        if ids[-1] == end_id and answer_text(tokenizer, ids) == question.answer
    ]
