"""The chat template of a Hugging Face folder, compared with the prompt format of this project.

A template is a program in Jinja that comes with the weights. It runs in a process of its own, in
Jinja's sandbox and with limits of time and memory; only its texts come back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron_convert.source.archive import Archive, read_bytes
from nemotron_convert.source.hf_config import read_json
from nemotron_convert.source.template_format import PROBES, read_format
from nemotron_core.errors import NemotronError
from nemotron_core.safe_path import SAFE_PATH
from nemotron_core.text.chat_format import CARD, ChatFormat
from nemotron_core.text.prompt import Message, render_prompt

TEMPLATE_NAME = "chat_template.jinja"
"""Where newer versions of transformers keep it; older ones keep it in the next file."""
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
TOKENIZER_CONFIG_LIMIT = 64 << 20
TEMPLATE_LIMIT = 1 << 18
"""Largest size in bytes of a template."""
TRIAL_MODULE = "nemotron_convert.source.template_trial"
ISOLATED = [] if sys.version_info >= (3, 11) else ["-I"]
"""What keeps the current folder out of the path of a Python that does not know `SAFE_PATH`."""
SECONDS = 60
"""Limit of a run on a machine that has no processor free."""
SHOWN_CHARACTERS = 160
Result = tuple[str | None, str | None]
"""A prompt, or the reason why there is none."""


@dataclass(frozen=True)
class Conversation:
    """A conversation that a template renders."""

    what: str
    """What is special about it, for a note."""
    messages: Sequence[Message]
    answer_follows: bool = True


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


_LONG = [
    _system("Answer in one sentence."),
    *(turn for i in range(8) for turn in (_user(f"Question {i}?"), _assistant(f"Answer {i}."))),
    _user("And now?"),
]
ORDINARY = (
    Conversation("a question", [_user("Why is the sky blue?")]),
    Conversation("a system message", [_system("Be brief."), _user("Hello")]),
    Conversation("several turns", [_user("Hi"), _assistant("Hello! How can I help?"), _user("?")]),
    Conversation("many turns", _LONG),
    Conversation("several lines", [_user("One\n\nTwo\n  three")]),
    Conversation("code", [_user("```python\nprint({'a': [1, 2]})\n```")]),
    Conversation("other scripts", [_system("Réponds."), _user("Привет, 世界 🙂")]),
    Conversation("markup", [_user("<b>&amp;</b> {{ braces }} {% raw %}")]),
)
"""Conversations on which a template must give this project's prompt, letter for letter."""
UNUSUAL = (
    Conversation("without the beginning of an answer", [_user("a"), _assistant("b")], False),
    Conversation("white space around a message", [_user("  a \n"), _assistant("\tb "), _user("c")]),
    Conversation("an empty message", [_system(""), _user("a")]),
    Conversation("a system message alone", [_system("a")]),
    Conversation("a later system message", [_user("a"), _system("b"), _user("c")]),
    Conversation("two messages of one role", [_user("a"), _user("b")]),
    Conversation("an assistant's message first", [_assistant("a"), _user("b")]),
)
"""Conversations on which templates differ, without making a model answer much worse."""


@dataclass(frozen=True)
class TemplateReport:
    """What a comparison found."""

    fault: str = ""
    """Why the model expects other prompts than this project gives it; empty if it does not."""
    notes: tuple[str, ...] = ()
    """Unusual conversations for which its prompts are others than those of its format."""
    chat_format: ChatFormat | None = None
    """The format in which it writes all ordinary conversations, if there is such a one and it is
    not the model card's. Then `fault` says what the difference is."""


