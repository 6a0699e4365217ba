"""The site of docs/ in a real browser, from its folder: no errors, nothing fetched, no sideways scrolling, a search."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_site import is_elsewhere

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

SITE = Path(__file__).parents[2] / "site"
# 404.html is for a server, which gives it with paths of its own.
PAGES = sorted(path.name for path in SITE.glob("*.html") if path.name != "404.html")
# A phone, a tablet, a desktop.
WIDTHS = (360, 768, 1200)
PATIENCE_S = 30

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="no chromedriver: apt-get install chromium-driver"),
    pytest.mark.skipif(not PAGES, reason="no site/: make docs"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium, which notes what its pages say and ask for."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


def said(browser) -> list[str]:
    """What the pages wrote to the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser")]


def asked_for(browser) -> list[str]:
    """The addresses that the pages asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]


def becomes(browser, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 768}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def opened(browser, page: str) -> None:
    browser.get((SITE / page).as_uri())
    script = "return document.readyState == 'complete' && [...document.images].every(image => image.complete)"
    WebDriverWait(browser, PATIENCE_S).until(lambda _: browser.execute_script(script))


def fits(browser) -> bool:
    """Whether the page needs no sideways scrolling."""
    script = "const root = document.documentElement; return root.scrollWidth <= root.clientWidth"
    return browser.execute_script(script)


def test_the_console_and_the_requests_of_a_page_are_seen(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<script src="http://127.0.0.1:9/x.js"></script><script>nothing()</script>')
    said(browser), asked_for(browser)
    browser.get(page.as_uri())
    assert any("nothing is not defined" in line for line in said(browser))
    assert "http://127.0.0.1:9/x.js" in asked_for(browser)


def test_a_page_that_is_too_wide_is_seen(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<meta name="viewport" content="width=device-width"><div style="width: 500px">wide</div>')
    browser.get(page.as_uri())
    for width, expected in ((360, False), (768, True)):
        becomes(browser, width)
        assert fits(browser) == expected


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_error_fetches_nothing_and_fits_every_width(page, browser):
    becomes(browser, WIDTHS[0])
    said(browser), asked_for(browser)
    opened(browser, page)
    assert said(browser) == []
    assert browser.execute_script("return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    requests = asked_for(browser)
    assert (SITE / page).as_uri() in requests
    assert [url for url in requests if is_elsewhere(url)] == []
    for width in WIDTHS:
        becomes(browser, width)
        # The search box moves to its place for a moment.
        WebDriverWait(browser, PATIENCE_S).until(lambda _: fits(browser), f"sideways scrolling at {width}")


@pytest.mark.parametrize("width", [360, 1200])
def test_the_search_finds_a_word_without_a_server(width, browser):
    becomes(browser, width)
    opened(browser, "index.html")
    asked_for(browser)
    browser.execute_script("document.querySelector('label[for=__search]').click()")
    field = browser.find_element(By.CSS_SELECTOR, "input.md-search__input")
    WebDriverWait(browser, PATIENCE_S).until(lambda _: field.is_displayed())
    field.send_keys("near_duplicates")
    found = WebDriverWait(browser, PATIENCE_S).until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, ".md-search-result__item a")
    )
    assert any("pairs.html" in link.get_attribute("href") for link in found)
    assert [url for url in asked_for(browser) if is_elsewhere(url)] == []
    assert said(browser) == []


@pytest.mark.parametrize(("scheme", "name"), [("light", "default"), ("dark", "slate")])
def test_the_pages_follow_the_colours_of_the_system(scheme, name, browser):
    becomes(browser, 1200, scheme)
    opened(browser, "architecture.html")
    assert browser.execute_script("return document.body.getAttribute('data-md-color-scheme')") == name
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])) / 3
    assert (bright > 200) == (scheme == "light")
