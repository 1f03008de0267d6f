"""A page about a run: the counts of each step, lengths and rewards as plots, and samples."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2

from nemotron_core.files import write_atomically
from nemotron_data.extra import require
from nemotron_data.synthesis.manifest import Manifest, StepCounts
from nemotron_data.synthesis.prompts import transcript
from nemotron_data.synthesis.tables import Row, Table

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.j2")
SAMPLES = 3
"""Rows of a step that are shown."""
BINS = 30
HIDDEN = ("messages", "provenance", "answer", "prompt", "chosen", "rejected")
"""Columns that a sample does not repeat or shows in another way."""


@dataclass
class StepPage:
    """What the page shows of a step."""

    counts: StepCounts
    figures: dict[str, str] = field(default_factory=dict)
    """SVG by title."""
    samples: list[str] = field(default_factory=list)


def write_report(folder: Path, manifest: Manifest) -> Path:
    """Write the page, made of the files of a run, and return its path.

    Raises `NemotronError` if Matplotlib is not installed, or if the page cannot be written.
    """
    pages = {
        name: _page(Table(folder / "steps" / f"{name}.jsonl"), counts)
        for name, counts in manifest.steps.items()
    }
    environment = jinja2.Environment(autoescape=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(recipe=manifest.recipe, steps=pages, outputs=manifest.outputs)
    write_atomically(folder / REPORT, text)
    return folder / REPORT


def _page(rows: Table, counts: StepCounts) -> StepPage:
    page = StepPage(counts)
    lengths: list[int] = []
    rewards: list[float] = []
    for row in rows:
        if isinstance(row.get("answer"), str):
            lengths.append(len(row["answer"]))
        if isinstance(row.get("reward"), int | float):
            rewards.append(row["reward"])
    if lengths:
        page.figures["characters of the answers"] = _histogram(lengths, "characters")
    if rewards:
        page.figures["rewards"] = _histogram(rewards, "reward")
    page.samples = [_sample(row) for row in islice(rows, SAMPLES)]
    return page


def _histogram(values: list[Any], label: str) -> str:
    """Return a histogram as SVG."""
    figures = require("matplotlib.figure")
    figure = figures.Figure(figsize=(4.5, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=BINS)
    axes.set_xlabel(label)
    axes.set_ylabel("rows")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # without the declarations of a file of its own


def _sample(row: Row) -> str:
    parts = []
    if "chosen" in row and "prompt" in row:
        for side in ("chosen", "rejected"):
            parts.append(f"[{side}]\n{transcript([*row['prompt'], *row[side]])}")
    elif isinstance(row.get("messages"), list):
        parts.append(transcript(row["messages"]))
    parts += [f"{name}: {value}" for name, value in row.items() if name not in HIDDEN]
    return "\n\n".join(parts)
