"""The report of 2,000 pairs as a reader meets it, in a real browser: quick, quiet, legible, inert."""

import json
import math
import re
from pathlib import Path

import gallery_world
import pytest
from stage2_world import pairs_rows

from data_engine.pipeline.pair import read_funnel
from data_engine.reporting.page import report_text
from data_engine.reporting.render import escaped_json

pytestmark = pytest.mark.browser

WIDTHS, THEMES = (360, 768, 1200), ("light", "dark")
CARDS = "return [...document.querySelectorAll('#gallery article.pair')].map(card => +card.dataset.number)"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return gallery_world.make(tmp_path_factory.mktemp("gallery") / "world")


@pytest.fixture(scope="module")
def work_dir(world, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("work")
    gallery_world.finish(world, made)
    return made


@pytest.fixture(scope="module")
def page(world, work_dir) -> Path:
    made = work_dir / "page.html"
    made.write_text(report_text(work_dir, world.questions(), read_funnel(work_dir)), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
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


def choose(browser, control: str, value: str) -> None:
    """As a reader does: set a field and tell the page."""
    browser.run(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event(field.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}))",
        control, value,
    )  # fmt: skip


def test_the_page_of_two_thousand_photographs_is_below_40_megabytes_and_opens_in_two_seconds(browser, page, shown):
    assert len(shown) == 2000
    assert len({pair["idx"] for pair in shown}) > 500
    assert page.stat().st_size < 40_000_000
    times = []
    for _ in range(3):
        browser.open(page)
        script = """
            const [page] = performance.getEntriesByType('navigation');
            return page.loadEventEnd && document.querySelector('#gallery article.pair') ? page.loadEventEnd : 0"""
        times.append(browser.wait(script))
    print(f"\n{page.stat().st_size / 1e6:.1f} MB opens in {sorted(times)[1]:.0f} ms (of three: {sorted(times)})")
    assert min(times) < 2000


@pytest.mark.parametrize("wanted", ["zebra", "q0700", "w", "picture 89", "nothing of the kind"])
def test_a_search_is_answered_within_100_ms_by_the_pairs_that_hold_the_text(opened, shown, wanted):
    script = """
        const [wanted, done] = arguments, field = document.getElementById('search'), start = performance.now();
        field.value = wanted;
        field.dispatchEvent(new Event('input', {bubbles: true}));
        requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));"""
    times = []
    for text in (wanted, "", wanted, "", wanted):
        times.append(opened.driver.execute_async_script(script, text))
    print(f"\n{wanted!r} is answered in {max(times):.0f} ms at most of {len(times)}")
    assert min(times[::2]) < 100
    hits = [
        pair["number"]
        for pair in shown
        if any(wanted in str(pair[name]).lower() for name in ("idx", "question", "chosen", "rejected"))
    ]
    told = opened.run("return document.getElementById('shown').textContent")
    assert told == f"{len(hits)} of {len(shown)} pairs match"
    cards = opened.run(CARDS)
    assert len(cards) >= min(10, len(hits))
    assert set(cards) <= set(hits)


def test_nothing_is_asked_of_a_network_and_nothing_goes_wrong(opened, page):
    for value in ("margin-up", "length", "disagreement", "margin"):
        choose(opened, "sort", value)
    # Again and again: the page may still grow.
    to_the_end = "window.scrollTo(0, document.body.scrollHeight); "
    opened.wait(f"{to_the_end}return ({CARDS.removeprefix('return ')}).length > 40")
    choose(opened, "search", "okapi")
    assert opened.console() == []
    assert {url.partition("#")[0] for url in opened.requests()} == {page.as_uri()}


