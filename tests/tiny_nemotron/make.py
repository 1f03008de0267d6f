"""Creates `tiny_nemotron.nemo` and `answers.jsonl`: `python -m tests.tiny_nemotron.make`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from nemotron_core.text import Tokenizer
from tests.tiny_nemotron.answers import save_answers
from tests.tiny_nemotron.dialogues import load_dialogues, questions, row
from tests.tiny_nemotron.nemo_file import NEMO
from tests.tiny_nemotron.pack import pack
from tests.tiny_nemotron.reference import exact_answers, load_hf_model
from tests.tiny_nemotron.tokenizer import train_tokenizer
from tests.tiny_nemotron.train import tiny_config, train

REQUIRED_FRACTION = 0.98
"""Smallest fraction of the questions that the model must answer exactly."""


def main() -> None:
    """Train and pack the model and ask it every question; keep both files if it knows enough."""
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder))


def _make(folder: Path) -> None:
    dialogues = load_dialogues()
    roles = ["System", "User", "Assistant"]  # words of the template, so that they become pieces
    model = folder / "tokenizer.model"
    model.write_bytes(train_tokenizer([m.content for d in dialogues for m in d] + roles))
    tokenizer = Tokenizer(model)
    trained = train([row(tokenizer, d) for d in dialogues], tokenizer.vocab_size, _report)
    nemo = folder / NEMO.name
    pack(trained.state_dict(), tiny_config(tokenizer.vocab_size), model.read_bytes(), nemo)
    all_questions = questions(dialogues)
    exact = exact_answers(load_hf_model(nemo), tokenizer, all_questions)
    _report(f"{len(exact)} of {len(all_questions)} answers are exact")
    if len(exact) < REQUIRED_FRACTION * len(all_questions):
        sys.exit(f"less than {REQUIRED_FRACTION:.0%}, nothing is kept: train longer")
    shutil.copyfile(nemo, NEMO)
    save_answers(exact)


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
