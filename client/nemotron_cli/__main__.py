"""`python -m nemotron_cli`: for processes that start this command again."""

from __future__ import annotations

from nemotron_cli.main import main

main()
