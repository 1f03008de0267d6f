"""The SentencePiece tokenizer as files that `AutoTokenizer` loads, chat template included.

The token ids are SentencePiece's own. Two differences come from how all Hugging Face tokenizers
work. They recognise a control piece anywhere in a text, so the chat template refuses a message that
contains one, whereas `nemotron_core.text.Tokenizer` encodes it as plain text. And if a model puts a
space in front of every text, only SentencePiece does so before a leading control piece.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from nemotron_convert.target.json_files import write_json
from nemotron_core.errors import NemotronError
from nemotron_core.text.chat_format import CARD, CONTROL_PREFIX, ChatFormat
from nemotron_core.text.chat_template import chat_template
from nemotron_core.text.sentencepiece_model import (
    Algorithm,
    Piece,
    PieceType,
    SentencePieceModel,
)

SPACE = "▁"
"""The character by which SentencePiece replaces a space."""
SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
"""Transformers' names of the pieces with a meaning of their own."""


def write_hf_tokenizer(
    folder: Path, model: bytes, max_positions: int, chat_format: ChatFormat = CARD
) -> None:
    """Write `tokenizer.json` and its companions for a serialized SentencePiece model.

    `added_tokens_decoder` says which pieces are special, because SentencePiece's own types do not:
    llama.cpp would otherwise take `<extra_id_1>` in a prompt for text. `model_input_names` is there
    because transformers 4 would send `token_type_ids`, which the model does not take. Raises
    `NemotronError` if the tokenizer has no Hugging Face form.
    """
    parsed = parse_for_hf(model)
    # Not by the library's `save`, whose errors say neither what they are nor where.
    (folder / "tokenizer.json").write_text(hf_tokenizer(parsed).to_str(pretty=True), "utf-8")
    texts = {piece.text for piece in parsed.pieces}
    special = {key: text for key, text in SPECIAL_TOKENS.items() if text in texts}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": _added_tokens(parsed),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_positions,
        "chat_template": chat_template(chat_format),
    }
    write_json(folder / "tokenizer_config.json", config, ensure_ascii=False)
    write_json(folder / "special_tokens_map.json", special, ensure_ascii=False)


def _added_tokens(model: SentencePieceModel) -> dict[str, dict[str, object]]:
    """Return the tokens that are recognised in any text, by id, as transformers writes them.

    The unknown piece is not among them: llama.cpp would take it for a control piece.
    """
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {
        str(i): {"content": piece.text, **flags, "special": _is_special(piece)}
        for i, piece in enumerate(model.pieces)
        if piece.type is not PieceType.UNKNOWN
        and (_is_special(piece) or piece.type is PieceType.USER_DEFINED)
    }


def _is_special(piece: Piece) -> bool:
    """Return whether a piece controls the model, so that decoding leaves it out."""
    kinds = (PieceType.CONTROL, PieceType.UNKNOWN)
    return piece.type in kinds or piece.text.startswith(CONTROL_PREFIX)


def parse_for_hf(data: bytes) -> SentencePieceModel:
    """Parse a serialized model. Raises `NemotronError` if it has no Hugging Face form."""
    model = SentencePieceModel.parse(data)
    if not model.escape_whitespaces:
        raise NemotronError("the tokenizer does not escape spaces: no Hugging Face form is known")
    if not any(piece.type is PieceType.UNKNOWN for piece in model.pieces):
        raise NemotronError("the tokenizer has no piece for unknown characters")
    return model


def hf_tokenizer(model: SentencePieceModel) -> Tokenizer:
    """Return the same tokenizer as an object of Hugging Face's library."""
    tokenizer = Tokenizer(_algorithm(model))
    tokenizer.normalizer = _normalizer(model)
    first = "first" if model.add_dummy_prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=first, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    for piece in model.pieces:
        is_special = _is_special(piece)
        token = AddedToken(piece.text, normalized=False, special=is_special)
        if is_special:
            tokenizer.add_special_tokens([token])
        elif piece.type is PieceType.USER_DEFINED:
            tokenizer.add_tokens([token])
    return tokenizer


def _algorithm(model: SentencePieceModel) -> models.Model:
    """Return the Unigram or BPE model with the pieces of `model`."""
    unknown = [i for i, piece in enumerate(model.pieces) if piece.type is PieceType.UNKNOWN]
    if model.algorithm is Algorithm.UNIGRAM:
        scored = [(piece.text, piece.score) for piece in model.pieces]
        return models.Unigram(scored, unk_id=unknown[0], byte_fallback=model.byte_fallback)
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    return models.BPE(
        ids,
        _merges(model),
        unk_token=model.pieces[unknown[0]].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Return BPE's merges, best first.

    SentencePiece joins the two neighbours whose union has the best score, so each way to divide a
    piece into two pieces is a merge with the rank of the piece's score.
    """
    scores = {piece.text: piece.score for piece in model.pieces if piece.type is PieceType.NORMAL}
    merges = [
        (-score, i, (text[:cut], text[cut:]))
        for i, (text, score) in enumerate(scores.items())
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [pair for _, _, pair in sorted(merges)]


def _normalizer(model: SentencePieceModel) -> normalizers.Normalizer:
    """Return SentencePiece's normalization: its character map and its handling of spaces."""
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(steps)
