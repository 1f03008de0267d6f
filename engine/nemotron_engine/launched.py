"""Runs a command under TensorRT-LLM's launcher, and ends the launcher if the command fails.

    trtllm-llmapi-launch python -m nemotron_engine.launched COMMAND…

The launcher of 1.2 starts its command in the background and does not notice when it fails: all
ranks would wait forever for a model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main() -> None:
    """Run the command, and kill this process's group, which is the launcher's, if it fails."""
    if subprocess.run(sys.argv[1:], check=False).returncode:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
