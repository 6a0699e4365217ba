"""A pair in the report's gallery, in a real browser: its figures, its turns, and what its tokens and words tell."""

import json
import math
import random
import re
from pathlib import Path

import pytest
from gallery_page import CARDS, choose
from stage2_world import pairs_rows

from data_engine.reporting.render import escaped_json

pytestmark = pytest.mark.browser


def open_with(pairs: list[dict], browser, page: Path, folder: Path) -> None:
    """A copy of the page, in the folder, with these pairs in the place of its own."""
    text = page.read_text("utf-8")
    at = text.index('id="data">') + len('id="data">')
    data, end = json.JSONDecoder().raw_decode(text[at:])
    data["pairs"] = pairs
    (folder / "index.html").write_text(text[:at] + escaped_json(data) + text[at + end :], "utf-8")
    browser.open(folder / "index.html")
    browser.wait(f"return document.querySelectorAll('#gallery article.pair').length === {len(pairs)}")


def test_numbers_of_any_size_are_told_by_figures_that_count(browser, page, shown, tmp_path):
    """Margins of a reward a token are small, and a rule may reward by any number."""
    told = {0.00042: "+0.00042", -0.0000005: "-5.0e-7", 0.125: "+0.125", 1e30: "+1.000e+30", 0.0: "+0.000"}
    pairs = [shown[at] | {"margin": value, "rewards": {"rule": [value, 0.25]}} for at, value in enumerate(told)]
    open_with(pairs, browser, page, tmp_path)
    for number, says in enumerate(told.values()):
        card = f"document.querySelector('article[data-number=\"{number}\"]')"
        assert browser.run(f"return {card}.querySelector('.margin').textContent") == f"margin {says}"
        assert browser.run(f"return {card}.querySelector('h4').textContent").startswith(f"chosen {says} rule")


def test_counts_of_one_are_told_as_one(browser, page, shown, tmp_path):
    one = shown[0] | {"words": [1, 2], "chosen": "Yes", "rejected": "No way", "heat": [None, None]}
    open_with([one], browser, page, tmp_path)
    sides = browser.run("return [...document.querySelectorAll('article h4')].map(one => one.textContent)")
    assert [side.rpartition(" · ")[2] for side in sides] == ["1 word", "2 words"]
    assert browser.run("return document.getElementById('shown').textContent") == "1 of 1 pair"


def test_pairs_of_long_answers_come_one_by_one_so_that_keys_are_answered_meanwhile(browser, page, shown, tmp_path):
    """Forty of 2,000 tokens a side at once kept the page from answering for four seconds."""
    draw, pairs = random.Random(1), []
    for pair in shown[:30]:
        texts = [" ".join(f"w{draw.randrange(9)}" for _ in range(2000)) for _ in range(2)]
        heat = {"sizes": [2] + [3] * 1999, "values": [0.3, -0.3] * 1000}
        pairs.append(pair | {"chosen": texts[0], "rejected": texts[1], "heat": [heat, heat]})
    open_with(pairs, browser, page, tmp_path)
    browser.run("""
        window.added = [];
        new MutationObserver(seen => window.added.push(...seen.map(one => one.addedNodes.length)))
            .observe(document.getElementById("gallery"), {childList: true})""")
    choose(browser, "sort", "margin-up")
    browser.wait("return document.querySelectorAll('#gallery article').length === 30", seconds=30)
    added = browser.run("return window.added")
    assert sum(added) == 30
    assert max(added) <= 5


def test_the_picture_stays_in_view_along_a_long_answer(browser, page, shown, tmp_path):
    long = shown[0] | {"chosen": "a line\n" * 300, "heat": [None, None]}
    open_with([long], browser, page, tmp_path)
    browser.run("document.querySelector('article .chosen').scrollIntoView({block: 'center'})")
    place = "const box = document.querySelector('article img').getBoundingClientRect(); return [box.top, box.bottom]"
    top, bottom = browser.run(place)
    assert 0 <= top < bottom <= 800
    # Above the answers, on a phone, it would cover them.
    browser.resize(360)
    browser.run("document.querySelector('article .chosen').scrollIntoView({block: 'center'})")
    assert browser.run(place)[1] < 0


def test_the_turns_before_a_question_open_at_a_click_and_are_searched(browser, page, shown, tmp_path):
    before = {"before": [["user", "Is it <b>okapi</b>?"], ["assistant", "It is."]]}
    open_with([shown[0], shown[1] | before], browser, page, tmp_path)
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


@pytest.mark.parametrize("width", [360, 1200])
def test_a_value_in_print_stands_in_the_line_of_its_token(opened, width):
    opened.resize(width)
    opened.run("document.getElementById('values').click(); document.getElementById('gallery').scrollIntoView()")
    seen, apart = opened.run("""
        const told = [0, []];
        for (const token of document.querySelectorAll("#gallery article:nth-child(-n+9) .token")) {
            // A word that is longer than a line breaks anywhere.
            if (!token.textContent.trim() || /\\S{60}/.test(token.parentElement.textContent)) continue;
            // The last letter, and the last of the boxes: the value's.
            const texts = document.createTreeWalker(token, NodeFilter.SHOW_TEXT), letter = document.createRange();
            while (texts.nextNode()) {
                const text = texts.currentNode, last = text.data.trimEnd().length;
                if (last) { letter.setStart(text, last - 1); letter.setEnd(text, last); }
            }
            told[0]++;
            const line = letter.getBoundingClientRect(), value = [...token.getClientRects()].at(-1);
            if (value.top > line.bottom) told[1].push(token.textContent);
        }
        return told""")
    assert seen > 50
    assert apart == []


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
