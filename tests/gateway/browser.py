"""The chat page in headless Chromium, as the tests drive it."""

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

from tests.gateway.process import Running
from tests.tools import debian_program
from tests.waiting import until

OPTIONS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
OPTIONS += ["--disable-background-networking", "--disable-component-update"]
DESKTOP = {"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 780, "deviceScaleFactor": 2, "mobile": True}
SCREENSHOTS = os.environ.get("NEMOTRON_SCREENSHOTS")
"""A folder to keep pictures in, for a person to look at."""


class Page:
    """The chat page in a browser."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        driver.get(url)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element("css selector", css)

    def texts(self, css: str) -> list[str]:
        """Return the visible text of each element, in one step: the page may be drawn again."""
        source = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".map(node => node.checkVisibility() ? node.innerText.trim() : '')"
        )
        texts: list[str] = self.script(source, css)
        return texts

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

    def act(self, action: str, place: int = -1) -> None:
        """Press the button of an action, by default of the last turn that has one."""
        buttons = self.driver.find_elements("css selector", f"[data-action={action}]")
        buttons[place].click()

    def finish(self) -> None:
        """Wait until no answer is being written."""
        until(lambda: self.find("#turns").get_attribute("aria-busy") == "false")

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
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", DESKTOP)
    with quiet(driver, gateway.url):
        yield Page(driver, gateway.url)


@contextmanager
def quiet(driver: WebDriver, url: str) -> Iterator[None]:
    """Check that the console stays empty and that no other server gets a request.

    The page finds nothing that it has kept before.
    """
    driver.get("about:blank")
    stored = {"origin": url, "storageTypes": "local_storage"}
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", stored)
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
    own = (f"{url}/", f"blob:{url}/")
    assert all(requested.startswith(own) for requested in urls), urls
