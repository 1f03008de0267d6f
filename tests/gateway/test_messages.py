"""Messages in every form that clients send, compared with the prompts that they stand for."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.process import Running

ASK = "<extra_id_1>Assistant\n"
EMPTY = "<extra_id_0>System\n\n"


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([turn("user", "Hi", name="bob")], f"{EMPTY}<extra_id_1>User\nHi\n{ASK}"),
        ([turn("developer", "Be brief."), turn("user", "Hi")],
         f"<extra_id_0>System\nBe brief.\n\n<extra_id_1>User\nHi\n{ASK}"),
        ([turn("system", "A"), turn("user", "Hi"), turn("system", "B")],
         f"<extra_id_0>System\nA\nB\n\n<extra_id_1>User\nHi\n{ASK}"),
        ([turn("user", "a"), turn("user", "b")],
         f"{EMPTY}<extra_id_1>User\na\n<extra_id_1>User\nb\n{ASK}"),
        ([turn("assistant", "Hello!"), turn("user", "Hi")],
         f"{EMPTY}<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nHi\n{ASK}"),
        ([turn("user", "a"), turn("assistant", "b")],
         f"{EMPTY}<extra_id_1>User\na\n<extra_id_1>Assistant\nb\n{ASK}"),
        ([turn("system", "A")], f"<extra_id_0>System\nA\n\n{ASK}"),
        ([turn("user", "a"), turn("assistant", None), turn("user", "b")],
         f"{EMPTY}<extra_id_1>User\na\n<extra_id_1>Assistant\n\n<extra_id_1>User\nb\n{ASK}"),
        ([turn("user", [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}])],
         f"{EMPTY}<extra_id_1>User\nab\n{ASK}"),
        ([turn("user", "a"),
          turn("assistant", "b", refusal=None, tool_calls=[], annotations=[], audio=None,
               function_call=None, reasoning_content="c"),
          turn("user", [])],
         f"{EMPTY}<extra_id_1>User\na\n<extra_id_1>Assistant\nb\n<extra_id_1>User\n\n{ASK}"),
    ],
)  # fmt: skip
def test_the_prompt(gateway: Running, messages: list[Any], prompt: str) -> None:
    chat = gateway.chat("", messages=messages, max_tokens=12)
    assert chat.status == 200, chat.text
    tokens = gateway.ask("POST", "/tokenize", {"messages": messages}).json["tokens"]
    assert tokens == gateway.ask("POST", "/tokenize", {"prompt": prompt}).json["tokens"]
    raw = gateway.complete(prompt, max_tokens=12).json
    assert chat.json["usage"]["prompt_tokens"] == raw["usage"]["prompt_tokens"] == len(tokens)
    text = raw["choices"][0]["text"]
    ends = raw["choices"][0]["finish_reason"] == "stop"
    expected = text.removesuffix("\n") if ends else text
    assert chat.json["choices"][0]["message"]["content"] == expected


def test_an_answer_is_continued(gateway: Running) -> None:
    whole = gateway.chat("Who are you?").json["choices"][0]["message"]["content"]
    begin = whole.partition(" ")[0]
    messages = [turn("user", "Who are you?"), turn("assistant", begin)]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    answer = gateway.chat("", messages=messages, **options)
    assert begin + answer.json["choices"][0]["message"]["content"] == whole
    user_last = gateway.chat("Hi", continue_final_message=True)
    assert "only an assistant's message can be continued" in user_last.message
    both = gateway.chat("Hi", continue_final_message=True, add_generation_prompt=True)
    assert "do not go together" in both.message
    bare = gateway.chat("Hi", add_generation_prompt=False, max_tokens=1)
    usage = gateway.chat("Hi", max_tokens=1).json["usage"]
    assert bare.json["usage"]["prompt_tokens"] < usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        (turn("tool", "a"), "messages.0.role", "no tool format"),
        (turn("robot", "a"), "messages.0.role", "there is no role 'robot'"),
        (turn("assistant", None, tool_calls=[{"id": "1"}]), "messages.0.tool_calls",
         "no tool format"),
        (turn("user", [{"type": "image_url", "image_url": {"url": "x"}}]),
         "messages.0.content.0.type", "this model reads text only, no 'image_url'"),
        (turn("user", 5), "messages.0.content", "valid"),
        ({"content": "a"}, "messages.0.role", "required"),
        (turn("user", "a\0b"), None, "NUL"),
    ],
)  # fmt: skip
def test_what_no_message_can_be(gateway: Running, message: Any, param: str, words: str) -> None:
    answer = gateway.chat("", messages=[message])
    assert answer.status == 400
    assert words in answer.message
    if param:
        assert answer.json["error"]["param"] == param
