"""Makes `tiny_nemotron.nemo` and `answers.jsonl` anew: `python -m tests.tiny_nemotron.make`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from nemotron_text import Tokenizer
from tests.tiny_nemotron.answers import ANSWERS, exact_answers
from tests.tiny_nemotron.dialogues import load_dialogues, questions, row
from tests.tiny_nemotron.pack import pack
from tests.tiny_nemotron.reference import NEMO, load_hf_model
from tests.tiny_nemotron.tokenizer import train_tokenizer
from tests.tiny_nemotron.train import tiny_config, train

REQUIRED_SHARE = 0.98


def main() -> None:
    """Train, pack, ask the packed model every question, and keep the answers."""
    dialogues = load_dialogues()
    roles = ["System", "User", "Assistant"]  # the template's own words, so that they are pieces
    model = train_tokenizer([m.content for d in dialogues for m in d] + roles)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.model")
        path.write_bytes(model)
        tokenizer = Tokenizer(path)
    trained = train([row(tokenizer, d) for d in dialogues], tokenizer.vocab_size, _report)
    pack(trained.state_dict(), tiny_config(tokenizer.vocab_size), model, NEMO)
    asked = questions(dialogues)
    exact = exact_answers(load_hf_model(), tokenizer, asked)
    _report(f"{len(exact)} of {len(asked)} answers are exact")
    if len(exact) < REQUIRED_SHARE * len(asked):
        sys.exit(f"less than {REQUIRED_SHARE:.0%}: train longer")
    lines = [
        json.dumps(
            {
                "messages": [m.as_dict() for m in one.question.messages],
                "answer": one.question.answer,
                "token_ids": one.token_ids,
            },
            ensure_ascii=False,
        )
        for one in exact
    ]
    ANSWERS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
