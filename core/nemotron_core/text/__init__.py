"""Text to tokens and back for Nemotron-4: the only package that knows its prompt format."""

from __future__ import annotations

from nemotron_core.text.answer import AnswerStream
from nemotron_core.text.detokenizer import StreamingDetokenizer
from nemotron_core.text.prompt import Message, check_text, parse_messages, render_prompt
from nemotron_core.text.stop import StopStrings
from nemotron_core.text.tokenizer import Tokenizer

__all__ = [
    "AnswerStream",
    "Message",
    "StopStrings",
    "StreamingDetokenizer",
    "Tokenizer",
    "check_text",
    "parse_messages",
    "render_prompt",
]
