"""On what prompts a model was tuned, by its settings or its chat template."""

from __future__ import annotations

from dataclasses import dataclass, field

from nemotron_convert.source.chat_tokens import other_chat_tokens, tuned_format
from nemotron_convert.source.contents import Contents
from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import ChatFormat


@dataclass(frozen=True)
class TunedPrompts:
    """The format of a model's prompts, compared with the model card's."""

    chat_format: ChatFormat | None = None
    """Another format, which chats are given; `None` means the model card's."""
    fault: str = ""
    """Why the model's own format cannot be given, so that chats are given the model card's."""
    refusal: str = ""
    """The same, where the model is not converted unless the user says so."""
    notes: tuple[str, ...] = ()
    """How the prompts of a chat template differ from those that chats are given."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Those of `data.chat_prompt_tokens` that differ from the model card's."""


def find_prompts(contents: Contents, tokenizer: bytes, *, is_reward: bool) -> TunedPrompts:
    """Return on what prompts a model with this serialized tokenizer was tuned."""
    template = contents.template
    if template is not None:
        chat_format, reason = template.chat_format, ""
        if chat_format is not None and not (reason := _fault(chat_format, tokenizer)):
            return TunedPrompts(chat_format, notes=template.notes)
        refusal = f"{template.fault}; {reason}" if reason else template.fault
        return TunedPrompts(refusal=refusal, notes=(*filter(None, [refusal]), *template.notes))
    tokens = other_chat_tokens(contents.settings.raw)
    if tokens and is_reward:
        return TunedPrompts(fault="a reward model has one prompt, the model card's", tokens=tokens)
    try:
        chat_format = tuned_format(contents.settings.raw)
    except NemotronError as error:
        return TunedPrompts(fault=error.what, tokens=tokens)
    if chat_format is None:
        return TunedPrompts(tokens=tokens)
    if fault := _fault(chat_format, tokenizer):
        return TunedPrompts(fault=fault, tokens=tokens)
    return TunedPrompts(chat_format, tokens=tokens)


def _fault(chat_format: ChatFormat, tokenizer: bytes) -> str:
    """Return why chats cannot be given a format, or an empty string."""
    # Loaded by the few models that have another format.
    from nemotron_core.text.sentencepiece_model import (  # noqa: PLC0415
        PieceType,
        SentencePieceModel,
    )

    if fault := chat_format.fault:
        return fault
    pieces = SentencePieceModel.parse(tokenizer).pieces
    texts = {piece.text for piece in pieces}
    if missing := [piece for piece in chat_format.control_pieces if piece not in texts]:
        return f"the tokenizer has no piece {missing[0]}"
    special = {piece.text for piece in pieces if piece.type is PieceType.CONTROL}
    special -= set(chat_format.control_pieces)
    parts = vars(chat_format).values()
    if found := sorted(text for text in special if any(text in part for part in parts)):
        return f"no prompt can have the piece {found[0]}"
    return ""