def test_hostile_texts_are_shown_and_do_nothing(opened, shown):
    hostile = [pair for pair in shown if pair["idx"] < f"q{len(gallery_world.HOSTILE):04d}"]
    assert len({pair["question"] for pair in hostile}) >= len(gallery_world.HOSTILE) - 3
    for pair in hostile:
        opened.run(f"location.hash = '#pair={pair['number']}'")
        card = f"#gallery article.pair[data-number='{pair['number']}']"
        opened.wait(f'return document.querySelector("{card}") !== null')
        for side in ("question", "chosen", "rejected"):
            text = opened.run(f'return document.querySelector("{card} .{side}").textContent')
            assert text == pair[side]
    assert opened.run("return window.broken === undefined")
    foreign = "script, style, svg, iframe, link, a[href^='http'], a[href^='javascript'], img:not([src^='data:'])"
    inserted = f"#gallery :is({foreign})"
    assert opened.run(f'return document.querySelectorAll("{inserted}").length') == 0
    assert opened.console() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_has_to_be_scrolled_sideways(opened, shown, width):
    opened.resize(width)
    assert opened.sideways() <= 0
    # The pairs with words of 300 letters, too.
    longest = next(pair["number"] for pair in shown if "w" * 300 in pair["question"])
    opened.run(f"location.hash = '#pair={longest}'")
    opened.wait(f"return document.querySelector(\"article.pair[data-number='{longest}']\") !== null")
    assert opened.sideways() <= 0
    # Nor within a pair, whose texts wrap.
    wide = """
        return [...document.querySelectorAll('#gallery article.pair *')].filter(one =>
            one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== 'inline')
            .map(one => one.className)"""
    assert opened.run(wide) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_letter_of_a_chart_is_cut_off_or_smaller_than_nine_pixels(opened, width):
    opened.resize(width)
    cut = """
        return [...document.querySelectorAll("svg text")].filter(one => {
            const own = one.getBoundingClientRect(), all = one.closest("svg").getBoundingClientRect();
            return own.left < all.left - 1 || own.right > all.right + 1 || own.bottom > all.bottom + 1;
        }).map(one => one.textContent)"""
    assert opened.run(cut) == []
    sizes = """
        return [...document.querySelectorAll("svg text")].map(one => parseFloat(getComputedStyle(one).fontSize)
            * one.closest("svg").getBoundingClientRect().width / one.closest("svg").viewBox.baseVal.width)"""
    assert min(opened.run(sizes)) >= 9


@pytest.mark.parametrize("values", [False, True], ids=["values-hidden", "values-shown"])
@pytest.mark.parametrize("theme", THEMES)
def test_each_text_has_a_contrast_of_4_5_with_what_is_behind_it(opened, theme, values):
    opened.theme(theme)
    if values:
        opened.run("document.getElementById('values').click()")
    ratio, where = opened.worst_contrast()
    print(f"\n{theme}: {ratio:.2f} at {where}")
    assert ratio >= 4.5, where
    # The theme is one: its ground is dark or bright.
    ground = opened.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (brightness < 90) == (theme == "dark"), ground


def test_numbers_of_any_size_are_told_by_figures_that_count(browser, page, shown, tmp_path):
    """Margins of a reward a token are small, and a rule may reward by any number."""
    told = {0.00042: "+0.00042", -0.0000005: "-5.0e-7", 0.125: "+0.125", 1e30: "+1.000e+30", 0.0: "+0.000"}
    text = page.read_text("utf-8")
    at = text.index('id="data">') + len('id="data">')
    data, end = json.JSONDecoder().raw_decode(text[at:])
    data["pairs"] = data["pairs"][: len(told)]
    for pair, value in zip(data["pairs"], told, strict=True):
        pair["margin"], pair["rewards"] = value, {"rule": [value, 0.25]}
    (tmp_path / "index.html").write_text(text[:at] + escaped_json(data) + text[at + end :], "utf-8")
    browser.open(tmp_path / "index.html")
    browser.wait("return document.querySelectorAll('#gallery article.pair').length === 5")
    for number, says in enumerate(told.values()):
        card = f"document.querySelector('article[data-number=\"{number}\"]')"
        assert browser.run(f"return {card}.querySelector('.margin').textContent") == f"margin {says}"
        assert browser.run(f"return {card}.querySelector('h4 span').textContent").startswith(f"{says} rule")


def test_the_turns_before_a_question_open_at_a_click_and_are_searched(browser, page, tmp_path):
    text = page.read_text("utf-8")
    at = text.index('id="data">') + len('id="data">')
    data, end = json.JSONDecoder().raw_decode(text[at:])
    data["pairs"] = data["pairs"][:2]
    data["pairs"][1]["before"] = [["user", "Is it <b>okapi</b>?"], ["assistant", "It is."]]
    (tmp_path / "index.html").write_text(text[:at] + escaped_json(data) + text[at + end :], "utf-8")
    browser.open(tmp_path / "index.html")
    browser.wait("return document.querySelectorAll('#gallery article.pair').length === 2")
    assert browser.run("return document.querySelectorAll('details.before').length") == 1
    turns = "[...document.querySelectorAll('article[data-number=\"1\"] .before p')]"
    assert browser.run(f"return {turns}.some(turn => turn.checkVisibility())") is False
    browser.run("document.querySelector('details.before summary').click()")
    assert browser.run(f"return {turns}.every(turn => turn.checkVisibility())") is True
    assert browser.run(f"return {turns}.map(turn => turn.textContent)") == [
        "user Is it <b>okapi</b>?", "assistant It is."
    ]  # fmt: skip
    choose(browser, "search", "okapi")
    browser.wait("return document.querySelectorAll('#gallery article.pair').length === 1")
    assert browser.run(CARDS) == [1]