def compare_template(archive: Archive) -> TemplateReport | None:
    """Compare the template of a folder with `render_prompt`; return `None` if there is none.

    Raises `NemotronError` if the folder's tokenizer has code of its own or its files are not valid.
    """
    config: dict[str, Any] = {}
    if TOKENIZER_CONFIG_NAME in archive.members:
        config = read_json(archive, TOKENIZER_CONFIG_NAME, limit=TOKENIZER_CONFIG_LIMIT)
    if config.get("auto_map"):
        raise NemotronError(
            "auto_map: the tokenizer has code of its own, which is not run",
            where=f"{archive.path}: {TOKENIZER_CONFIG_NAME}",
            remedy="save it with transformers' own PreTrainedTokenizerFast",
        )
    template = _find_template(archive, config)
    return None if template is None else _compare(template, config)


def _find_template(archive: Archive, config: dict[str, Any]) -> str | None:
    """Return the template of ordinary conversations."""
    if TEMPLATE_NAME in archive.members:
        return read_bytes(archive, TEMPLATE_NAME, limit=TEMPLATE_LIMIT).decode(errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        named = [entry.get("template") for entry in entries if entry.get("name") == "default"]
        template = named[-1] if named else None
    if isinstance(template, str) and len(template) > TEMPLATE_LIMIT:
        raise NemotronError(
            f"a chat template of {len(template)} characters",
            where=f"{archive.path}: {TOKENIZER_CONFIG_NAME}",
        )
    return template if isinstance(template, str) else None


def _token_text(token: object) -> object:
    """Return what stands for a token's text: itself, or the content of transformers' object."""
    return token.get("content") if isinstance(token, dict) else token


def _compare(template: str, config: dict[str, Any]) -> TemplateReport:
    every = (*ORDINARY, *UNUSUAL)
    tokens = {
        key: text
        for key in ("bos_token", "eos_token", "unk_token", "pad_token")
        if isinstance(text := _token_text(config.get(key)), str) and text
    }
    request = {
        "template": template,
        "tokens": tokens,
        "conversations": [*([case.messages, case.answer_follows] for case in every), *PROBES],
    }
    results = _try(json.dumps(request))
    if isinstance(results, str):
        return TemplateReport(results)
    report = _report(results[: len(every)], CARD)
    if not report.fault:
        return report
    chat_format = read_format([text for text, _ in results[len(every) :]])
    if chat_format is None:
        return report
    own = _report(results[: len(every)], chat_format)
    return report if own.fault else TemplateReport(report.fault, own.notes, chat_format)


def _report(results: Sequence[Result], chat_format: ChatFormat) -> TemplateReport:
    """Compare the prompts of a template with those of a format."""
    notes = []
    for case, (text, error) in zip((*ORDINARY, *UNUSUAL), results, strict=True):
        expected = render_prompt(
            case.messages, answer_follows=case.answer_follows, chat_format=chat_format
        )
        if text == expected:
            continue
        found = f"fails: {error}" if text is None else f"gives {text!r}"
        if case in ORDINARY:
            shown = f"{found[:SHOWN_CHARACTERS]}, not {expected[:SHOWN_CHARACTERS]!r}"
            return TemplateReport(f"for {case.what}, the chat template {shown}")
        notes.append(f"{case.what}: the folder's chat template {found[:SHOWN_CHARACTERS]}")
    return TemplateReport(notes=tuple(notes))


def _try(request: str) -> list[Result] | str:
    """Return what the other process answers, or why there is no answer."""
    excess = "the chat template takes too long or too much memory"
    try:
        done = subprocess.run(
            [sys.executable, *ISOLATED, "-m", TRIAL_MODULE],
            input=request,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            encoding="utf-8",
            errors="replace",
            env=os.environ | SAFE_PATH,
        )
    except subprocess.TimeoutExpired:
        return excess
    lines = done.stderr.split("\n")
    reason = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if done.returncode < 0 or reason.startswith("MemoryError"):
        return excess
    if done.returncode:
        status = reason[:SHOWN_CHARACTERS] or f"its process ends with status {done.returncode}"
        return f"the chat template cannot be tried: {status}"
    results: list[Result] = json.loads(done.stdout)
    return results
