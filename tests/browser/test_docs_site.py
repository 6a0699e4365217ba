"""The site of docs/ in a real browser, from its folder: no errors, nothing fetched, no sideways scrolling, a search."""

from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "site"
# 404.html is for a server, which gives it with paths of its own.
PAGES = sorted(path.name for path in SITE.glob("*.html") if path.name != "404.html")
# A phone, a tablet, a desktop.
WIDTHS = (360, 768, 1200)
PATIENCE_S = 30
LOADED = "return document.readyState == 'complete' && [...document.images].every(image => image.complete)"
MISSING = "return [...document.images].filter(image => !image.naturalWidth).map(image => image.src)"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not PAGES, reason="no site/: make docs")]


def opened(browser, page: str) -> None:
    browser.open(SITE / page)
    browser.wait(LOADED, seconds=PATIENCE_S)


def from_elsewhere(browser) -> list[str]:
    """What was asked for outside the folder; the page itself was asked for, or the log is of no use."""
    requests = browser.requests()
    assert any(url.endswith(".html") for url in requests)
    return [url for url in requests if not url.startswith(f"{SITE.as_uri()}/")]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_no_error_fetches_nothing_and_fits_every_width(page, browser):
    browser.resize(WIDTHS[0])
    opened(browser, page)
    assert browser.console() == []
    assert browser.run(MISSING) == []
    assert from_elsewhere(browser) == []
    for width in WIDTHS:
        browser.resize(width)
        # The search box moves to its place for a moment.
        browser.wait(
            "return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
            " <= document.documentElement.clientWidth",
            seconds=PATIENCE_S,
        )
        assert browser.sideways() <= 0


@pytest.mark.parametrize("width", [360, 1200])
def test_the_search_finds_a_word_without_a_server(width, browser):
    browser.resize(width)
    opened(browser, "index.html")
    browser.run("document.querySelector('label[for=__search]').click()")
    browser.wait("return document.activeElement.matches('input.md-search__input')", seconds=PATIENCE_S)
    browser.press("near_duplicates")
    found = browser.wait(
        "const links = [...document.querySelectorAll('.md-search-result__item a')].map(link => link.href);"
        # Those of the letters typed so far come first.
        "return links.some(link => link.includes('pairs.html')) && links",
        seconds=PATIENCE_S,
    )
    assert any("pairs.html" in link for link in found)
    assert from_elsewhere(browser) == []
    assert browser.console() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "flags.html", "architecture.html"])
def test_a_page_follows_the_colours_of_the_system_and_can_be_read(page, scheme, browser):
    browser.theme(scheme)
    opened(browser, page)
    colours = browser.run(
        "return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    )
    assert (min(colours) > 200) == (scheme == "light")
    assert (max(colours) < 80) == (scheme == "dark")
