"""The chat page by keyboard and for screen readers, checked by axe; and what a text cannot do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.gateway.browser import DESKTOP, PHONE, Page, driver, page, quiet
from tests.gateway.process import Running
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import until

__all__ = ["driver", "page"]

AXE = Path(__file__).with_name("axe") / "axe.min.js"
VENDOR = Path(__file__).parents[2] / "gateway" / "nemotron_gateway" / "page" / "vendor"
ANSWER = """# A title

Text with a [link](https://example.org/), `code` and

```python
def f(x):  # a comment
    return "text", 1
```

| a | b |
|---|--:|
| 1 | 2 |

- one
- two
"""
ATTACKS = [
    "<script>document.title='attacked'</script>",
    "<img src=x onerror=\"document.title='attacked'\">",
    "<svg onload=\"document.title='attacked'\"></svg>",
    "<iframe srcdoc=\"<script>parent.document.title='attacked'</script>\"></iframe>",
    "<a href=\"javascript:document.title='attacked'\">click</a>",
    "[click](javascript:document.title='attacked')",
    "[click](JaVaScRiPt:document.title='attacked')",
    "[click](&#106;avascript:document.title='attacked')",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:x)",
    "![x](javascript:document.title='attacked')",
    '!["onerror="document.title=\'attacked\'](https://example.org/x"onerror="y)',
    "<https://example.org/\"onmouseover=\"document.title='attacked'>",
    "```\"><img src=x onerror=\"document.title='attacked'\n</code></pre><script>1</script>\n```",
    "<math><mtext><table><mglyph><style><img src=x onerror=\"document.title='attacked'\">",
    "<form action=/x><button formaction=javascript:1>x</button></form>",
    "<style>body{display:none}</style><link rel=stylesheet href=//example.org/x.css>",
    "[x]: javascript:document.title='attacked'\n[x]",
    "|<img src=x onerror=1>|b|\n|-|-|\n|<script>1</script>|2|",
]


def violations(page: Page) -> list[Any]:
    """Return the rules that axe finds broken, with the elements."""
    page.script(AXE.read_text())
    found = page.driver.execute_async_script(
        "const done = arguments[0]; axe.run().then(({violations}) => done(violations.map("
        "v => [v.id, v.nodes.map(n => n.html.slice(0, 200))])), error => done(String(error)));"
    )
    assert isinstance(found, list), found
    return found


def test_axe_finds_nothing(page: Page, answers: list[ExactAnswer], tmp_path: Path) -> None:
    until(lambda: page.find("#state").text)
    assert violations(page) == []
    conversation = [
        {"role": "user", "content": "Show me"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Again"},
    ]
    file = tmp_path / "conversation.json"
    file.write_text(json.dumps(conversation))
    page.find("#file").send_keys(str(file))
    until(lambda: page.texts(".assistant .block"))
    for scheme in ("light", "dark"):
        page.screen(f"answer-{scheme}", DESKTOP, scheme)
        assert violations(page) == []
    page.find("#open-settings").click()
    if not page.find("#chats").is_displayed():
        page.find("#open-chats").click()
    page.act("edit")
    for scheme in ("light", "dark"):
        page.screen(f"panels-{scheme}", DESKTOP, scheme)
        assert violations(page) == []
    page.find(".editor textarea").send_keys(Keys.ESCAPE)
    page.find("#close-settings").click()
    page.find("#close-chats").click()
    page.script("document.getElementById('max_tokens').value = 5000")
    page.write("Hello")
    page.find("#question").send_keys(Keys.ENTER)
    until(lambda: page.texts(".failed"))
    page.screen("phone-failed", PHONE)
    assert violations(page) == []
    page.screen("desktop", DESKTOP)
    page.driver.get_log("browser")  # the refused request is on the console


def test_axe_finds_nothing_on_the_api_s_page(driver: WebDriver, gateway: Running) -> None:
    with quiet(driver, gateway.url):
        page = Page(driver, f"{gateway.url}/docs")
        until(lambda: page.texts("section"))
        assert violations(page) == []


def test_everything_is_reached_by_the_tab_key(page: Page, answers: list[ExactAnswer]) -> None:
    exact = next(a for a in answers if len(a.question.messages) == 1)
    page.ask(exact.question.messages[0].content)
    page.script("document.activeElement.blur(); getSelection().removeAllRanges();")
    page.script("document.querySelector('.skip').focus()")
    names = []
    for _ in range(40):
        name, outline = page.script(
            "const node = document.activeElement;"
            "return [node.getAttribute('aria-label') ?? node.labels?.[0]?.textContent.trim()"
            " ?? node.textContent.trim(), getComputedStyle(node).outlineStyle]"
        )
        names.append(name)
        if name != "Conversation":
            assert outline != "none", name
        if name == "Send":
            break
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
    expected = ["Skip to the question", "API", "Chats", "New chat", "Settings", "Conversation"]
    expected += ["Copy this turn", "Edit this message", "Copy this turn", "Regenerate this answer"]
    expected += ["Your message", "Send"]
    assert [name for name in names if name in expected] == expected
    # What is read out: not each piece of an answer, but the whole once it is there.
    announcement = page.script("return document.getElementById('announcement').textContent")
    assert announcement == exact.question.answer


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_runs_or_loads_anything(attack: str, page: Page, tmp_path: Path) -> None:
    file = tmp_path / "attack.json"
    turns = [{"role": "user", "content": attack}, {"role": "assistant", "content": attack}]
    file.write_text(json.dumps({"system": attack, "messages": turns}))
    page.find("#file").send_keys(str(file))
    until(lambda: page.texts("#turns .assistant"))
    page.script(
        "document.querySelectorAll('#turns a').forEach(a => a.dispatchEvent(new Event('x')))"
    )
    forbidden = "script, img, svg, iframe, style, link, form:not(.editor), math, object, [style]"
    found = page.script(
        "const all = [...document.querySelectorAll('#turns *, #list *')];"
        "return [all.filter(e => e.matches(arguments[0])).map(e => e.outerHTML),"
        " all.flatMap(e => e.getAttributeNames()).filter(name => name.startsWith('on')),"
        " all.filter(e => e.tagName === 'A').map(e => e.protocol)"
        " .filter(name => !/^(https?|mailto):$/.test(name))]",
        forbidden,
    )
    assert found == [[], [], []]
    assert page.driver.title == "Nemotron-4"


@pytest.mark.parametrize("folder", [VENDOR, AXE.parent], ids=["page", "axe"])
def test_libraries_of_others_are_as_published(folder: Path) -> None:
    libraries = json.loads((folder / "versions.json").read_text())
    assert libraries
    for library in libraries:
        data = (folder / library["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == library["sha256"], library["file"]
        assert library["license"] in ("MIT", "Apache-2.0", "BSD-3-Clause", "MPL-2.0")
    scripts = {path.name for path in folder.iterdir() if path.suffix in (".js", ".mjs")}
    assert scripts == {library["file"] for library in libraries}
