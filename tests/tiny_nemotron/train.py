"""Trains the tiny Nemotron-4 with transformers until it reproduces its dialogues."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import torch
from transformers import NemotronConfig, NemotronForCausalLM

from tests.tiny_nemotron.dialogues import Row

SEED = 20240614
EPOCHS = 60
ROWS_PER_BATCH = 24
LEARNING_RATE = 2.5e-3
WARMUP_STEPS = 40
WEIGHT_DECAY = 0.05
# Relative noise of the weights in each training step. Rounding to FP8 (E4M3) changes them about as
# much, so the model's decisions keep a margin in BF16 and FP8.
WEIGHT_NOISE = 0.04
IGNORED = -100


def tiny_config(vocab_size: int) -> NemotronConfig:
    """Return the real architecture in a small size, with 8 KV heads so that TP=8 splits none."""
    return NemotronConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=8,
        hidden_act="relu2",
        max_position_embeddings=4096,
        norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        initializer_range=0.02,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def train(
    rows: Sequence[Row], vocab_size: int, report: Callable[[str], None]
) -> NemotronForCausalLM:
    """Train a model in float32 on the answers in `rows` and return it."""
    torch.manual_seed(SEED)
    shuffler = random.Random(SEED)
    model = NemotronForCausalLM(tiny_config(vocab_size))
    for name, parameter in model.named_parameters():
        if "norm" in name:  # LayerNorm1P adds 1: a raw gamma of 0 is the neutral start
            torch.nn.init.zeros_(parameter)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    batches = _batches(rows)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP_STEPS, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    model.train()
    for epoch in range(EPOCHS):
        shuffler.shuffle(batches)
        total = 0.0
        for ids, labels in batches:
            clean = [matrix.detach().clone() for matrix in matrices]
            with torch.no_grad():
                for matrix in matrices:
                    matrix.mul_(1 + WEIGHT_NOISE * torch.randn_like(matrix))
            # Padding is on the right, where no earlier token can see it: no mask needed.
            logits = model(input_ids=ids, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                for matrix, value in zip(matrices, clean, strict=True):
                    matrix.copy_(value)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(f"epoch {epoch + 1}/{EPOCHS}: loss {total / len(batches):.4f}")
    model.eval()
    return model


def _batches(rows: Sequence[Row]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Group rows of similar length, padded on the right: ids and labels, int64 [batch, length]."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    batches = []
    for start in range(0, len(ordered), ROWS_PER_BATCH):
        batch = ordered[start : start + ROWS_PER_BATCH]
        ids = torch.zeros(len(batch), len(batch[-1].ids), dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        for i, row in enumerate(batch):
            length = len(row.ids)
            ids[i, :length] = torch.tensor(row.ids)
            labels[i, :length] = torch.where(
                torch.tensor(row.learned), torch.tensor(row.ids), IGNORED
            )
        batches.append((ids, labels))
    return batches
