"""Renders conversations with an untrusted chat template, as transformers does.

Standard input is one JSON object, standard output a list of (text, error), one of which is null.
See `chat_template`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any, NoReturn

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 3
MEMORY_BYTES = 512 << 20
ERROR_CHARACTERS = 200
TEXT_CHARACTERS = 100_000


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    for limit, value in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_DATA, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    json.dump(_render_all(request), sys.stdout)


def _render_all(request: dict[str, Any]) -> list[tuple[str | None, str | None]]:
    try:
        template = _environment().from_string(request["template"])
    except (TemplateError, RecursionError) as error:
        return [(None, _short(error))] * len(request["conversations"])
    results: list[tuple[str | None, str | None]] = []
    for messages, answer_follows in request["conversations"]:
        try:
            text = template.render(
                messages=messages,
                add_generation_prompt=answer_follows,
                tools=None,
                documents=None,
                **request["tokens"],
            )
            results.append((text[:TEXT_CHARACTERS], None))
        except Exception as error:
            results.append((None, _short(error)))
    return results


class _Generation(Extension):
    """The block by which templates mark the model's own words for training."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> Environment:
    """Return the environment in which transformers renders chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = time.strftime
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    return environment


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:ERROR_CHARACTERS] or type(error).__name__


if __name__ == "__main__":
    main()
