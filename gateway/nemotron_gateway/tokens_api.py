"""`/tokenize`, `/detokenize` and `/tokenizer_info`, in the form of vLLM's server."""

from __future__ import annotations

from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.errors import NemotronError
from nemotron_core.openai.errors import bad_request
from nemotron_core.openai.keys import ListOf, OpenModel, no_effect, taken
from nemotron_core.openai.messages import Message
from nemotron_core.openai.token_texts import token_text
from nemotron_core.text import Tokenizer, check_text
from nemotron_core.text.chat_template import chat_template
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.models import Models
from nemotron_gateway.request import compute, read_body
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
}


class TokenizeRequest(OpenModel):
    """Body of `POST /tokenize`: a raw prompt, or the messages of a conversation."""

    model: str | None = taken()
    prompt: str | None = taken("a raw prompt")
    messages: ListOf[Message] | None = taken("a conversation, in place of a prompt", min_length=1)
    add_generation_prompt: bool = taken("as in a chat", default=True)
    continue_final_message: bool = taken("as in a chat", default=False)
    return_token_strs: bool = taken("adds the tokens' texts", default=False)
    add_special_tokens: Any = no_effect("the tokenizer adds none")

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Return the tokens. Raises `NemotronError` if the format cannot express the messages."""
        if self.prompt is not None:
            check_text(self.prompt, where="prompt")
            return tokenizer.encode(self.prompt)
        messages = [message.as_dict() for message in self.messages or ()]
        return tokenizer.encode_chat(
            cast("list[Any]", messages),
            answer_follows=self.add_generation_prompt,
            is_continued=self.continue_final_message,
        )

    @property
    def size(self) -> int:
        """Number of characters."""
        if self.prompt is not None:
            return len(self.prompt)
        return sum(len(message.as_dict()["content"]) for message in self.messages or ())


class DetokenizeRequest(OpenModel):
    """Body of `POST /detokenize`."""

    model: str | None = taken()
    tokens: ListOf[int] = taken("", ...)


class Tokens:
    """The endpoints of the tokenizer."""

    def __init__(self, settings: GatewaySettings, backend: Backend, models: Models) -> None:
        self._settings = settings
        self._backend = backend
        self._models = models

    async def tokenize(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /tokenize`."""
        body = await read_body(request, record, self._settings, TokenizeRequest)
        await self._models.find(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise bad_request("send either prompt or messages", "prompt")
        tokenizer = await self._backend.tokenizer("/tokenize")
        try:
            ids = await compute(lambda: body.encode(tokenizer), size=body.size)
        except NemotronError as error:
            raise bad_request(str(error)) from error
        content: dict[str, object] = {
            "count": len(ids),
            "max_model_len": (await self._backend.facts()).max_seq_len,
            "tokens": ids,
            "token_strs": None,
        }
        if body.return_token_strs:
            content["token_strs"] = [token_text(tokenizer, id_) for id_ in ids]
        return JsonResponse(content)

    async def detokenize(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /detokenize`."""
        body = await read_body(request, record, self._settings, DetokenizeRequest)
        await self._models.find(body.model)
        tokenizer = await self._backend.tokenizer("/detokenize")
        for id_ in body.tokens:
            if not 0 <= id_ < tokenizer.vocab_size:
                what = f"token id {id_} is outside the vocabulary of {tokenizer.vocab_size}"
                raise bad_request(what, "tokens")
        text = await compute(
            lambda: tokenizer.decode(body.tokens, show_control=True), size=8 * len(body.tokens)
        )
        return JsonResponse({"prompt": text})

    async def info(self, _request: Request, _record: RequestRecord) -> Response:
        """Answer `GET /tokenizer_info`."""
        tokenizer = await self._backend.tokenizer("/tokenizer_info")
        special = {
            name: piece if tokenizer.id_of(piece) is not None else None
            for name, piece in SPECIAL_TOKENS.items()
        }
        return JsonResponse(
            {
                "tokenizer_class": "SentencePiece",
                "vocab_size": tokenizer.vocab_size,
                "model_max_length": (await self._backend.facts()).max_seq_len,
                **special,
                "chat_template": chat_template(tokenizer.chat_format),
            }
        )
