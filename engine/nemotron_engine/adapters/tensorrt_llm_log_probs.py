"""How TensorRT-LLM is asked for log-probabilities, and where they are in its results.

For the tokens of an answer it returns numbers or tables, and for those of a prompt tables or whole
logits: which of them depends on the class and on the version.
"""

from __future__ import annotations

from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_engine.protocol import Request

MAX_LOG_PROBS = 20
"""Number of alternatives at a token that a request may ask for."""
ROWS = 64
"""Number of a prompt's positions whose log-probabilities are computed at once."""
LOGITS_FEATURES: dict[str, list[str]] = {
    "none": [],
    "generation": ["top_log_probs"],
    "context": ["top_log_probs", "prompt_log_probs"],
}
"""What an engine can do by the logits that it was built with."""

Entries = list[list[tuple[int, float]]]


class LogProbs:
    """Log-probabilities of one lane.

    `has_numbers` says that the library can return the token's own alone (the C++ runtime: tables
    would send all logits to Python). `has_prompt_tables` says that its tables of a prompt have the
    prompt's own tokens; otherwise all logits of a prompt are asked for.
    """

    def __init__(
        self, torch: Any, vocab_size: int, *, has_numbers: bool, has_prompt_tables: bool
    ) -> None:
        self._torch, self._vocab_size = torch, vocab_size
        self._has_numbers, self._has_prompt_tables = has_numbers, has_prompt_tables

    def fields(self, request: Request) -> dict[str, Any]:
        """Return the sampling parameters that ask for what the request wants to know.

        To ask for 0 alternatives is to the library to ask for nothing.
        """
        fields: dict[str, Any] = {}
        if request.top_log_probs or (request.log_probs and not self._has_numbers):
            fields["logprobs"] = max(1, request.top_log_probs)
        elif request.log_probs:
            fields["_return_log_probs"] = True
        if request.prompt_log_probs is not None:
            if self._has_prompt_tables:
                fields["prompt_logprobs"] = max(1, request.prompt_log_probs)
            else:
                fields["return_context_logits"] = True
        return fields

    def of_tokens(
        self, request: Request, output: Any, ids: list[int]
    ) -> tuple[list[float], Entries]:
        """Return the log-probabilities of the new tokens `ids`, and their alternatives.

        Raises `NemotronError` if the library has left some out.
        """
        if not (request.log_probs or request.top_log_probs):
            return [], []
        new = output.logprobs_diff
        if len(new) != len(ids):
            raise NemotronError(f"{len(ids)} tokens have {len(new)} log-probabilities")
        own, top = [], []
        if request.log_probs:
            own = [_own(entry, id_) for entry, id_ in zip(new, ids, strict=True)]
        if request.top_log_probs:
            top = [_best(table, request.top_log_probs) for table in new]
        return own, top

    def of_prompt(self, request: Request, result: Any) -> Entries:
        """Return `Chunk.prompt_log_probs`. Raises `NemotronError` if positions are missing.

        Whole logits take seconds, so this runs beside the event loop.
        """
        count = request.prompt_log_probs
        assert count is not None
        ids = request.input_ids
        rows = result.outputs[0].prompt_logprobs
        if not self._has_prompt_tables:
            logits = result.context_logits
            rows = [] if logits is None else logits.reshape(-1, logits.shape[-1])
        if len(rows) != len(ids):
            raise NemotronError(f"{len(ids)} tokens of the prompt have {len(rows)} logits")
        if not self._has_prompt_tables:
            return [[], *self._from_logits(rows, ids[1:], count)]
        following = zip(rows, ids[1:], strict=False)  # the last row is that of the answer's first
        return [[], *([(id_, _own(table, id_)), *_best(table, count)] for table, id_ in following)]

    def _from_logits(self, logits: Any, targets: list[int], count: int) -> Entries:
        """Return the log-probability of each target at its position, and the best tokens there."""
        entries: Entries = []
        for start in range(0, len(targets), ROWS):
            ids = targets[start : start + ROWS]
            rows = logits[start : start + len(ids), : self._vocab_size].float()
            log_probs = self._torch.log_softmax(rows, -1)
            best = self._torch.topk(log_probs, count)
            own = log_probs.gather(1, self._torch.tensor(ids)[:, None])[:, 0]
            for id_, log_prob, tokens, values in zip(
                ids, own.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
            ):
                entries.append([(id_, log_prob), *zip(tokens, values, strict=True)])
        return entries


def _own(entry: Any, id_: int) -> float:
    """Return a token's log-probability from a number or a table. Raises `NemotronError`."""
    if not isinstance(entry, dict):
        return float(entry)
    if (own := entry.get(id_)) is None:
        raise NemotronError(f"token {id_} has no log-probability of its own")
    return float(own.logprob)


def _best(table: dict[int, Any], count: int) -> list[tuple[int, float]]:
    """Return the `count` most probable tokens of a table, the best first.

    The table has the token that was taken too, whatever its rank.
    """
    ranked = sorted(table.items(), key=lambda entry: entry[1].rank)
    return [(id_, float(entry.logprob)) for id_, entry in ranked[:count]]
