"""The chat page as a person uses it, in headless Chromium."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.keys import Keys

from nemotron_core.metrics import RUNNING_METRIC
from nemotron_serve.model_server import ModelServer
from tests.gateway.browser import DESKTOP, PHONE, Page, driver, page, quiet
from tests.gateway.process import Running, running
from tests.serve.wire import metric
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import until

__all__ = ["driver", "page"]

MARKDOWN = """# Title
Some **bold**, *soft*, ~~gone~~ and `code`, [a link](https://example.org/a_(b)) and
https://example.org/x. snake_case_name and 2 * 3 * 4 stay.

- one
  1. deep
  2. deeper
- two

> quoted

```python
def f(x: int) -> str:  # note
    return "text"
```

| a | b |
|---|--:|
| 1 | 2 |

***
<img src=x onerror="document.title='attacked'"><script>document.title='attacked'</script>
[bad](javascript:alert(1)) ![picture](https://example.org/p.png)
```
open fence"""


def test_a_conversation(page: Page, answers: list[ExactAnswer]) -> None:
    exact = next(
        a for a in answers if [m.role for m in a.question.messages] == ["user", "assistant", "user"]
    )
    first, middle, second = (m.content for m in exact.question.messages)
    assert page.find("#welcome").is_displayed()
    assert page.ask(first) == middle
    assert page.ask(second) == exact.question.answer
    assert page.texts(".user .text") == [first, second]
    note = page.texts(".assistant .note")[-1]
    assert f"{len(exact.token_ids)} tokens" in note
    assert "tokens/s" in note
    assert "in the prompt" in note
    page.screen("desktop-dark", DESKTOP, "dark")
    colour = page.script("return getComputedStyle(document.body).backgroundColor")
    assert colour == "rgb(21, 23, 19)"
    page.screen("desktop-light", DESKTOP)
    page.screen("phone", PHONE)
    width = page.script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width == [390, 390]
    sizes = [page.find(css).size for css in ("#send", "#question")]
    assert all(size["height"] >= 36 for size in sizes)
    page.screen("desktop-light", DESKTOP)
    page.find("#new").click()
    assert page.texts("#turns li") == []
    assert page.ask(first) == middle


def test_settings_reach_the_model(page: Page, answers: list[ExactAnswer]) -> None:
    exact = next(a for a in answers if [m.role for m in a.question.messages] == ["system", "user"])
    system, user = (m.content for m in exact.question.messages)
    page.screen("settings", DESKTOP)
    page.find("#question").send_keys(Keys.CONTROL, ",")
    assert page.find("#settings").is_displayed()
    page.find("#system").send_keys(system)
    page.screen("settings", DESKTOP)
    page.find("#system").send_keys(Keys.ESCAPE)
    assert not page.find("#settings").is_displayed()
    assert page.ask(user) == exact.question.answer
    page.find("#open-settings").click()
    page.find("#max_tokens").send_keys("3")
    page.find("#close-settings").click()
    page.find("#new").click()
    page.ask(user)
    assert "cut off at its longest" in page.texts(".assistant .note")[-1]
    assert "3 tokens" in page.texts(".assistant .note")[-1]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_frees_the_engine(how: str, page: Page, server: ModelServer) -> None:
    # At a high temperature the tiny model writes long answers. If exact ends first, try again.
    page.script("document.getElementById('temperature').value = 2")
    page.script("document.getElementById('max_tokens').value = 3900")
    stopped = False
    while not stopped:
        page.find("#new").click()
        page.write("Go on")
        page.find("#question").send_keys(Keys.ENTER)
        until(lambda: any(page.texts(".assistant .text")))
        page.script(
            "if (arguments[0] === 'button') document.getElementById('stop-answer').click();"
            "else document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}));",
            how,
        )
        until(lambda: page.texts(".assistant .note"))
        stopped = "stopped" in page.texts(".assistant .note")[-1]
    until(lambda: metric(server, RUNNING_METRIC) == 0)
    page.find("#question").send_keys(Keys.ARROW_UP)
    assert page.find(".editor textarea").get_attribute("value") == "Go on"
    page.find(".editor textarea").send_keys(Keys.ESCAPE)
    assert page.texts(".editor") == []
    assert page.texts(".user .text") == ["Go on"]


def test_a_refusal_is_shown_and_the_question_kept(page: Page) -> None:
    page.script("document.getElementById('max_tokens').value = 5000")
    page.write("Hello\nthere")
    page.find("#question").send_keys(Keys.ENTER)
    until(lambda: page.texts(".failed"))
    assert "more than the 4096 this model holds" in page.texts(".failed")[0]
    assert page.find("#question").get_attribute("value") == "Hello\nthere"
    # The failed request itself is on the console, and nothing else.
    (entry,) = page.driver.get_log("browser")
    assert "400" in entry["message"]


def test_markdown(page: Page) -> None:
    html = page.driver.execute_async_script(
        "const [source, done] = arguments;"
        "import('/page/markdown.js').then(({render}) => {"
        "  const box = document.createElement('div'); box.className = 'text';"
        "  box.append(render(source)); document.getElementById('turns').append(box);"
        "  done(box.innerHTML); });",
        MARKDOWN,
    )
    html = re.sub(r">\s+<", "><", html)  # white space between blocks
    for part in (
        "<h3>Title</h3>", "<strong>bold</strong>", "<em>soft</em>", "<s>gone</s>",
        "<code>code</code>", 'href="https://example.org/a_(b)"', 'href="https://example.org/x"',
        "snake_case_name and 2 * 3 * 4 stay", "<ol><li>deep</li><li>deeper</li></ol></li>",
        "<blockquote><p>quoted</p></blockquote>", '<span class="hljs-keyword">def</span>',
        '<span class="hljs-comment"># note</span>', '<span class="hljs-string">"text"</span>',
        "<th>a</th>", '<td class="to-right">2</td>', "<hr>", "&lt;img src=x",
        "[bad](javascript:alert(1))", '<a href="https://example.org/p.png"', "open fence</code>",
    ):  # fmt: skip
        assert part in html, part
    assert "<img" not in html
    assert "<script" not in html
    assert "javascript:alert" not in str(page.script("return [...document.links].map(a => a.href)"))
    assert page.driver.title == "Nemotron-4"


@pytest.mark.parametrize("text", ["**" * 5000, "`" * 9999, "[" * 9999, "> " * 5000, "- " * 5000,
                                  "_a" * 5000, "|-" * 5000, "\n".join(["* a"] * 3000)])  # fmt: skip
def test_markdown_that_is_hard(page: Page, text: str) -> None:
    """Rendering ends."""
    shown = page.driver.execute_async_script(
        "const [source, done] = arguments;"
        "import('/page/markdown.js').then(({render}) => done(render(source).childNodes.length));",
        text,
    )
    assert shown > 0


def test_nothing_foreign_runs(page: Page, gateway: Running) -> None:
    policy = gateway.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.script(
        "const s = document.createElement('div');"
        "try { s.innerHTML = '<b>x</b>'; document.title = 'attacked'; } catch (error) {}"
    )
    assert page.driver.title == "Nemotron-4"
    assert "TrustedHTML" in str(page.driver.get_log("browser"))


def test_a_key_is_asked_for(driver: WebDriver, triton: str, tmp_path: Path) -> None:
    environment = {"NEMOTRON_API_KEYS": "the-key"}
    with running(tmp_path, triton, environment=environment) as gateway:
        page = Page(driver, gateway.url)
        until(lambda: page.find("#key").is_displayed())
        assert page.find("#state").text == "needs an API key"
        page.find("#key").send_keys("wrong", Keys.TAB)
        until(lambda: page.find("#state").text == "this API key is not known")
        page.find("#key").clear()
        page.find("#key").send_keys("the-key", Keys.TAB)
        until(lambda: page.find("#state").text == "nemotron-4-340b-instruct")
        page.find("#close-settings").click()
        assert page.ask("Who are you?")
        stored = page.script("return JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert "Who are you?" in stored
        assert "the-key" not in stored


def test_the_api_s_page(driver: WebDriver, gateway: Running) -> None:
    with quiet(driver, gateway.url):
        page = Page(driver, f"{gateway.url}/docs")
        until(lambda: page.texts("section"))
        assert "/v1/chat/completions" in page.texts("h2 code")
        assert "tokens_to_generate" in page.texts("td code")


def test_files_are_not_sent_twice(gateway: Running) -> None:
    first = gateway.ask("GET", "/page/chat.js")
    assert first.headers["content-type"].startswith("text/javascript")
    again = gateway.ask("GET", "/page/chat.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.data) == (304, b"")
    assert gateway.ask("GET", "/page/__init__.py").status == 404
    assert gateway.ask("GET", "/page/../settings.py").status == 404
