"""What a verification has found, in itself, for a person and for a program."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Fault:
    """An operation that does not compute what the source computes."""

    where: str
    error: float
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: relative error {self.error:.3g}"
        return f"{text} ({self.hint})" if self.hint else text


@dataclass(frozen=True)
class LayerReport:
    """Relative errors, Frobenius norm of the difference over that of the reference."""

    layer: int
    hidden: float
    """Of the hidden state behind the layer, all layers before it computed by the ranks."""
    worst: float
    """Of one operation on the reference's input."""
    worst_tensor: str


@dataclass(frozen=True)
class Verification:
    """What a run of the checkpoint beside its source has shown."""

    dtype: str
    tp: int
    pp: int
    tokens: int
    layers: list[LayerReport]
    logits: float
    """Relative error."""
    top1: float
    """Share of the tokens after which both would go on alike."""
    faults: list[Fault] = field(default_factory=list)
    """In the order in which data flows."""

    @property
    def is_safe(self) -> bool:
        return not self.faults

    @property
    def verdict(self) -> str:
        """One line."""
        if self.is_safe:
            return (
                f"safe to build: {len(self.layers)} layers at TP={self.tp} PP={self.pp} in "
                f"{self.dtype} compute what the source computes"
            )
        return f"NOT safe to build: first at {self.faults[0]}; {len(self.faults)} faults in all"


def to_json(found: Verification) -> str:
    """One object; errors are relative."""
    content = asdict(found) | {"safe": found.is_safe, "verdict": found.verdict}
    return json.dumps(content, indent=2)


def print_report(found: Verification, console: Console) -> None:
    """A row for each layer, the faults in the order of the data, and the verdict in one line."""
    table = Table(box=None)
    for title in ("layer", "hidden state", "worst operation", "of"):
        table.add_column(title, justify="left" if title == "of" else "right", overflow="fold")
    for row in found.layers:
        tensor = row.worst_tensor.partition(", ")[2]
        table.add_row(str(row.layer), f"{row.hidden:.2e}", f"{row.worst:.2e}", tensor)
    console.print(table)
    console.print(
        f"\nlogits: relative error {found.logits:.2e}, top-1 agreement {found.top1:.1%} "
        f"of {found.tokens} tokens"
    )
    for fault in found.faults[:SHOWN_FAULTS]:
        console.print(f"wrong: {fault}", highlight=False, markup=False, soft_wrap=True)
    if len(found.faults) > SHOWN_FAULTS:
        console.print(f"… and {len(found.faults) - SHOWN_FAULTS} more")
    console.print(found.verdict, highlight=False, markup=False, soft_wrap=True)
