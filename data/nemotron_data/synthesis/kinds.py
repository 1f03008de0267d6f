"""The kinds of steps in a recipe, with their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from nemotron_data.synthesis.fields import (
    Column,
    ExpressionText,
    RowsOf,
    Sampling,
    Strict,
    TemplateText,
)
from nemotron_data.synthesis.scores import WEIGHTS, Attribute

GENERATOR = "generator"
"""Name of the model that a step asks if it names none."""


class Step(Strict):
    """A step that passes its rows on."""

    rows: RowsOf
    limit: int | None = Field(None, ge=1)
    """Number of rows to take, from the first on."""

    @property
    def asked_models(self) -> list[str]:
        """Names of the models that the step asks."""
        return []


class Asking(Step):
    """What all steps have in common that ask a model for texts."""

    model: str | list[str] = GENERATOR
    """Name of a model, or of several that are all asked."""
    sampling: Sampling = Field(default_factory=Sampling)
    accept: list[str] = Field(default_factory=list)
    """Rules for answers, as `nemotron batch --accept` takes them."""
    attempts: int = Field(5, ge=1)

    @property
    def asked_models(self) -> list[str]:
        return [self.model] if isinstance(self.model, str) else self.model


class MessageTemplate(Strict):
    role: Literal["system", "user", "assistant"]
    content: TemplateText


class Items(Strict):
    """A list in an answer, of which each item becomes a row."""

    column: Column = Field(alias="as")
    count: int = Field(ge=1)
    """Number of items that are asked for; further ones are left out."""
    least: int | None = Field(None, ge=1)
    """Fewest items of an answer that is accepted; `count` if it is not given."""


class Prompting(Asking):
    """The prompt of a step: a user's message and a system's, or all messages."""

    prompt: TemplateText | None = None
    system: TemplateText | None = None
    messages: Literal["row"] | list[MessageTemplate] | None = None
    """All messages, or `row`: the row's conversation up to the user's last message."""

    @property
    def templates(self) -> list[tuple[str, str]] | None:
        """Role and template of each message; `None` for the row's conversation."""
        if self.messages == "row":
            return None
        if self.messages is not None:
            return [(message.role, message.content) for message in self.messages]
        texts = {"system": self.system, "user": self.prompt}
        return [(role, text) for role, text in texts.items() if text is not None]

    @model_validator(mode="after")
    def _one_prompt(self) -> Prompting:
        if (self.prompt is None) is (self.messages is None):
            raise ValueError("give one of prompt and messages")
        if self.messages == []:
            raise ValueError("messages is empty")
        if self.messages is not None and self.system is not None:
            raise ValueError("system belongs to prompt: with messages, write it among them")
        return self


class Ask(Prompting):
    """A step that asks a model once for each row, or several times."""

    samples: int = Field(1, ge=1, le=1000)
    """Number of answers to each prompt, each with a seed of its own."""
    column: Column | None = Field(None, alias="as")
    """Column of the answer. Without it the answer is a turn of the row's conversation."""
    items: Items | None = Field(None, alias="list")

    @model_validator(mode="after")
    def _differing_samples(self) -> Ask:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError("several samples at temperature 0 are all the same")
        if self.items is not None and self.column is not None:
            raise ValueError("list names the column by itself")
        return self


class Turns(Strict):
    """A conversation in which a model also writes the user's messages."""

    count: int = Field(ge=2, le=20)
    """Number of the user's messages, with the first one."""
    user: TemplateText
    """Instructions for the model that writes the user's further messages."""
    model: str = GENERATOR


class Dialogue(Prompting):
    """A step that makes conversations of several turns."""

    turns: Turns

    @property
    def asked_models(self) -> list[str]:
        return [*super().asked_models, self.turns.model]

    @model_validator(mode="after")
    def _one_model(self) -> Dialogue:
        if not isinstance(self.model, str):
            raise ValueError("a dialogue asks one model")
        return self


class Revision(Strict):
    critique: TemplateText
    """What is asked first; the columns of the row are there, and its conversation."""
    prompt: TemplateText
    """What is asked then; the column `critique` is there, too."""
    rounds: int = Field(1, ge=1, le=10)


