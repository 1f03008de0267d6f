"""The endpoints of a gateway before a reward model: scores instead of answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_core.openai.reward import RewardRequest, reward_answer
from nemotron_gateway.admission import Admission, estimate_tokens
from nemotron_gateway.backend import Backend
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.models import Models
from nemotron_gateway.request import read_body, while_connected
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings

Handler = Callable[[Request, RequestRecord], Awaitable[Response]]
SYSTEM_KEY = "messages.system"
"""What the response names as without effect if there is a system message."""


class Rewards:
    """Answers for a reward model, and refuses what only a model that generates can do."""

    def __init__(
        self, settings: GatewaySettings, backend: Backend, models: Models, admission: Admission
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._models = models
        self._admission = admission

    def instead_of(self, handler: Handler) -> Handler:
        """Return the handler that scores if the engine is a reward model, and else `handler`."""

        async def respond(request: Request, record: RequestRecord) -> Response:
            is_reward = await self._backend.kind() == "reward"
            return await (self.chat if is_reward else handler)(request, record)

        return respond

    def refused(self, handler: Handler) -> Handler:
        """Return the handler that refuses if the engine is a reward model, and else `handler`."""

        async def respond(request: Request, record: RequestRecord) -> Response:
            if await self._backend.kind() == "reward":
                raise HttpError(
                    HTTPStatus.BAD_REQUEST,
                    "this is a reward model, which generates no text: POST a conversation that ends"
                    " with the assistant's answer to /v1/chat/completions, which scores it",
                    code="reward_model",
                )
            return await handler(request, record)

        return respond

    async def chat(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/chat/completions` with the scores of the conversation's turns."""
        body = await read_body(request, record, self._settings, RewardRequest)
        name = (await self._models.find(body.model)).name
        messages = [message.as_dict() for message in body.messages]
        if messages[-1]["role"] != "assistant":
            raise bad_request(
                f"the last message is from {messages[-1]['role']!r}: a reward model scores an "
                "assistant's answer, so end with the one to score",
                "messages",
            )
        limit = self._settings.limits.prompt_characters
        if sum(len(message["content"]) for message in messages) > limit:
            raise bad_request(
                f"a prompt has at most {limit} characters",
                "messages",
                code="context_length_exceeded",
            )
        if any(message["role"] == "system" for message in messages):
            record.ignored_keys = [*record.ignored_keys, SYSTEM_KEY]
        tokens = sum(estimate_tokens(message["content"]) for message in messages)
        count = 1  # each scored turn is a sequence of its own, with all that stands before it
        if body.turns == "all":
            count = sum(message["role"] == "assistant" for message in messages)
        if count > (most := self._settings.limits.answers):
            raise bad_request(f"at most {most} turns are scored in one request", "turns")
        async with self._admission.enter(record, count, tokens * count):
            work = self._backend.score(messages, body.turns or "last", body.timeout)
            turns = await while_connected(request.receive, work)
        record.count_tokens(sum(turn.num_tokens for turn in turns), 0)
        facts = await self._backend.facts()
        return JsonResponse(reward_answer(name, turns, facts.fingerprint))
