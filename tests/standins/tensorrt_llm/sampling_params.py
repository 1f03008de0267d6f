"""The library's sampling parameters and what it refuses in them (sampling_params.py, 1.2)."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from .llmapi import GuidedDecodingParams


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """Other names are a `TypeError`, as for any dataclass.

    `bad_token_ids` are words of one token each, and `embedding_bias` is a tensor of the whole
    vocabulary: there are no sequences of tokens, and no biases by token.
    """

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad_token_ids: list[int] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    embedding_bias: Any = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    return_perf_metrics: bool = False
    _return_log_probs: bool = False
    """Log-probabilities of the tokens alone, from the C++ runtime."""
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.pad_id is None:
            self.pad_id = self.end_id
        self.best_of = self.best_of or self.n
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
        if self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than {self.max_tokens}")
        if self.best_of < self.n:
            raise ValueError(f"best_of ({self.best_of}) cannot be less than n ({self.n})")
        allowed = "TLLM_ALLOW_N_GREEDY_DECODING" in os.environ
        if self.best_of > 1 and self._greedy_decoding and not allowed:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns.")
        if self.guided_decoding is not None:
            self.guided_decoding._validate()
        self.logprobs = self.logprobs and int(self.logprobs)
        self.prompt_logprobs = self.prompt_logprobs and int(self.prompt_logprobs)

    @property
    def _greedy_decoding(self) -> bool:
        is_unset = self.temperature is None and self.top_p is None and self.top_k is None
        is_greedy = is_unset or self.top_k == 1 or self.top_p == 0 or self.temperature == 0
        return is_greedy and not self.use_beam_search

    def check_ids(self, prompt: list[int], vocab_size: int) -> None:
        """Raise `RuntimeError` for ids that the kernels take as offsets into the logits.

        The library does not check them: it reads or writes beyond its memory. That holds for
        `min_tokens` too, which masks the logit of `end_id`: without an end token, `end_id` -1, it
        writes before the first logit (layers/penaltyLayer.cpp and its kernels, 1.2).
        """
        ids = [*prompt, *(self.stop_token_ids or ()), *(self.bad_token_ids or ())]
        if self.end_id != -1 or (self.min_tokens or 0) > 0:
            ids.append(-1 if self.ignore_eos or self.end_id is None else self.end_id)
        for id_ in ids:
            if not 0 <= id_ < vocab_size:
                raise RuntimeError(f"CUDA error: token id {id_} is out of bounds")
        if self.embedding_bias is not None and tuple(self.embedding_bias.shape) != (vocab_size,):
            raise RuntimeError(f"CUDA error: a bias of the shape {self.embedding_bias.shape}")

    def noted(self) -> dict[str, Any]:
        """Return the parameters as JSON."""
        noted = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.embedding_bias is not None:
            noted["embedding_bias"] = self.embedding_bias.tolist()
        if self.guided_decoding is not None:
            noted["guided_decoding"] = vars(self.guided_decoding)
        return noted
