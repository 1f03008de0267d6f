"""Conversations on the chat page: kept, changed, written to files and read from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.browser import Page, driver, page
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import until

__all__ = ["driver", "page"]


def find(answers: list[ExactAnswer], *roles: str) -> ExactAnswer:
    return next(a for a in answers if tuple(m.role for m in a.question.messages) == roles)


def turns(page: Page) -> list[str]:
    return page.texts("#turns .text")


def take_file(page: Page, folder: Path, content: object) -> str:
    """Import a file, and return what the page says about it."""
    path = folder / "imported.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    page.script("document.getElementById('storage').textContent = ''")
    page.find("#file").send_keys(str(path))
    until(lambda: page.find("#storage").text)
    return page.find("#storage").text


def download(page: Page, button: str, name: str, folder: Path) -> Any:
    behavior = {"behavior": "allow", "downloadPath": str(folder)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    page.find(button).click()
    until((folder / name).exists)
    return json.loads((folder / name).read_text())


def test_conversations_are_kept_until_they_are_deleted(
    page: Page, answers: list[ExactAnswer]
) -> None:
    questions = [a.question for a in answers if len(a.question.messages) == 1][:2]
    texts = [question.messages[0].content for question in questions]
    assert page.ask(texts[0]) == questions[0].answer
    page.find("#new").click()
    assert page.ask(texts[1]) == questions[1].answer
    page.driver.refresh()
    until(lambda: turns(page) == [texts[1], questions[1].answer])
    if not page.find("#chats").is_displayed():
        page.find("#open-chats").click()
    until(lambda: page.texts("#list .title") == [texts[1], texts[0]])
    page.driver.find_elements("css selector", "#list .title")[1].click()
    until(lambda: turns(page) == [texts[0], questions[0].answer])
    assert page.texts("#list [aria-current]") == [texts[0]]
    page.find("#list [aria-current] + button").click()
    page.driver.switch_to.alert.accept()
    until(lambda: page.texts("#list .title") == [texts[1]])
    assert turns(page) == [texts[1], questions[1].answer]
    page.driver.refresh()
    until(lambda: turns(page) == [texts[1], questions[1].answer])


def test_a_file_has_all_of_a_conversation(
    page: Page, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    exact = find(answers, "system", "user")
    system, user = (message.content for message in exact.question.messages)
    page.find("#open-settings").click()
    page.find("#system").send_keys(system)
    page.find("#close-settings").click()
    page.ask(user)
    page.find("#open-chats").click()
    content = download(page, "#export-all", "conversations.json", tmp_path)
    (conversation,) = content["conversations"]
    assert conversation["title"] == user
    assert conversation["system"] == system
    assert [(t["role"], t["content"]) for t in conversation["turns"]] == [
        ("user", user),
        ("assistant", exact.question.answer),
    ]
    assert conversation["turns"][1]["answerTokens"] == len(exact.token_ids)
    assert download(page, "#export", "conversation.json", tmp_path) == content
    page.find("#list [aria-current] + button").click()
    page.driver.switch_to.alert.accept()
    until(lambda: turns(page) == [])
    assert page.find("#system").get_attribute("value") == ""
    assert take_file(page, tmp_path, content) == "1 imported."
    until(lambda: turns(page) == [user, exact.question.answer])
    assert page.find("#system").get_attribute("value") == system
    assert f"{len(exact.token_ids)} tokens" in page.texts(".assistant .note")[0]


def test_messages_of_the_api_are_taken_and_go_on(
    page: Page, answers: list[ExactAnswer], tmp_path: Path
) -> None:
    exact = find(answers, "user", "assistant", "user")
    messages = [message.as_dict() for message in exact.question.messages]
    assert take_file(page, tmp_path, {"messages": messages[:2]}) == "1 imported."
    until(lambda: turns(page) == [message["content"] for message in messages[:2]])
    assert page.ask(messages[2]["content"]) == exact.question.answer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "this is no JSON"),
        ({"a": 1}, "there are neither conversations nor messages in it"),
        ([{"role": "tool", "content": "x"}], 'conversation 1: message 1 has the role "tool"'),
        ({"conversations": [{}]}, "conversation 1: it has no turns"),
        ([{"role": "user", "content": 1}], "conversation 1: message 1 has no text"),
    ],
)
def test_a_wrong_file_is_refused(content: object, message: str, page: Page, tmp_path: Path) -> None:
    assert message in take_file(page, tmp_path, content)
    assert page.script("return Object.keys(localStorage)") in ([], ["nemotron.settings"])


def test_an_edited_turn_replaces_what_came_after_it(page: Page, answers: list[ExactAnswer]) -> None:
    conversation, other = find(answers, "user", "assistant", "user"), find(answers, "user")
    first, _middle, second = (message.content for message in conversation.question.messages)
    page.ask(first)
    page.ask(second)
    page.act("edit", 0)
    box = page.find(".editor textarea")
    assert box.get_attribute("value") == first
    box.clear()
    box.send_keys(other.question.messages[0].content)
    page.find(".editor button[type=submit]").click()
    until(lambda: turns(page) == [other.question.messages[0].content, other.question.answer])
    page.finish()
    page.act("edit", 0)
    page.act("cancel-edit")
    assert turns(page) == [other.question.messages[0].content, other.question.answer]


def test_an_answer_is_made_again(page: Page, answers: list[ExactAnswer]) -> None:
    exact = find(answers, "user")
    page.ask(exact.question.messages[0].content)
    page.script("document.getElementById('max_tokens').value = 3")
    page.act("regenerate")
    until(
        lambda: page.texts(".assistant .note") and "3 tokens" in page.texts(".assistant .note")[0]
    )
    assert len(turns(page)) == 2
    # If it fails, the answer that was there stays.
    before = turns(page)
    page.script("document.getElementById('max_tokens').value = 5000")
    page.act("regenerate")
    until(lambda: page.texts(".failed"))
    assert turns(page) == before
    page.driver.get_log("browser")  # the refused request is on the console


def test_an_answer_without_text_says_why(page: Page, answers: list[ExactAnswer]) -> None:
    exact = find(answers, "user")
    page.script("document.getElementById('stop').value = arguments[0]", exact.question.answer[:3])
    shown = page.ask(exact.question.messages[0].content)
    assert shown == ("The model ended its answer at once, without any text (finish reason: stop).")
    page.script("document.getElementById('stop').value = ''")
    page.act("regenerate")
    until(lambda: turns(page)[-1] == exact.question.answer)


def test_the_context_that_is_used(page: Page, answers: list[ExactAnswer]) -> None:
    exact = find(answers, "user")
    assert not page.find("#context-row").is_displayed()
    page.ask(exact.question.messages[0].content)
    (turn,) = page.script(
        "return Object.values(localStorage).map(JSON.parse).flatMap(c => c.turns?.[1] ?? [])"
    )
    used = turn["promptTokens"] + turn["answerTokens"]
    assert page.find("#context-text").text == f"{used} of 4,096 tokens"
    assert page.script("return document.getElementById('context').value") == used


def test_a_browser_that_keeps_nothing_says_so(page: Page, answers: list[ExactAnswer]) -> None:
    exact = find(answers, "user")
    page.script(
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }"
    )
    assert page.ask(exact.question.messages[0].content) == exact.question.answer
    assert "keeps no conversations (QuotaExceededError)" in page.find("#storage").text


def test_copy(page: Page, answers: list[ExactAnswer]) -> None:
    exact = find(answers, "user")
    page.ask(exact.question.messages[0].content)
    permission = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", permission)
    page.act("copy")
    until(lambda: "Copied" in page.texts(".assistant .note")[0])
    copied = page.driver.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))"
    )
    assert copied == exact.question.answer
