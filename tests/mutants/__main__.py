"""Mutate core rules and run their own unit tests: `make mutants`, or one: `make mutants ONLY=stop`.

A mutant that survives is either listed in `equivalent.yaml`, with the reason why it changes
nothing, or a missing test; then the exit code is 1. The mutants are made in a clone of HEAD.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COSMIC_RAY = ROOT / ".tools" / "mutants" / "bin" / "cosmic-ray"
ROOMS = ("core", "convert", "build", "engine", "serve", "gateway", "client", "data", "bench")
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")
TARGETS = yaml.safe_load(Path(__file__).with_name("targets.yaml").read_text())
"""Name → module and the tests that must kill its mutants."""
SECONDS = 60.0
"""A test run that takes longer has found its mutant: it does not end."""
LEFT_OUT = [
    # Bit operators on numbers that are no bit fields, `is` on values, and decorators.
    r"core/ReplaceBinaryOperator_\w+_(BitOr|BitAnd|BitXor|LShift|RShift|Pow|Mod|FloorDiv)",
    r"core/ReplaceBinaryOperator_(BitOr|BitAnd|BitXor)_\w+",
    r"core/ReplaceComparisonOperator_\w+_(Is|IsNot)",
    r"core/ReplaceUnaryOperator_\w+_Invert",
    r"core/RemoveDecorator",
    r"core/ExceptionReplacer",
]


def main(names: list[str]) -> int:
    known = {_key(entry) for entry in yaml.safe_load(EQUIVALENT.read_text()) or ()}
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, clone], check=True)
        for name in names or TARGETS:
            survivors, total = _mutate(clone, **TARGETS[name])
            new = [s for s in survivors if _key(s) not in known]
            missed += len(new)
            equivalent = len(survivors) - len(new)
            print(f"{name}: {total} mutants, {equivalent} equivalent, {len(new)} survived")
            for survivor in new:
                print(yaml.safe_dump([survivor], sort_keys=False, allow_unicode=True))
    return 1 if missed else 0


def _mutate(clone: Path, module: str, tests: list[str]) -> tuple[list[dict[str, str]], int]:
    """Return the mutants of a module that its tests let live, and how many there were."""
    python = Path(sys.executable)
    options = "-q -x -p no:cacheprovider -p pytest_timeout -m 'not slow'"
    command = f"{python} -m pytest {options} {' '.join(tests)}"
    config = clone.parent / "config.toml"
    session = clone.parent / "session.sqlite"
    session.unlink(missing_ok=True)
    filters = json.dumps(LEFT_OUT)
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "{module}"\ntimeout = {SECONDS}\nexcluded-modules = []\n'
        f"test-command = {json.dumps(command)}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
        f"[cosmic-ray.filters.operators-filter]\nexclude-operators = {filters}\n"
    )
    path = os.pathsep.join(str(clone / room) for room in ROOMS)
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # a run takes half the time without

    def run(program: str, *arguments: Path | str) -> str:
        return subprocess.run(
            [COSMIC_RAY.with_name(program), *arguments],
            cwd=clone,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout

    run("cosmic-ray", "init", config, session)
    run("cr-filter-operators", session, config)
    run("cosmic-ray", "baseline", config)
    run("cosmic-ray", "exec", config, session)
    rows = [json.loads(line) for line in run("cosmic-ray", "dump", session).splitlines()]
    done = [
        (item, result) for item, result in rows if result and result["worker_outcome"] == "normal"
    ]
    alive = [
        _survivor(module, result["diff"])
        for _, result in done
        if result["test_outcome"] == "survived"
    ]
    return alive, len(done)


def _survivor(module: str, diff: str) -> dict[str, str]:
    lines = [line for line in diff.splitlines() if not re.match(r"(---|\+\+\+) ", line)]
    before = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    after = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    return {"module": module, "before": before, "after": after}


def _key(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["module"], entry["before"], entry["after"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
