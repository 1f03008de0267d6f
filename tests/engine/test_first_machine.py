"""Machines that end with the first one."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from nemotron_engine.first_machine import end_with

WAITS = """
import sys, time
from nemotron_engine.first_machine import end_with
end_with("127.0.0.1", int(sys.argv[1]), lambda: print("shut down", flush=True) or FAILS and 1 / 0)
time.sleep(1000)
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_ends_with_its_first_machine(fails: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [
            sys.executable,
            "-c",
            WAITS.replace("FAILS", str(fails)),
            str(listener.getsockname()[1]),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _address = listener.accept()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            connection.close()
            out, err = process.communicate()
    assert (process.returncode, out) == (0, b"shut down\n")
    assert err.startswith(b"nemotron_engine: the engine's first machine has ended\n")


def test_without_a_first_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        end_with("127.0.0.1", port, print)
