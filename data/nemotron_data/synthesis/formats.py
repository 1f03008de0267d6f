"""The formats of training data, each a function from a row's columns to a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import cast

from nemotron_core.errors import NemotronError
from nemotron_core.files import partial_path, sync, write_atomically
from nemotron_core.text.chat_format import CONTROL_PREFIX
from nemotron_core.text.prompt import Message, render_prompt
from nemotron_data.extra import require
from nemotron_data.rows.row import canonical
from nemotron_data.synthesis.prompts import conversation
from nemotron_data.synthesis.scores import ATTRIBUTES
from nemotron_data.synthesis.tables import Row, Rows, to_line

BATCH_ROWS = 1000
"""Rows of a Parquet file in memory at once."""
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
NEMO = {"user": "User", "assistant": "Assistant"}
TURN_END = f"\n{CONTROL_PREFIX}1>"
"""What follows each turn in a prompt of Nemotron-4."""
FIRST_TURN = f"{CONTROL_PREFIX}1>User\n"
EXTRAS = ("reward", "scores", "turn_rewards", "fulfilled", "model", "verdicts", "provenance")
"""Columns that every format keeps beside its own."""


def _messages(row: Row) -> Row:
    return {"messages": conversation(row, "messages")}


def _sharegpt(row: Row) -> Row:
    turns = conversation(row, "sharegpt")
    return {
        "conversations": [
            {"from": SHAREGPT[turn["role"]], "value": turn["content"]} for turn in turns
        ]
    }


def _nemo(row: Row) -> Row:
    """Return a record of NeMo's chat datasets: the loss is on the turns that are not the user's."""
    messages = conversation(row, "nemo")
    system = "\n".join(turn["content"] for turn in messages if turn["role"] == "system")
    turns = [
        {"from": NEMO[turn["role"]], "value": turn["content"], "label": None}
        for turn in messages
        if turn["role"] in NEMO
    ]
    return {"system": system, "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns}


def _trl(row: Row) -> Row:
    """Return a record of TRL's preference datasets; RPO also reads the rewards."""
    return _some(row, ("prompt", "chosen", "rejected"), ("chosen_reward", "rejected_reward"))


def _nemo_aligner(row: Row) -> Row:
    """Return a record of NeMo-Aligner's DPO and RPO: texts in the prompt format of Nemotron-4."""
    pair = _trl(row)
    record: Row = {"prompt": render_prompt(cast("list[Message]", pair["prompt"]))}
    for side in ("chosen", "rejected"):
        record[f"{side}_response"] = pair[side][0]["content"] + TURN_END
    return record | {key: pair[key] for key in ("chosen_reward", "rejected_reward") if key in pair}


def _helpsteer2(row: Row) -> Row:
    """Return a record of HelpSteer2: prompt and response as texts, and the five attributes.

    HelpSteer2 has no system message: its text stands before the first turn.
    """
    *prompt, answer = conversation(row, "helpsteer2")
    scores = row.get("scores")
    if not isinstance(scores, dict):
        raise NemotronError("the row has no scores of a reward model", where="helpsteer2")
    system = "".join(turn["content"] + "\n\n" for turn in prompt if turn["role"] == "system")
    turns = [turn for turn in prompt if turn["role"] != "system"]
    text = render_prompt(cast("list[Message]", turns)).partition(FIRST_TURN)[2]
    text = system + text.removesuffix(f"{TURN_END}Assistant\n")
    return {"prompt": text, "response": answer["content"]} | {
        name: scores[name] for name in ATTRIBUTES
    }


def _columns(row: Row) -> Row:
    return row


def _some(row: Row, needed: Iterable[str], optional: Iterable[str]) -> Row:
    if missing := [name for name in needed if name not in row]:
        raise NemotronError(
            f"the row has no {' and no '.join(missing)}",
            where="outputs",
            remedy="write the rows of a step with pairs",
        )
    return {name: row[name] for name in (*needed, *optional) if name in row}


FORMATS: dict[str, Callable[[Row], Row]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "nemo": _nemo,
    "trl": _trl,
    "nemo-aligner": _nemo_aligner,
    "helpsteer2": _helpsteer2,
    "columns": _columns,
}
"""Formats by the name that a recipe gives."""


def records(rows: Rows, name: str) -> Iterator[Row]:
    """Yield the record of each row in a format, with an `id` and the columns of `EXTRAS`."""
    record_of = FORMATS[name]
    for row in rows:
        record = record_of(row)
        digest = blake2b(canonical(record), digest_size=8).hexdigest()
        extras = {key: row[key] for key in EXTRAS if row.get(key) is not None and key not in record}
        yield {"id": digest, **record, **extras}


def write(path: Path, rows: Rows, name: str) -> None:
    """Write a file of training data in one step, as JSONL or Parquet by its suffix.

    Raises `NemotronError` if a row lacks something, or if the file cannot be written.
    """
    if path.suffix != ".parquet":
        write_atomically(path, map(to_line, records(rows, name)))
        return
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    partial = partial_path(path)
    try:
        schemas = [pyarrow.Table.from_pylist(batch).schema for batch in _batches(rows, name)]
        schema = pyarrow.schema([("id", pyarrow.string())])
        if schemas:
            schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
        with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            for batch in _batches(rows, name):
                writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except (OSError, OverflowError, UnicodeError, pyarrow.ArrowException) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise NemotronError(f"cannot write: {reason}", where=path) from error


def _batches(rows: Rows, name: str) -> Iterator[list[Row]]:
    following = records(rows, name)
    while batch := list(islice(following, BATCH_ROWS)):
        yield batch
