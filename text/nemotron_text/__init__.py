"""Text to tokens and back, for Nemotron-4: the one place that knows its prompt format.

Used by the Triton models, the client's tools and calibration; needs only `sentencepiece`.
"""

from __future__ import annotations

from nemotron_text.answer import AnswerStream
from nemotron_text.detokenizer import StreamingDetokenizer
from nemotron_text.prompt import Message, check_text, parse_messages, render_prompt
from nemotron_text.settings import AnswerSettings
from nemotron_text.stop import StopStrings
from nemotron_text.tokenizer import Tokenizer

__all__ = [
    "AnswerSettings",
    "AnswerStream",
    "Message",
    "StopStrings",
    "StreamingDetokenizer",
    "Tokenizer",
    "check_text",
    "parse_messages",
    "render_prompt",
]
