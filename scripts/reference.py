"""The reference pages of the site, generated from the code: python scripts/reference.py FOLDER."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import typer.main
from pydantic import BaseModel

from nemotron_build.profile import CpuProfile, PyTorchProfile, TensorRTProfile, VllmProfile
from nemotron_cli.main import EXTRAS_OF_VERBS, VERBS, app
from nemotron_core.errors import ERROR_CODES, ErrorKind
from nemotron_gateway.settings import GatewaySettings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SOURCES = ("core", "convert", "build", "engine", "serve", "gateway", "client", "data", "evaluate")
REMEDIES = {
    ErrorKind.REFUSED: "Change the request or the input; the text says what is wrong with it.",
    ErrorKind.OVERLOADED: "Send it again later, or raise `limits.max_queue_size`.",
    ErrorKind.SHUTTING_DOWN: "Send it to another server, or again when this one has restarted.",
    ErrorKind.UNREACHABLE: "Look whether the server runs and is ready; clients try again.",
    ErrorKind.TIMED_OUT: "Ask for less, allow more time, or find out why the server is slow.",
    ErrorKind.FAILED: "Read the server's log; the request was valid.",
    ErrorKind.INTERRUPTED: "Nothing: the sender wanted it.",
}
VARIABLES = {
    "NEMOTRON_URL": "`nemotron chat`: address of the server, in place of `--url`. `serve` sets it "
    "for the command after `--`, to Triton's gRPC.",
    "NEMOTRON_HTTP": "set by `serve` for the command after `--`: Triton's HTTP",
    "NEMOTRON_GATEWAY": "set by `serve` for the command after `--`: the gateway",
    "NEMOTRON_BATCH_URL": "`nemotron batch`: the server, in place of `--url`; `serve` sets it for "
    "the command after `--`",
    "NEMOTRON_API_KEY": "the key that clients (`chat`, `batch`, `bench`, …) send",
    "NEMOTRON_API_KEYS": "the gateway's keys, one in each line",
    "NEMOTRON_API_KEYS_FILE": "file with the gateway's keys",
    "OPENAI_API_KEY": "the same as `NEMOTRON_API_KEY`, if that is not set",
}
VARIABLE = re.compile(r"\b(?:NEMOTRON_[A-Z_]+[A-Z]|OPENAI_API_KEY)\b")


def command_line() -> str:
    """Return the page of all verbs with their options."""
    group: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "`nemotron` alone shows the way through the verbs; `nemotron VERB --help` or `-h` shows"
        " what is here. `nemotron --install-completion` installs completion for bash, zsh, fish or"
        " PowerShell, and `nemotron --show-completion` prints it.",
        "",
        "Exit codes: 0 done, 1 failed (one line on standard error says what, where and what to do),"
        " 2 wrong usage, 130 interrupted.",
        "",
    ]
    for verb in VERBS:
        lines += _verb(verb, group.get_command(None, verb))
    return "\n".join(lines)


def _verb(verb: str, command: Any) -> Iterator[str]:
    yield f"## nemotron {verb}"
    yield ""
    yield " ".join((command.help or "").split())
    yield ""
    if extra := EXTRAS_OF_VERBS.get(verb):
        yield f"Needs `pip install 'nemotron-triton[{extra}]'`."
        yield ""
    yield "| argument or option | default | |"
    yield "|---|---|---|"
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        is_argument = parameter.param_type_name == "argument"
        names = [
            (parameter.metavar or parameter.name.upper())
            if is_argument
            else ", ".join((*parameter.opts, *parameter.secondary_opts))
        ]
        default = parameter.default
        shown = "" if default in (None, False, (), []) or callable(default) else f"`{default}`"
        if parameter.required:
            shown = "required"
        variables = parameter.envvar
        note = " ".join((parameter.help or "").split())
        if variables:
            named = [variables] if isinstance(variables, str) else variables
            note += f" Environment: {', '.join(f'`{name}`' for name in named)}."
        yield f"| {_cell(f'`{names[0]}`')} | {_cell(shown)} | {_cell(note)} |"
    yield ""


def profile_keys() -> str:
    """Return the page of the keys of profiles, lane by lane."""
    lines = [
        "# Profile keys",
        "",
        "A profile is a YAML file (`nemotron profiles NAME` shows one); an unknown key is refused."
        " Times are in seconds.",
        "",
    ]
    for model in (CpuProfile, TensorRTProfile, PyTorchProfile, VllmProfile):
        (lane,) = get_args(model.model_fields["lane"].annotation)
        lines += [f"## Lane `{lane}`", "", inspect.cleandoc(model.__doc__ or ""), ""]
        lines += [*_keys_table(model), ""]
    return "\n".join(lines)


def gateway_settings() -> str:
    """Return the page of the gateway's settings."""
    return "\n".join(
        [
            "# Gateway settings",
            "",
            "The file of `nemotron gateway --settings FILE` and of `nemotron serve"
            " --gateway-settings FILE`; an unknown key is refused. Times are in seconds.",
            "",
            *_keys_table(GatewaySettings),
            "",
        ]
    )


