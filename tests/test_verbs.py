"""The command's front door loads no verb's libraries, so each machine needs only its own."""

from __future__ import annotations

import subprocess
import sys

LOADED = "import sys, nemotron_cli.main as m; print(*sorted(m.EXTRAS.keys() & sys.modules.keys()))"


def test_no_library_of_an_extra_is_loaded_with_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"
