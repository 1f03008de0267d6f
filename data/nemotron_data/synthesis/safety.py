"""A safety model's judgement in the form of Llama Guard: `safe`, or `unsafe` and categories."""

from __future__ import annotations

import re

from nemotron_data.synthesis.fields import Strict
from nemotron_data.synthesis.kinds import Step

UNSAFE = "unsafe"
"""In the place of a category, if a model names none."""
CODE = re.compile(r"[A-Z]\d{1,2}")
"""Form of a category, such as O3 of AEGIS or S1 of Llama Guard."""


class Safety(Strict):
    """Which model judges, and what is left out."""

    model: str
    drop: list[str] | None = None
    """Categories whose rows are left out; all of them if it is not given."""
    prompt: bool = True
    """Whether the conversation before the answer is judged by itself, too."""


class Guard(Step):
    """A step that leaves out what a safety model finds unsafe."""

    safety: Safety

    @property
    def asked_models(self) -> list[str]:
        return [self.safety.model]


def read_judgement(text: str) -> list[str] | None:
    r"""Return the categories of a judgement, none for `safe`, or `None` if it is unreadable.

    >>> read_judgement("safe"), read_judgement("unsafe\nO3,O5"), read_judgement("I think so.")
    ([], ['O3', 'O5'], None)
    """
    verdict, _line, categories = text.strip().partition("\n")
    codes = [code.strip() for code in categories.split(",") if code.strip()]
    if verdict.strip().lower() == "safe" and not codes:
        return []
    if verdict.strip().lower() != UNSAFE or not all(map(CODE.fullmatch, codes)):
        return None
    return codes or [UNSAFE]
