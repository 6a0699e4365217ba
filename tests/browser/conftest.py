"""A real browser without a window, and a report of 2,000 pairs to open in it.

The browser is Debian's chromium, driven by selenium. Skipped where it is not on the machine.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import gallery_world
import pytest

from data_engine.preferences.pairs_metadata import read_funnel
from data_engine.reporting.page import report_text

BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

# The least contrast that any text of the page has with what lies behind it, as WCAG 2.2 defines it, and that text.
CONTRAST = """
const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
const pen = canvas.getContext("2d", {willReadFrequently: true});
const known = new Map();
function rgba(text) {
  if (!known.has(text)) {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = text;
    pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
    known.set(text, [r, g, b, a / 255]);
  }
  return known.get(text);
}
const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
const bare = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
function behind(element) {
  const own = rgba(getComputedStyle(element).backgroundColor);
  if (own[3] >= 0.999) return own;
  return over(own, element.parentElement ? behind(element.parentElement) : bare);
}
function opacity(element) {
  return element ? +getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
}
let worst = [Infinity, ""];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const text = texts.currentNode, element = text.parentElement;
  if (!text.data.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
  if (element.closest("script, style, noscript, option")) continue;
  const style = getComputedStyle(element), ground = behind(element);
  const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
  const seen = over([ink[0], ink[1], ink[2], ink[3] * opacity(element)], ground);
  const [dark, bright] = [light(seen), light(ground)].sort((a, b) => a - b);
  const ratio = (bright + 0.05) / (dark + 0.05);
  if (ratio < worst[0]) worst = [ratio, `${element.tagName}.${element.className?.baseVal ?? element.className}: ` +
    text.data.trim().slice(0, 60) + ` ${seen.map(Math.round)} on ${ground.map(Math.round)}`];
}
return worst;
"""


class Browser:
    """One tab; what it asked the network for, and what it told its console, since it was opened at an address."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, file: Path, anchor: str = "") -> None:
        """Load a file anew, whole, with nothing remembered of the page before."""
        self.driver.get("about:blank")
        self._logged()
        self.driver.get(file.as_uri() + anchor)

    def resize(self, width: int, height: int = 800) -> None:
        """CSS pixels of the page itself; below 500 a window cannot be made so narrow, so the device is told to be."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def theme(self, name: str) -> None:
        """light or dark, as the reader's system asks for it."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments):
        """What a function body of JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments, seconds: float = 10):
        """The first value of the script that is true. Raises TimeoutException after so many seconds."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: self.run(script, *arguments))

    def press(self, *keys: str) -> None:
        """Keys, one by one, for whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def tap(self, x: float, y: float) -> None:
        """A finger on a point of the window, in CSS pixels."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        actions = ActionBuilder(self.driver, mouse=PointerInput("touch", "finger"))
        actions.pointer_action.move_to_location(x, y).pointer_down().pointer_up()
        actions.perform()

    def sideways(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.run(
            "const page = document.scrollingElement; return Math.max(page.scrollWidth, document.body.scrollWidth)"
            " - page.clientWidth"
        )

    def worst_contrast(self) -> tuple[float, str]:
        """The least contrast of a visible text with what is behind it, and where it is."""
        ratio, where = self.run(CONTRAST)
        return float(ratio), where

    def console(self) -> list[str]:
        """Warnings and errors of the page, uncaught ones and broken rules of its security policy included."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, but for itself and for data that it holds."""
        logged = self._logged()
        asked = [one["params"]["request"]["url"] for one in logged if one["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:", "about:"))]

    def _logged(self) -> list[dict]:
        return [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]


@pytest.fixture(scope="session")
def driver() -> Iterator:
    if not BINARY or not DRIVER:
        pytest.skip("chromium or chromedriver is not on the machine")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BINARY
    # Chromium's sandbox refuses root; a container's /dev/shm may be too small; no page of these tests is on a network.
    flags = ["headless=new", "disable-dev-shm-usage", "hide-scrollbars", "host-resolver-rules=MAP * ~NOTFOUND"]
    for flag in [*flags, *(["no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield made
    made.quit()


@pytest.fixture
def browser(driver) -> Browser:
    """At desktop size, in the light theme, with an empty log."""
    made = Browser(driver)
    made.resize(1200)
    made.theme("light")
    made.console()
    return made


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> gallery_world.TokenWorld:
    return gallery_world.make(tmp_path_factory.mktemp("gallery") / "world")


@pytest.fixture(scope="session")
def work_dir(world, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("work")
    gallery_world.finish(world, made)
    return made


@pytest.fixture(scope="session")
def page(world, work_dir) -> Path:
    """The report, made once for all tests of it."""
    made = work_dir / "page.html"
    made.write_text(report_text(work_dir, world.questions(), read_funnel(work_dir)), encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def shown(page) -> list[dict]:
    """The pairs in the page's data, by their numbers."""
    text = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1]
    pairs = json.loads(text)["pairs"]
    assert [pair["number"] for pair in pairs] == list(range(len(pairs)))
    return pairs


@pytest.fixture
def opened(browser, page):
    """The page, open, with its first pairs in the gallery."""
    browser.open(page)
    browser.wait("return document.querySelector('#gallery article.pair') !== null")
    return browser