def test_pairs_are_sorted_as_asked(opened, shown):
    def numbers() -> list[int]:
        return opened.run(CARDS)

    margin = [pair["margin"] for pair in shown]
    length = [abs(pair["words"][0] - pair["words"][1]) for pair in shown]
    for value, wanted in (
        ("margin", sorted(margin, reverse=True)),
        ("margin-up", sorted(margin)),
        ("length", sorted(length, reverse=True)),
    ):
        choose(opened, "sort", value)
        keys = length if value == "length" else margin
        opened.wait(f"return ({CARDS.removeprefix('return ')}).length >= 10")
        assert [keys[number] for number in numbers()][:10] == wanted[:10]


def test_pairs_are_filtered_by_status(opened, shown):
    options = opened.run("return [...document.getElementById('status').options].map(option => option.value)")
    assert set(options) == {"all", *(pair["status"] for pair in shown)}
    assert len(options) > 2
    for status in options[1:]:
        choose(opened, "status", status)
        cards = opened.run(CARDS)
        assert cards
        assert {shown[number]["status"] for number in cards} == {status}
        told = opened.run("return document.getElementById('shown').textContent")
        assert told.startswith(f"{sum(pair['status'] == status for pair in shown)} of ")


def test_a_link_opens_the_page_at_its_pair(browser, page, shown):
    number = 1234
    browser.open(page, f"#pair={number}")
    card = f"#gallery article.pair[data-number='{number}']"
    browser.wait(f'return document.querySelector("{card}") !== null')
    browser.wait(
        f'const box = document.querySelector("{card}").getBoundingClientRect(); '
        "return box.top < innerHeight && box.bottom > 0"
    )
    assert browser.run(f'return document.querySelector("{card} .question").textContent') == shown[number]["question"]


def test_the_keyboard_is_enough(opened):
    opened.press("j")
    first = opened.run("return document.activeElement.dataset.number")
    opened.press("j")
    second = opened.run("return document.activeElement.dataset.number")
    cards = opened.run(CARDS)
    assert [int(first), int(second)] == cards[:2]
    assert opened.run("return location.hash") == f"#pair={second}"
    opened.press("k")
    assert opened.run("return document.activeElement.dataset.number") == first
    opened.press("/")
    assert opened.run("return document.activeElement.id") == "search"
    opened.press("zebra")
    assert opened.run("return document.getElementById('search').value") == "zebra"
    opened.press("\ue00c")
    assert opened.run("return document.getElementById('search').value") == ""


def test_a_focus_can_be_seen_where_it_is(opened):
    opened.press("j")
    outline = opened.run(
        "const style = getComputedStyle(document.activeElement); return [style.outlineStyle, style.outlineWidth]"
    )
    assert outline[0] != "none"
    assert float(outline[1].removesuffix("px")) >= 1


def test_each_token_tells_the_difference_of_its_log_probs(opened, shown, world, work_dir):
    rows = {(row["idx"], row["sample_index"]): row for row in world.rows}
    indexes = {(row["idx"], row["chosen"], row["rejected"]): row for row in pairs_rows(work_dir)}
    for pair in (shown[0], shown[777], shown[-1]):
        opened.run(f"location.hash = '#pair={pair['number']}'")
        card = f"#gallery article.pair[data-number='{pair['number']}']"
        opened.wait(f'return document.querySelector("{card}") !== null')
        row = indexes[pair["idx"], pair["chosen"], pair["rejected"]]
        for side in ("chosen", "rejected"):
            tokens = opened.run(
                f'return [...document.querySelectorAll("{card} .{side} .token")]'
                ".map(one => [one.textContent, one.title])"
            )
            scored = rows[pair["idx"], row[f"{side}_index"]]
            differences = [b - a for a, b in zip(scored["instruct"], scored["reward"], strict=True)]
            assert "".join(text for text, _ in tokens) == pair[side]
            told = [(float(re.match(r"[-+][\d.]+", title)[0]), title) for _, title in tokens]
            # One span a token, but where several wrote one character, which tells of them together.
            assert math.fsum(value for value, _ in told) == pytest.approx(sum(differences), abs=6e-4 * len(told))
            if len(told) == len(differences):
                assert [value for value, _ in told] == pytest.approx(differences, abs=6e-4)
        assert opened.run(f'return document.querySelectorAll("{card} .differs").length') > 0


