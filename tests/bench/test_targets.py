"""The model that `nemotron bench` asks for, if none is named."""

from __future__ import annotations

import json

import pytest

from nemotron_bench.targets import OpenAITarget, open_target
from nemotron_core.errors import NemotronError
from tests.standins.chat_server import ChatServer, said


def test_an_openai_api_is_asked_for_its_first_model() -> None:
    with ChatServer(lambda _body, _inside: said("Hello"), model={"id": "tiny"}) as server:
        target = open_target(server.url, None)
        assert isinstance(target, OpenAITarget)
        body = json.loads(target.request("Hi", 7))
        assert (body["model"], body["max_tokens"], body["ignore_eos"]) == ("tiny", 7, True)
        assert open_target(server.url, "large").name.endswith(" large")


def test_a_server_that_names_no_model() -> None:
    with (
        ChatServer(lambda _body, _inside: said("Hello"), model={"object": "model"}) as server,
        pytest.raises(NemotronError, match=r"names no model.*--model"),
    ):
        open_target(server.url, None)
    with pytest.raises(NemotronError, match="names no model"):
        open_target("http://127.0.0.1:9", None)


def test_triton_has_one_model_of_the_text() -> None:
    target = open_target("grpc://127.0.0.1:9", None)
    assert target.name == "grpc://127.0.0.1:9 ensemble"
    target.close()
