"""Questions of a recipe's steps, each asked once, as batches that are keyed by what is asked.

A stage is one batch: its questions are ``asked/STAGE.requests.jsonl``, and its answers
``asked/STAGE.jsonl``. A question's name is made of its model, messages and sampling. So a stage
that is run again asks exactly what it has not asked yet, whatever has changed in the recipe or in
its files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.accept import Acceptance
from nemotron_data.batch.host import Host
from nemotron_data.batch.job import Job
from nemotron_data.batch.manifest import read_manifest
from nemotron_data.batch.request import row_seed
from nemotron_data.batch.target import Target
from nemotron_data.options import MODEL, BatchOptions, SynthesisOptions
from nemotron_data.rows.row import CHAT, canonical
from nemotron_data.synthesis.prompts import Messages
from nemotron_data.synthesis.recipe import Recipe
from nemotron_data.synthesis.tables import to_line
from nemotron_data.transport.protocol import API_KEYS

ASKED = "asked"
"""Folder of questions and answers, in the run's."""
NAME_BYTES = 12
"""Length of the hash in a question's name."""


@dataclass(frozen=True)
class Reply:
    """An answer of a model to one question."""

    text: str
    finish_reason: str | None
    model: str
    request: str
    """Its `id` in the file of the answers."""


@dataclass(frozen=True)
class Stage:
    """A batch of questions: its name, the name of the model, and how it is asked."""

    name: str
    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a request's body."""
    acceptance: Acceptance = field(default_factory=Acceptance)
    attempts: int = 5


class Asker:
    """Asks the models of a recipe, and keeps questions and answers in the folder `asked`."""

    def __init__(self, recipe: Recipe, folder: Path, options: SynthesisOptions) -> None:
        self._recipe, self._options = recipe, options
        self.folder = folder / ASKED
        self.servers: dict[str, dict[str, Any]] = {}
        """What the servers of each model say about themselves."""

    def ask(self, stage: Stage, conversations: Iterable[Messages]) -> Iterator[Reply | None]:
        """Ask what is not answered yet.

        Then yield the reply to each conversation, in order; with `skip_failed`, `None` for one that
        failed. Raises `NemotronError` or `Interrupted` if the batch cannot be completed.
        """
        self.folder.mkdir(exist_ok=True)
        questions = self.folder / f"{stage.name}.requests.jsonl"
        answers = self.folder / f"{stage.name}.jsonl"
        write_atomically(questions, map(to_line, self._questions(stage, conversations)))
        settings = self._recipe.models[stage.model]
        batch = BatchOptions(
            source=str(questions),
            output=str(answers),
            url=settings.urls,
            allow_different_engines=self._options.allow_different_engines,
            no_seed=True,  # each question has its own
            attempts=stage.attempts,
            ordered=True,
            concurrency=self._options.concurrency,
            patience=self._options.patience,
        )
        keys = (settings.key_variable,) if settings.key_variable else API_KEYS
        counts = Job(
            batch,
            {"model": None} if settings.model is None else {},
            host=Host(key_variables=keys),
            title=stage.name,
            acceptance=stage.acceptance,
            may_replace_all=True,
        ).run()
        target = Target(answers)
        if counts.failed and not self._options.skip_failed:
            raise NemotronError(
                f"{counts.failed} of {counts.failed + counts.finished} questions failed",
                where=target.errors,
                remedy="each is there with its reason; the same command asks them again, "
                "and with --skip-failed it goes on without them",
            )
        if (manifest := read_manifest(target.manifest)) is not None:
            self.servers[stage.model] = manifest.server
        model = settings.model or self.servers.get(stage.model, {}).get("model") or MODEL
        return self._replies(questions, answers, model, counts.failed)

    def _questions(
        self, stage: Stage, conversations: Iterable[Messages]
    ) -> Iterator[dict[str, Any]]:
        """Yield the request of each conversation. Equal ones differ in their names and seeds."""
        settings = self._recipe.models[stage.model]
        counts: Counter[bytes] = Counter()
        for messages in conversations:
            body = {"messages": messages, **stage.sampling}
            named = {"model": settings.model or MODEL, **body}  # so that names stay what they were
            digest = blake2b(canonical(named), digest_size=NAME_BYTES).digest()
            counts[digest] += 1
            name = f"{digest.hex()}-{counts[digest]}"
            if settings.model is not None:
                body["model"] = settings.model
            if settings.seed:
                body["seed"] = row_seed(self._recipe.seed, name)
            yield {"custom_id": name, "method": "POST", "url": CHAT, "body": body}

    @staticmethod
    def _replies(questions: Path, answers: Path, model: str, failed: int) -> Iterator[Reply | None]:
        """Yield the reply to each question; both files are in the same order."""
        missing = 0
        with questions.open(encoding="utf-8") as asked, answers.open(encoding="utf-8") as results:
            following = next(results, None)
            for line in asked:
                result = None if following is None else json.loads(following)
                if result is None or result["custom_id"] != json.loads(line)["custom_id"]:
                    missing += 1
                    yield None
                    continue
                choice = result["response"]["body"]["choices"][0]
                yield Reply(
                    _text(choice["message"]["content"]),
                    choice.get("finish_reason"),
                    model,
                    result["id"],
                )
                following = next(results, None)
        if following is not None or missing != failed:
            raise NemotronError(
                "the answers do not belong to the questions",
                where=answers,
                remedy="run the command again, and let no other one write there",
            )


def finish(replies: Iterator[Reply | None]) -> None:
    """Raise `NemotronError` if replies are left, or if some were missing."""
    if any(True for _reply in replies):
        raise NemotronError("there are more answers than questions", where="asked")


def _text(content: Any) -> str:
    if isinstance(content, list):  # the parts of a message
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""
