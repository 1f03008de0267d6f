"""What one server computes for a comparison, in a folder that another one is compared with later.

The folder holds a batch: `rows.jsonl` are the requests and `answers.jsonl.gz` the answers in the
same order, with the batch's manifest beside them. So it is resumable, and belongs to one engine.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_core.errors import NemotronError
from nemotron_core.files import write_atomically
from nemotron_data.batch.accept import ANY
from nemotron_data.batch.job import Job
from nemotron_data.batch.manifest import Manifest, read_manifest
from nemotron_data.batch.target import Target
from nemotron_data.options import BatchOptions
from nemotron_evaluate.comparison.texts import TokenText
from nemotron_evaluate.options import CompareOptions

ROWS, ANSWERS = "rows.jsonl", "answers.jsonl.gz"
TEXT, ANSWER = "text-", "answer-"
"""Prefixes of the ids of the rows that score a text, and of those that continue one."""

BYTE = "bytes:\\x"
BYTE_TOKEN = re.compile(re.escape(BYTE) + "[0-9a-f]{2}")


@dataclass(frozen=True)
class Token:
    """One token of a text: its log-probability and those of the most probable tokens, by id."""

    id_: int
    text: str
    log_prob: float
    log_probs: dict[int, float]
    """Log-probabilities in nats of the alternatives and of the token itself."""

    @property
    def top(self) -> int:
        """The most probable token; of equal ones that with the smallest id."""
        return min(self.log_probs, key=lambda id_: (-self.log_probs[id_], id_))


@dataclass(frozen=True)
class Scored:
    """A text with its first token left out, which has no probability."""

    tokens: list[Token]


@dataclass(frozen=True)
class Continued:
    """A greedy answer, as the texts of its tokens."""

    tokens: list[str]


def joined_text(texts: Iterable[str]) -> str:
    r"""Return the text of some tokens. Single bytes may be in OpenAI's form `bytes:\xNN`.

    >>> joined_text(["na", r"bytes:\xc3", r"bytes:\xaf", "ve"])
    'naïve'
    """
    parts = (
        bytes.fromhex(text.removeprefix(BYTE))
        if BYTE_TOKEN.fullmatch(text)
        else text.encode(errors="replace")
        for text in texts
    )
    return b"".join(parts).decode(errors="replace")


def request_rows(texts: list[TokenText], options: CompareOptions) -> str:
    """Return the lines of the batch that every server of a comparison gets."""
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        # The one token is not read: several servers do not take 0.
        body = {"prompt": text.ids, "max_tokens": 1, "prompt_logprobs": options.alternatives}
        rows.append(_row(f"{TEXT}{number}", body))
    for number, text in enumerate(texts if options.answer_tokens else ()):
        body = {"prompt": text.prompt, "max_tokens": options.answer_tokens, "logprobs": 0}
        rows.append(_row(f"{ANSWER}{number}", body))
    return "".join(json.dumps(row) + "\n" for row in rows)


def _row(custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
    body |= {"temperature": 0}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
"""What reading an answer raises if it has another form."""


def no_log_probs(name: str, where: object) -> NemotronError:
    """Return the error of an answer without the log-probabilities that were asked for."""
    return NemotronError(
        f"{name} came without log-probabilities",
        where=where,
        remedy="use a server that answers prompt_logprobs of POST /v1/completions, such as vLLM's",
    )


class Side:
    """The folder of one server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._target = Target(folder / ANSWERS)

    @property
    def rows(self) -> str:
        """Lines of the requests. Raises `NemotronError` if the folder has none."""
        try:
            return (self.folder / ROWS).read_text(encoding="utf-8")
        except OSError as error:
            raise NemotronError(
                "no saved run of a comparison",
                where=self.folder,
                remedy="make one: nemotron compare URL --texts FILE --save FOLDER",
            ) from error

    @property
    def manifest(self) -> Manifest:
        """The batch's manifest. Raises `NemotronError` unless the batch came to its end."""
        manifest = read_manifest(self._target.manifest)
        if manifest is None or manifest.finished != manifest.rows:
            raise NemotronError(
                "the saved run is not complete",
                where=self.folder,
                remedy="repeat the command that made it",
            )
        return manifest

    def run(self, url: str, model: str, rows: str, options: CompareOptions, title: str) -> None:
        """Send the rows that have no answer yet.

        Raises `NemotronError` if the folder belongs to other rows or another engine, or if rows
        fail. The same call continues a run that was stopped.
        """
        path = self.folder / ROWS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
        except OSError as error:
            raise NemotronError(f"cannot write: {error.strerror}", where=self.folder) from error
        if is_new:
            write_atomically(path, rows)
        elif path.read_text(encoding="utf-8") != rows:
            raise NemotronError(
                "the folder was begun with other texts or options",
                where=path,
                remedy="restore those, or name another folder",
            )
        batch = BatchOptions(
            source=str(path),
            output=str(self.folder / ANSWERS),
            url=[url],
            no_seed=True,
            accept=[ANY],  # an empty or cut answer is one, too
            ordered=True,
            concurrency=options.concurrency,
            patience=options.patience,
        )
        counts = Job(batch, {"model": model}, title=title).run()
        if counts.failed:
            raise NemotronError(
                f"{counts.failed} of {counts.failed + counts.finished} requests failed",
                where=self._target.errors,
                remedy="each is there with its reason; the same command tries them again",
            )

    def results(self) -> Iterator[Scored | Continued]:
        """Yield the scored texts, then the greedy answers, in the order of the texts.

        Raises `NemotronError` if the server did not return what was asked for.
        """
        requests = (json.loads(line) for line in self.rows.splitlines())
        with gzip.open(self.folder / ANSWERS, "rt", encoding="utf-8") as file:
            for request, line in zip(requests, file, strict=True):
                answer = json.loads(line)
                name = answer["custom_id"]
                if name != request["custom_id"]:
                    raise NemotronError(f"{name} is out of order", where=self.folder / ANSWERS)
                try:
                    choice = answer["response"]["body"]["choices"][0]
                    if name.startswith(TEXT):
                        yield read_scores(request["body"]["prompt"], choice["prompt_logprobs"])
                    else:
                        yield Continued([str(text) for text in choice["logprobs"]["tokens"]])
                except UNREADABLE as error:
                    raise no_log_probs(name, self.folder / ANSWERS) from error


def read_scores(ids: list[int], rows: list[dict[str, dict[str, Any]] | None]) -> Scored:
    """Return the tokens of a choice's `prompt_logprobs`. Raises one of `UNREADABLE`."""
    if len(rows) != len(ids):
        raise ValueError(f"{len(rows)} of {len(ids)} tokens")
    tokens = []
    for id_, row in zip(ids[1:], rows[1:], strict=True):
        if row is None:
            raise ValueError("a token without a log-probability")
        log_probs = {int(key): float(entry["logprob"]) for key, entry in row.items()}
        text = str(row[str(id_)].get("decoded_token") or "")
        tokens.append(Token(id_, text, log_probs[id_], log_probs))
    return Scored(tokens)
