"""The chat page in headless Chromium over a real server. Screenshots lie in build/screenshots afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from infer.small_run import write_small_run
from serve.in_process import EndlessEngine, served
from serve.running import Server, serving

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--lang=en-US"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
KEY = "sk-of-the-page"

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: install Debian's chromium and chromium-driver to test the chat page"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    run = write_small_run(folder / "run")
    with serving(run, folder / "log", "--api-key", KEY, "--model-name", "small") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 900)
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it. Nothing here depends on when the browser or the server gets to do something."""

    def __init__(self, browser: webdriver.Chrome, url: str, key: str | None = None) -> None:
        self.browser = browser
        browser.get(url)
        if key is not None:  # as if it had been entered in this tab
            browser.execute_script("sessionStorage.setItem('key', arguments[0])", key)  # type: ignore[no-untyped-call]
            browser.get(url)
            self.wait(lambda: self.at("model").text)

    def at(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def ask(self, question: str) -> None:
        """Send a question; the page is busy afterwards until the answer has ended."""
        before = len(self.texts("user"))
        self.at("question").send_keys(question, Keys.ENTER)
        self.wait(lambda: len(self.texts("user")) > before)

    def texts(self, role: str) -> list[str]:
        script = "return [...document.querySelectorAll(`.${arguments[0]} .text`)].map((one) => one.innerText)"
        return list(self.browser.execute_script(script, role))  # type: ignore[no-untyped-call]

    def wait(self, until: Callable[[], object]) -> None:
        ignored = [StaleElementReferenceException]
        WebDriverWait(self.browser, 100, 0.02, ignored).until(lambda _: until())

    def wait_for_answer(self) -> None:
        self.wait(lambda: not self.browser.find_elements(By.CSS_SELECTOR, ".busy"))

    def shot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def errors(self) -> list[str]:
        """What the browser complains of, a policy that was broken among it; the 401 before the key is none."""
        entries = self.browser.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE" and "401" not in entry["message"]]


def test_a_conversation_from_the_key_to_the_second_turn(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server.url)
    page.wait(lambda: page.at("key").is_displayed())  # the server wants one
    page.at("key").send_keys(KEY, Keys.TAB)
    page.wait(lambda: page.at("model").text == "small")
    assert not page.at("key").is_displayed()
    page.shot("empty")

    page.ask("你好")
    page.wait_for_answer()
    (first,) = page.texts("assistant")
    assert first and page.texts("user") == ["你好"]
    page.shot("answer")

    page.ask("你好")
    page.wait_for_answer()
    _, second = page.texts("assistant")
    assert second and second != first  # the same question after a conversation is another prompt
    assert page.errors() == []


def test_an_answer_grows_before_our_eyes_until_it_is_stopped_and_what_there_is_stays(
    browser: webdriver.Chrome,
) -> None:
    engine = EndlessEngine()  # an answer without an end: the page alone decides when it has grown and is stopped

    def client(url: str) -> None:
        page = Page(browser, url)
        page.wait(lambda: page.at("model").text)
        page.at("more").click()
        page.at("longest").send_keys("100")
        page.shot("settings")
        page.ask("天气")
        seen = ""
        for _ in range(3):
            page.wait(lambda seen=seen: len(page.texts("assistant")[0]) > len(seen))  # type: ignore[misc]
            (seen,) = page.texts("assistant")
        assert page.at("send").text == "Stop"
        page.at("send").click()
        page.wait_for_answer()
        page.wait(lambda: not engine.busy)  # the server has been told
        (left,) = page.texts("assistant")
        assert set(left) == {"a"} and len(left) >= len(seen)
        assert "stopped" in page.browser.find_element(By.CSS_SELECTOR, ".assistant .tools").text
        assert page.at("send").text == "Send"
        assert page.texts("assistant") == [left]
        assert engine.generations[0].request.options.max_new_tokens == 100
        page.shot("stopped")

    served(client, engine)


def test_language_theme_and_width_change_and_are_kept(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server.url, KEY)
    assert page.at("new").text == "New"
    page.at("language").click()
    before = browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    page.at("theme").click()
    assert browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color") != before
    page = Page(browser, server.url, KEY)
    assert page.at("new").text == "新对话"
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "zh-CN"
    page.ask("第一行")
    page.wait_for_answer()
    browser.set_window_size(500, 800)  # the least that a window of Chromium may be
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")  # type: ignore[no-untyped-call]
    page.shot("phone-dark-zh")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)
    page.at("theme").click()
    page.at("language").click()


def test_an_error_is_shown_where_it_happened_and_can_be_tried_again(browser: webdriver.Chrome, server: Server) -> None:
    page = Page(browser, server.url, KEY)
    browser.execute_script("model = 'another'")  # type: ignore[no-untyped-call]
    page.ask("<b>hello</b>")
    page.wait(lambda: browser.find_elements(By.CSS_SELECTOR, ".error"))
    assert "there is no model 'another' here" in browser.find_element(By.CSS_SELECTOR, ".error").text
    page.shot("error")
    browser.execute_script("model = 'small'")  # type: ignore[no-untyped-call]
    browser.find_element(By.CSS_SELECTOR, "[data-say=retry]").click()
    page.wait_for_answer()
    page.wait(lambda: any(page.texts("assistant")))
    assert page.texts("user") == ["<b>hello</b>"]  # text, not a tag
    assert not browser.find_elements(By.CSS_SELECTOR, ".error")