def environment() -> str:
    """Return the page of environment variables, with the files that name each."""
    places: dict[str, set[str]] = {}
    for room in SOURCES:
        for path in sorted((ROOT / room).rglob("*.py")):
            for name in VARIABLE.findall(path.read_text(encoding="utf-8")):
                places.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    lines = ["# Environment variables", "", "| variable | |", "|---|---|"]
    for name in sorted(places):
        note = VARIABLES.get(name) or f"see `{sorted(places[name])[0]}`"
        lines.append(f"| `{name}` | {note} |")
    return "\n".join([*lines, ""])


def wire_contract() -> str:
    """Return the page of Triton's inputs and outputs."""
    from scripts.contract_table import tables  # noqa: PLC0415

    return "\n".join(["# Inputs and outputs on Triton", "", tables(), ""])


def error_kinds() -> str:
    """Return the page of the kinds of errors, their codes and remedies."""
    notes = _attribute_docs(ErrorKind)
    lines = [
        "# Error kinds",
        "",
        "Every expected failure is of one of these kinds. On Triton's wire the kind is the"
        " beginning of the error's text. Codes of the command: 1, and 130 for an interruption.",
        "",
        "| text begins with | meaning | what to do | Triton | HTTP | OpenAI `type`, `code` |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ErrorKind:
        codes = ERROR_CODES[kind]
        openai = ", ".join(f"`{name}`" for name in (codes.openai_type, codes.openai_code) if name)
        lines.append(
            f"| `{kind.value.strip(': ')}` | {_cell(notes.get(kind.name, ''))} | {REMEDIES[kind]} |"
            f" {codes.triton} | {int(codes.http)} | {openai} |"
        )
    return "\n".join([*lines, "", "[Messages and their remedies](../troubleshooting.md)", ""])


def helm_values() -> str:
    """Return the page of the chart's values: the table of the chart's own README."""
    text = (ROOT / "helm" / "nemotron" / "README.md").read_text(encoding="utf-8")
    table = text.partition("<!-- values -->\n")[2].partition("<!-- end -->")[0]
    return f"# Helm values\n\n{table.strip()}\n"


def _keys_table(model: type[BaseModel]) -> Iterator[str]:
    yield "| key | type | default | |"
    yield "|---|---|---|---|"
    for name, kind, default, note in _keys(model, ""):
        yield f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(note)} |"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    notes = _attribute_docs(model)
    for name, field in model.model_fields.items():
        inner = next((part for part in _parts(field.annotation) if _is_model(part)), None)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else f"`{_plain(field.get_default())}`"
        limits = ", ".join(
            f"{symbol} {getattr(limit, attribute)}"
            for limit in field.metadata
            for attribute, symbol in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
            if getattr(limit, attribute, None) is not None
        )
        kind = _type_name(field.annotation) + (f", {limits}" if limits else "")
        yield f"{prefix}{name}", kind, default, notes.get(name, "")


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    yield from get_args(annotation)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return {"NoneType": "null"}.get(annotation.__name__, annotation.__name__)
    arguments = [part for part in get_args(annotation) if part is not Ellipsis]
    if arguments and all(isinstance(part, str) for part in arguments):
        return " or ".join(f"`{part}`" for part in arguments)
    name = getattr(annotation, "__name__", "")
    if name in ("list", "tuple", "dict"):
        return f"{name} of {', '.join(map(_type_name, arguments))}"
    return " or ".join(dict.fromkeys(_type_name(part) for part in arguments)) or str(annotation)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return json.dumps(value, default=str)


def _attribute_docs(owner: type) -> dict[str, str]:
    """Return the docstring after each attribute of a class and of its bases."""
    notes: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        if base.__module__.partition("_")[0] != "nemotron":
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = getattr(definition, "body", [])
        for statement, following in pairwise(body):
            target = (
                getattr(statement, "target", None) or (getattr(statement, "targets", [None])[0])
            )
            if isinstance(target, ast.Name) and isinstance(following, ast.Expr):
                text = getattr(following.value, "value", None)
                if isinstance(text, str):
                    notes[target.id] = " ".join(text.split())
    return notes


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {
    "reference/command-line.md": command_line,
    "reference/profile-keys.md": profile_keys,
    "reference/gateway-settings.md": gateway_settings,
    "reference/environment.md": environment,
    "reference/inputs-and-outputs.md": wire_contract,
    "reference/errors.md": error_kinds,
    "reference/helm-values.md": helm_values,
}
"""Generated pages by their path in the site."""

if __name__ == "__main__":
    for name, page in PAGES.items():
        path = Path(sys.argv[1]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(), encoding="utf-8")
