"""The chat page as a person uses it, in headless Chromium."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from nemotron_core.metrics import RUNNING_METRIC
from nemotron_serve.model_server import ModelServer
from tests.gateway.process import Running, running
from tests.serve.wire import metric
from tests.tiny_nemotron.answers import ExactAnswer
from tests.tools import debian_program
from tests.waiting import until

OPTIONS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]
DESKTOP = {"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}
SCREENSHOTS = os.environ.get("NEMOTRON_SCREENSHOTS")
"""A folder to keep pictures in, for a person to look at."""

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
|---|---|
| 1 | 2 |

***
<img src=x onerror="document.title='attacked'"><script>document.title='attacked'</script>
[bad](javascript:alert(1)) ![picture](https://example.org/p.png)
```
open fence"""


class Page:
    """The chat page in a browser."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        return [element.text for element in self.driver.find_elements("css selector", css)]

    def write(self, text: str) -> None:
        """Type a text into the question's box, with newlines that do not send it."""
        for number, line in enumerate(text.split("\n")):
            if number:
                self.find("#question").send_keys(Keys.SHIFT, Keys.ENTER)
            self.find("#question").send_keys(line)

    def ask(self, text: str) -> str:
        """Send a question and return the whole answer."""
        before = len(self.texts(".assistant"))
        self.write(text)
        self.find("#question").send_keys(Keys.ENTER)
        until(lambda: len(self.texts(".assistant .note")) > before)
        return self.texts(".assistant .text")[-1]

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def screen(self, name: str, metrics: dict[str, Any], scheme: str = "light") -> None:
        """Change the screen, and take a picture of the page."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        if SCREENSHOTS:
            self.driver.save_screenshot(str(Path(SCREENSHOTS, f"{name}.png")))


@pytest.fixture(scope="module")
def driver() -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = debian_program("chromium")
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, Service(debian_program("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def page(driver: WebDriver, gateway: Running) -> Iterator[Page]:
    with quiet(driver, gateway.url):
        yield Page(driver, gateway.url)


@contextmanager
def quiet(driver: WebDriver, url: str) -> Iterator[None]:
    """Check that the console stays empty and that no other server gets a request."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    yield
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    assert all(requested.startswith(f"{url}/") for requested in urls), urls


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
    assert "cut off at its longest" in page.texts(".note")[-1]
    assert "3 tokens" in page.texts(".note")[-1]


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
        until(lambda: page.texts(".note"))
        stopped = "stopped" in page.texts(".note")[-1]
    until(lambda: metric(server, RUNNING_METRIC) == 0)
    page.find("#question").send_keys(Keys.ARROW_UP)
    assert page.find("#question").get_attribute("value") == "Go on"
    assert page.texts("#turns li") == []


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
    for part in (
        "<h3>Title</h3>", "<strong>bold</strong>", "<em>soft</em>", "<del>gone</del>",
        "<code>code</code>", 'href="https://example.org/a_(b)"', 'href="https://example.org/x"',
        "snake_case_name and 2 * 3 * 4 stay", "<li>one<ol><li>deep</li><li>deeper</li></ol></li>",
        "<blockquote><p>quoted</p></blockquote>", '<span class="t-key">def</span>',
        '<span class="t-note"># note</span>', '<span class="t-text">"text"</span>',
        "<th>a</th>", "<td>2</td>", "<hr>", "&lt;img src=x", "[bad](javascript:alert(1))",
        "open fence</code>",
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
        assert page.script("return localStorage.length + sessionStorage.length") == 0


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
