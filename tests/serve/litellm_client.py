"""Asks a Triton through litellm, in litellm's own environment: API_BASE PROMPT MAX_TOKENS.

Prints a JSON list: the text in one, by the asynchronous API, and joined from a stream.
"""

from __future__ import annotations

import asyncio
import json
import sys

import litellm  # type: ignore[import-not-found]

base, prompt, max_tokens = sys.argv[1:]
asked = {
    "model": "triton/ensemble",
    "api_base": base,
    "messages": [{"role": "user", "content": prompt}],
    "max_tokens": int(max_tokens),
}
whole = litellm.completion(**asked).choices[0].message.content
later = asyncio.run(litellm.acompletion(**asked)).choices[0].message.content
pieces = [
    chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)
]
print(json.dumps([whole, later, "".join(pieces)]))
