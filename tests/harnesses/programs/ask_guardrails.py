"""NeMo Guardrails with a folder of settings: one question, and what the user gets to see."""

from __future__ import annotations

import sys

from nemoguardrails import LLMRails, RailsConfig

rails = LLMRails(RailsConfig.from_path(sys.argv[1]))
answer = rails.generate(messages=[{"role": "user", "content": sys.argv[2]}])
print("answer:", answer["content"])
