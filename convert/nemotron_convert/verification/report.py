"""The result of a verification, and its output as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

SHOWN_FAULTS = 20
"""Largest number of faults that are printed."""


@dataclass(frozen=True)
class Fault:
    """An operation or a setting that differs from the source's."""

    where: str
    error: float
    """Relative error."""
    hint: str = ""
    """Probable mistake, or the wrong and the right value."""

    def __str__(self) -> str:
        text = f"{self.where}: relative error {self.error:.3g}"
        return f"{text} ({self.hint})" if self.hint else text


@dataclass(frozen=True)
class LayerReport:
    """Relative errors of one layer: ‖actual − expected‖ / ‖expected‖ in the Frobenius norm."""

    layer: int
    hidden: float
    """Error of the hidden states after the layer, with all layers so far computed by the ranks."""
    worst: float
    """Largest error of one operation on the reference's input."""
    worst_tensor: str
    """Place and name of that operation's tensor."""


@dataclass(frozen=True)
class Verification:
    """Result of running a checkpoint beside its source."""

    dtype: str
    tp: int
    pp: int
    tokens: int
    """Number of tokens that were run."""
    layers: list[LayerReport]
    logits: float
    """Relative error of the logits."""
    top1: float
    """Fraction of the tokens whose most probable next token is the same in both models."""
    mean_kl: float
    """Mean divergence in nats of the checkpoint's next token from the source's, over all tokens of
    the vocabulary."""
    scores: float | None = None
    """Relative error of a reward model's scores; `None` for other models."""
    faults: list[Fault] = field(default_factory=list)
    """Faults in the order in which data flows through the model."""

    @property
    def is_safe(self) -> bool:
        """Whether the checkpoint is safe to build an engine from."""
        return not self.faults

    @property
    def verdict(self) -> str:
        """One line that states whether the checkpoint is safe, and the first fault if not."""
        if self.is_safe:
            return (
                f"safe to build: {len(self.layers)} layers at TP={self.tp} PP={self.pp} in "
                f"{self.dtype} compute what the source computes"
            )
        return f"NOT safe to build: first at {self.faults[0]}; {len(self.faults)} faults in all"

    def to_json(self) -> str:
        """Return all fields, `safe` and `verdict` as one JSON object."""
        return json.dumps(asdict(self) | {"safe": self.is_safe, "verdict": self.verdict}, indent=2)

    def print(self, console: Console) -> None:
        """Print a row per layer, the errors of the logits, the first faults and the verdict."""
        table = Table(box=None)
        for title in ("layer", "hidden state", "worst operation", "of"):
            table.add_column(title, justify="left" if title == "of" else "right", overflow="fold")
        for row in self.layers:
            tensor = row.worst_tensor.partition(", ")[2]
            table.add_row(str(row.layer), f"{row.hidden:.2e}", f"{row.worst:.2e}", tensor)
        console.print(table)
        console.print(
            f"\nlogits: relative error {self.logits:.2e}, mean KL {self.mean_kl:.2e} nats, "
            f"top-1 agreement {self.top1:.1%} of {self.tokens} tokens"
        )
        if self.scores is not None:
            console.print(f"scores: relative error {self.scores:.2e}")
        for fault in self.faults[:SHOWN_FAULTS]:
            console.print(f"wrong: {fault}", highlight=False, markup=False, soft_wrap=True)
        if len(self.faults) > SHOWN_FAULTS:
            console.print(f"… and {len(self.faults) - SHOWN_FAULTS} more")
        console.print(self.verdict, highlight=False, markup=False, soft_wrap=True)