TOLD = """
    const line = document.getElementById("token"), box = line.getBoundingClientRect();
    return line.checkVisibility() && box.left >= 0 && box.right <= innerWidth && box.bottom <= innerHeight
        ? line.textContent : null"""


def test_a_tap_on_a_token_tells_its_value_and_so_do_the_arrow_keys(opened):
    opened.resize(360)
    assert opened.run(TOLD) is None
    # The last token of a line, at the right edge, where a window would cut off what stands beside it.
    place, titles = opened.run("""
        const tokens = [...document.querySelectorAll("#gallery .chosen .token")].filter(one => one.textContent.trim());
        tokens[0].scrollIntoView({block: "center"});
        const first = tokens[0].getBoundingClientRect().bottom;
        const at = tokens.findIndex(one => one.getBoundingClientRect().top > first) - 1;
        const box = tokens[at].getClientRects()[0], middle = {x: box.x + box.width / 2, y: box.y + box.height / 2};
        return [middle, [tokens[at], tokens[at].nextElementSibling].map(one => one.title)]""")
    opened.tap(place["x"], place["y"])
    assert opened.wait(TOLD).endswith(f"” {titles[0]}")
    opened.press("\ue014")
    assert opened.wait(TOLD).endswith(titles[1])
    # Tab comes back to one token of this answer, and to no other.
    stops = 'return document.activeElement.parentElement.querySelectorAll("[tabindex=\\"0\\"]").length'
    assert opened.run(stops) == 1
    opened.press("\ue004")
    first_of_rejected = opened.run('return document.querySelector("#gallery .rejected .token").title')
    assert opened.wait(TOLD).endswith(first_of_rejected)
    opened.press("/")
    assert opened.run(TOLD) is None
    assert opened.console() == []


def test_a_text_from_right_to_left_is_read_so_and_its_arrows_go_with_it(opened, shown):
    number = next(pair["number"] for pair in shown if pair["question"].startswith("ما") and all(pair["heat"]))
    opened.run(f"location.hash = '#pair={number}'")
    card = f"#gallery article.pair[data-number='{number}']"
    opened.wait(f'return document.querySelector("{card}") !== null')
    direction = f'return getComputedStyle(document.querySelector("{card} .%s")).direction'
    assert [opened.run(direction % part) for part in ("question", "chosen", "facts")] == ["rtl", "rtl", "ltr"]
    titles = opened.run(f'return [...document.querySelectorAll("{card} .chosen .token")].map(one => one.title)')
    opened.run(f'document.querySelector("{card} .chosen .token").focus()')
    opened.press("\ue012", "\ue012")
    assert opened.wait(TOLD).endswith(titles[2])
    opened.press("\ue014")
    assert opened.wait(TOLD).endswith(titles[1])


@pytest.mark.parametrize(
    ("one", "other", "only"),
    [
        ("a red cat", "a blue cat", ("red", "blue")),
        ("一只红色的狗坐着", "一只蓝色的狗坐着", ("红", "蓝")),
        ("लाल कुत्ता", "नीली कुत्ता", ("लाल", "नीली")),
        ("كَلْبٌ أَحْمَرُ", "كَلْبٌ صغير", ("أَحْمَرُ", "صغير")),
        ("", "a", ("", "a")),
    ],
    ids=["english", "chinese", "hindi", "arabic", "empty"],
)
def test_words_that_only_one_answer_has_are_whole_words_of_any_script(opened, one, other, only):
    found = opened.run("return differing(arguments[0], arguments[1])", one, other)
    cut = [[text[start:end] for start, end in spans] for text, spans in zip((one, other), found, strict=True)]
    assert cut == [[word] if word else [] for word in only]


def test_heat_and_difference_are_seen_without_colour(opened):
    """Signs and sizes by lines of other kinds and widths: in grey, two tokens of opposite signs still look unlike."""
    kinds = opened.run(r"""
        const colourless = text => text.replace(/(rgba?|color|oklch)\([^)]*\)/g, "");
        const kind = one => {
            const style = getComputedStyle(one);
            return [style.borderBottomStyle, style.textDecorationLine, style.textDecorationStyle,
                style.boxShadow !== "none", colourless(style.backgroundImage).slice(0, 60)].join();
        };
        const tokens = [...document.querySelectorAll("#gallery .token:not(.differs)")]
            .filter(one => one.textContent.trim() && Math.abs(parseFloat(one.title)) > 1);
        return ["+", "-"].map(sign => [...new Set(tokens.filter(one => one.title.startsWith(sign)).map(kind))]);""")
    assert kinds[0]
    assert kinds[1]
    assert not set(kinds[0]) & set(kinds[1])
