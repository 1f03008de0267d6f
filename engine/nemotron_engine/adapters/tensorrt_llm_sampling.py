"""A request to an engine as TensorRT-LLM's `SamplingParams`."""

from __future__ import annotations

from typing import Any

from nemotron_engine.protocol import Request

NO_END_ID = -1
"""Value of `end_id` for which no token is the end token."""
GUIDE_FIELDS = {"json_schema": "json", "ebnf_grammar": "grammar"}
"""Names that the library has for a guide; the others are the same."""


def library_priority(priority: int) -> float:
    """Return the library's priority (0 to 1, higher ones first) for ours (lower ones first).

    0 is the library's default, 0.5. Any other number keeps its place in the order.
    """
    return 0.5 - 0.5 * priority / (1 + abs(priority))


class Sampling:
    """Makes the library's parameters from requests, which have been checked.

    The library checks no token ids: one outside the vocabulary reads or writes beside the logits.
    """

    def __init__(self, api: Any, torch: Any, vocab_size: int, *, returns_end_id: bool) -> None:
        self._api, self._torch, self._vocab_size = api, torch, vocab_size
        self._returns_end_id = returns_end_id

    def params(self, request: Request, log_probs: dict[str, Any]) -> Any:
        """Return the parameters. `log_probs` are those that ask for log-probabilities."""
        fields: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            # It masks the logit of `end_id`, also if that is no token's: then beside the logits.
            "min_tokens": (request.min_tokens or None) if request.end_ids else None,
            "include_stop_str_in_output": True,  # keeps tokens that were counted
            "seed": request.seed,
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "detokenize": False,
            "add_special_tokens": False,
            **self._end_fields(request),
            **log_probs,
        }
        if request.temperature > 0:
            fields |= {
                "temperature": request.temperature,
                "top_k": request.top_k or None,
                "top_p": request.top_p or 1.0,
            }
        else:
            fields["top_k"] = 1
        if request.bias:
            fields["embedding_bias"] = self._bias(request.bias)
        if request.guide_type:
            fields["guided_decoding"] = self._guide(request.guide_type, request.guide)
        return self._api.SamplingParams(**fields)

    def _end_fields(self, request: Request) -> dict[str, Any]:
        """Return which tokens end the answer.

        The C++ runtime does not return its `end_id` in the answer, but stop tokens it does. Only
        the `end_id` counts for `min_tokens`, however, so such a request has one.
        """
        end_id, stop_ids = NO_END_ID, request.end_ids
        if request.end_ids and (self._returns_end_id or request.min_tokens):
            end_id, *stop_ids = request.end_ids
        return {"end_id": end_id, "pad_id": max(end_id, 0), "stop_token_ids": stop_ids or None}

    def _bias(self, bias: dict[int, float]) -> Any:
        tensor = self._torch.zeros(self._vocab_size)
        tensor[list(bias)] = self._torch.tensor(list(bias.values()))
        return tensor

    def _guide(self, guide_type: str, guide: str) -> Any:
        params = self._api.llmapi.GuidedDecodingParams
        if guide_type == "json":
            return params(json_object=True)
        return params(**{GUIDE_FIELDS.get(guide_type, guide_type): guide})