class Revise(Asking):
    """A step that lets a model criticise the last answer of a conversation and write it anew."""

    revise: Revision

    @model_validator(mode="after")
    def _one_model(self) -> Revise:
        if not isinstance(self.model, str):
            raise ValueError("a revision asks one model")
        return self


class Reward(Strict):
    """Scores of a reward model: a chat endpoint that answers with `attribute:score,…`."""

    reward: str
    """Name of the model."""
    weights: dict[Attribute, float] = Field(default_factory=lambda: dict(WEIGHTS), min_length=1)
    every_turn: bool = False
    """Whether each answer of a conversation is scored, and not only the last one."""


class Truth(Strict):
    """Comparison with a known answer."""

    truth: Literal["exact", "number", "regex"]
    reference: TemplateText


class Constraints(Strict):
    """Constraints that a program checks."""

    constraints: Column
    """Column with a constraint, or with a list of them."""


class Program(Strict):
    """A program with tests, run in a sandbox."""

    program: TemplateText
    """Text of the program, to which the sandbox's standard input is set."""
    sandbox: list[str] = Field(min_length=1)
    """Command that runs it safely; exit status 0 means that it passed."""
    seconds: float = Field(30.0, gt=0)


SCORES = ("reward", "truth", "constraints", "program")
"""Keys that decide the kind of a score."""


def _score_kind(value: Any) -> str | None:
    return next((kind for kind in SCORES if isinstance(value, Mapping) and kind in value), None)


class Score(Step):
    """A step that adds the column `reward`."""

    score: Annotated[
        Annotated[Reward, Tag("reward")]
        | Annotated[Truth, Tag("truth")]
        | Annotated[Constraints, Tag("constraints")]
        | Annotated[Program, Tag("program")],
        Discriminator(
            _score_kind,
            custom_error_type="score",
            custom_error_message=f"give one of {', '.join(SCORES)}",
        ),
    ]
    attempts: int = Field(5, ge=1)

    @property
    def asked_models(self) -> list[str]:
        return [self.score.reward] if isinstance(self.score, Reward) else []


class Conditions(Strict):
    where: ExpressionText | None = None
    """Expression that is true for the rows that are kept."""
    best: int | None = Field(None, ge=1)
    """Number of rows to keep of each prompt."""
    by: ExpressionText = "reward"
    """What decides which rows are the best."""
    per: TemplateText | None = None
    """What the rows of one prompt have in common; the conversation without its last answer."""

    @model_validator(mode="after")
    def _has_an_effect(self) -> Conditions:
        if self.where is None and self.best is None:
            raise ValueError("give where or best")
        return self


class Filter(Step):
    """A step that keeps some rows."""

    filter: Conditions


class Likeness(Strict):
    text: TemplateText
    """The text that is compared."""
    similarity: float = Field(1.0, gt=0, le=1)
    """Jaccard similarity of the texts' words from which one is left out; 1 means equal texts."""


class Dedup(Step):
    """A step that leaves out rows whose text is there already."""

    dedup: Likeness


class Contamination(Strict):
    text: TemplateText
    against: list[str] = Field(min_length=1)
    """Files with the texts of benchmarks."""
    words: int = Field(13, ge=2)
    """Number of consecutive words that are in a benchmark, too."""


class Decontaminate(Step):
    """A step that leaves out rows which share text with a benchmark."""

    decontaminate: Contamination


class Judge(Strict):
    """A model that says which of two answers is better, asked in both orders."""

    model: str
    prompt: TemplateText | None = None
    """Question to the judge over `prompt`, `a` and `b`; ours if it is not given."""
    sampling: Sampling = Field(default_factory=lambda: Sampling(temperature=0.0, max_tokens=512))
    attempts: int = Field(5, ge=1)


class Pairing(Strict):
    by: ExpressionText = "reward"
    margin: float = Field(0.0, ge=0)
    """The values of a pair differ by more than this."""
    least: float | None = None
    """Smallest value of a chosen answer."""
    per: TemplateText | None = None
    judge: Judge | None = None
    """Who decides, in place of `by`."""


class Pairs(Step):
    """A step that makes preference pairs of the answers to one prompt."""

    pairs: Pairing

    @property
    def asked_models(self) -> list[str]:
        return [] if self.pairs.judge is None else [self.pairs.judge.model]
