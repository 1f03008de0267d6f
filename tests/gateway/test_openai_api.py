"""OpenAI's API on the real stack, over plain HTTP and through OpenAI's own library."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from nemotron_core.text import Tokenizer
from tests.gateway.process import MODEL, Running
from tests.tiny_nemotron.answers import ExactAnswer

GO = "<extra_id_1>Go"


def messages(exact: ExactAnswer) -> list[ChatCompletionMessageParam]:
    return [message.as_dict() for message in exact.question.messages]  # type: ignore[misc]


def test_models(client: openai.OpenAI) -> None:
    model, _alias = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_chat(client: openai.OpenAI, answers: list[ExactAnswer]) -> None:
    for exact in answers[::60]:
        answer = client.chat.completions.create(
            model=MODEL, messages=messages(exact), temperature=0
        )
        (choice,) = answer.choices
        assert choice.message.content == exact.question.answer
        assert choice.message.role == "assistant"
        assert choice.finish_reason == "stop"
        assert answer.usage
        assert answer.usage.completion_tokens == len(exact.token_ids)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(exact.token_ids)


def test_streamed_chat(client: openai.OpenAI, answers: list[ExactAnswer]) -> None:
    exact = answers[0]
    whole = client.chat.completions.create(model=MODEL, messages=messages(exact), temperature=0)
    with client.chat.completions.create(
        model=MODEL,
        messages=messages(exact),
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    *texts, usage = chunks
    assert len(texts) > 2
    assert texts[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in texts)
    assert text == exact.question.answer == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in texts]
    assert reasons == [None] * (len(texts) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in texts)
    assert (usage.choices, usage.usage) == ([], whole.usage)
    assert len({chunk.id for chunk in chunks}) == 1


def test_async(gateway: Running, answers: list[ExactAnswer]) -> None:
    async def ask(client: openai.AsyncOpenAI, exact: ExactAnswer) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=messages(exact), temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, exact) for exact in answers[::12]))

    assert asyncio.run(ask_all()) == [exact.question.answer for exact in answers[::12]]


def test_content_in_parts_and_what_the_library_sends_back(
    client: openai.OpenAI, gateway: Running
) -> None:
    first = client.chat.completions.create(
        model=MODEL,
        messages=[
            {
                "role": "user",
                "content": [{"type": "text", "text": "Who are "}, {"type": "text", "text": "you?"}],
            }
        ],
        temperature=0,
    )
    plain = gateway.chat("Who are you?").json["choices"][0]["message"]
    assert first.choices[0].message.content == plain["content"]
    history: list[Any] = [{"role": "user", "content": "Who are you?"}, first.choices[0].message]
    history.append({"role": "user", "content": "Who are you?"})
    again = client.chat.completions.create(model=MODEL, messages=history, temperature=0)
    assert again.choices[0].message.content


def test_a_developer_message_is_a_system_message(
    gateway: Running, answers: list[ExactAnswer]
) -> None:
    exact = next(a for a in answers if [m.role for m in a.question.messages] == ["system", "user"])
    system, user = (m.content for m in exact.question.messages)
    sent = [{"role": "developer", "content": system}, {"role": "user", "content": user}]
    answer = gateway.chat("", messages=sent).json
    assert answer["choices"][0]["message"]["content"] == exact.question.answer


def test_completions_of_lists_and_tokens(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    prompts = ["<extra_id_1>User\nHello", "<extra_id_1>User\nWho"]
    many = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=8)
    separate = [
        client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=8)
        for prompt in prompts
    ]
    texts = [completion.choices[0].text for completion in separate]
    assert [choice.text for choice in many.choices] == texts
    assert [choice.index for choice in many.choices] == [0, 1]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    of_ids = client.completions.create(model=MODEL, prompt=ids, temperature=0, max_tokens=8)
    assert [choice.text for choice in of_ids.choices] == texts
    of_one = client.completions.create(model=MODEL, prompt=ids[0], temperature=0, max_tokens=8)
    assert of_one.choices[0].text == texts[0]
    assert of_ids.usage == many.usage
    assert many.usage
    assert many.usage.prompt_tokens == sum(map(len, ids))


def test_echo(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    plain = client.completions.create(model=MODEL, prompt=GO, temperature=0, max_tokens=5)
    text = plain.choices[0].text
    for prompt in (GO, tokenizer.encode(GO)):
        echoed = client.completions.create(
            model=MODEL, prompt=prompt, temperature=0, max_tokens=5, echo=True
        )
        assert echoed.choices[0].text == GO + text
    with client.completions.create(
        model=MODEL, prompt=GO, temperature=0, max_tokens=5, echo=True, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == GO + text


def test_several_answers_streamed_and_whole(client: openai.OpenAI) -> None:
    settings: Any = {"model": MODEL, "temperature": 1.5, "seed": 3, "n": 3, "max_tokens": 6}
    whole = client.completions.create(prompt=[GO, "Hi"], **settings)
    texts = [choice.text for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert len(set(texts)) > 2
    assert whole.usage
    assert whole.usage.completion_tokens <= 36
    streamed = [""] * 6
    reasons = []
    with client.completions.create(prompt=[GO, "Hi"], stream=True, **settings) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            streamed[choice.index] += choice.text
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert streamed == texts
    assert len(reasons) == 6


def test_sampling_differs_unless_a_seed_is_given(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> str:
        return (
            client.completions.create(model=MODEL, prompt=GO, max_tokens=12, **more).choices[0].text
        )

    assert len({ask(temperature=2) for _ in range(5)}) > 1
    assert ask(temperature=2, seed=-7) == ask(temperature=2, seed=-7)
    assert ask(temperature=0) == ask(temperature=0)


def test_every_setting_is_taken(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        max_completion_tokens=20,
        temperature=1.5,
        top_p=0.9,
        presence_penalty=0.2,
        frequency_penalty=0.2,
        seed=5,
        stop=["zzz", "yyy"],
        n=1,
        user="me",
        response_format={"type": "text"},
        extra_body={"top_k": 40, "repetition_penalty": 1.1, "min_tokens": 3},
    )
    assert answer.usage
    assert 3 <= answer.usage.completion_tokens <= 20


def test_an_answer_in_a_schema(client: openai.OpenAI) -> None:
    schema: dict[str, object] = {"enum": ["red", "blue"]}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Red or blue?"}],
        temperature=0,
        max_tokens=60,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "choice", "schema": schema, "strict": True},
        },
    )
    assert answer.choices[0].message.content in ('"red"', '"blue"')


def test_stop_and_length(client: openai.OpenAI, answers: list[ExactAnswer]) -> None:
    exact = answers[0]
    stop = exact.question.answer[5:9]
    stopped = client.chat.completions.create(
        model=MODEL, messages=messages(exact), temperature=0, stop=stop
    )
    assert stopped.choices[0].message.content == exact.question.answer.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(
        model=MODEL, messages=messages(exact), temperature=0, max_tokens=3
    )
    assert short.choices[0].finish_reason == "length"
    assert short.usage
    assert short.usage.completion_tokens == 3


def test_without_max_tokens_a_long_prompt_gets_what_is_left(gateway: Running) -> None:
    answer = gateway.chat("a b c d e f g h " * 450, min_tokens=10)
    assert answer.status == 200
    assert 3000 < answer.json["usage"]["prompt_tokens"] < 4096


def test_log_probs_of_a_chat(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Who are you?"}],
        temperature=0,
        logprobs=True,
    )
    (choice,) = answer.choices
    assert choice.logprobs
    assert choice.logprobs.content
    assert answer.usage
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    assert all(token.logprob <= 0 for token in choice.logprobs.content)
    data = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content)
    assert data.decode() == f"{choice.message.content}\n<extra_id_1>"


def test_log_probs_of_a_completion_streamed_and_whole(client: openai.OpenAI) -> None:
    settings: Any = {"model": MODEL, "prompt": GO, "max_tokens": 9, "temperature": 0, "logprobs": 0}
    whole = client.completions.create(**settings).choices[0]
    assert whole.logprobs
    assert whole.logprobs.tokens
    assert whole.logprobs.text_offset
    for (start, token), (end, _) in pairwise(
        zip(whole.logprobs.text_offset, whole.logprobs.tokens, strict=True)
    ):
        assert token.startswith("bytes:") or whole.text[start:end] == token
    with client.completions.create(stream=True, **settings) as stream:
        pieces = [c.choices[0].logprobs for c in stream]
    log_probs = [piece for piece in pieces if piece]
    assert [token for piece in log_probs for token in piece.tokens or []] == whole.logprobs.tokens
    assert [
        offset for piece in log_probs for offset in piece.text_offset or []
    ] == whole.logprobs.text_offset
    assert [value for piece in log_probs for value in piece.token_logprobs or []] == pytest.approx(
        whole.logprobs.token_logprobs
    )
