"""Run `python -m nemotron_cli`, with which processes start this command again."""

from __future__ import annotations

from nemotron_cli.main import main

main()
