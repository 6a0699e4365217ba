"""The report: one page that shows the funnel, the plots and the extreme pairs, and that no data can break."""

import re
from html.parser import HTMLParser

import pytest
from hostile_images import png_chunk, png_header
from stage2_world import make_world, pairs_rows, picture

from data_engine.questions.images import BadImage, decode
from data_engine.reporting.page import write_report
from data_engine.store import logs

pytestmark = pytest.mark.usefixtures("drawn_plots")

TEXT = '<script>alert("x")</script> & "quoted" \'text\' 猫'
ESCAPED = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &quot;quoted&quot; &#x27;text&#x27; 猫"


class Page(HTMLParser):
    """Tags, their attributes, and the visible texts of one page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def report_of(world, work_dir, left_out=None, **settings):
    world.publish(work_dir, left_out=left_out)
    funnel = world.pair(work_dir, **settings)
    return write_report(work_dir, world.questions(), funnel).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), num_questions=60)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def page(world, work_dir):
    return report_of(world, work_dir)


def shown_margins(text):
    return [float(margin) for margin in re.findall(r"margin ([+-][\d.]+)", text)]


def test_the_page_needs_no_other_file_and_runs_no_script(page, work_dir):
    parsed = Page(page)
    assert [path.name for path in (work_dir / "report").iterdir()] == ["index.html"]
    assert not {"script", "link", "iframe", "object", "a"} & set(parsed.tags)
    sources = [value for name, value in parsed.attributes if name in ("src", "href", "srcset")]
    assert len(sources) == 3 + 20
    assert all(value.startswith("data:image/") for value in sources)
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[^\"]*", "", page))


def test_every_line_of_the_funnel_is_there(world, work_dir, page):
    texts = [text.strip() for text in Page(page).texts]
    for name, count in world.pair(work_dir).lines():
        at = texts.index(name.strip())
        assert texts[at + 1] == f"{count:,}"


def test_twenty_pairs_are_shown_the_largest_margins_first_and_then_the_smallest(work_dir, page):
    kept = [row for row in pairs_rows(work_dir) if row["status"] == "kept"]
    margins = sorted(row["chosen_sum"] - row["rejected_sum"] for row in kept)
    expected = margins[::-1][:10] + margins[:10]
    assert len(margins) > 40
    assert shown_margins(page) == pytest.approx(expected, abs=6e-4)


def test_each_shown_pair_has_its_question_and_both_answers(work_dir, page):
    texts = Page(page).texts
    kept = [row for row in pairs_rows(work_dir) if row["status"] == "kept"]
    best = max(kept, key=lambda row: row["chosen_sum"] - row["rejected_sum"])
    start = texts.index(f"What is in picture {int(best['idx'][1:])}?")
    following = texts[start : start + 12]
    assert best["chosen"] in following
    assert best["rejected"] in following
    assert following.index(best["chosen"]) < following.index(best["rejected"])


def test_few_pairs_are_shown_once_each(tmp_path):
    world = make_world(tmp_path, num_questions=6)
    text = report_of(world, tmp_path / "work")
    kept = [row for row in pairs_rows(tmp_path / "work") if row["status"] == "kept"]
    assert 0 < len(kept) <= 20
    assert len(shown_margins(text)) == len(kept)
    assert "Smallest margins" not in text


def test_whatever_comes_from_data_is_escaped(tmp_path):
    images = [{"bytes": picture(number), "path": TEXT} for number in range(4)]
    idxs = [f"{TEXT}{number}" for number in range(4)]
    world = make_world(tmp_path, num_questions=4, idx=idxs, question=[TEXT] * 4, image=images)
    for row in world.rows:
        row["answer"] = f"{TEXT} {row['sample_index']}"
    text = report_of(world, tmp_path / "work")
    assert "<script" not in text
    assert text.count(ESCAPED) >= 4
    assert any(part.startswith(TEXT) for part in Page(text).texts)


def test_the_same_pairs_give_the_same_page(world, work_dir, page):
    assert write_report(work_dir, world.questions(), world.pair(work_dir)).read_text(encoding="utf-8") == page


def test_a_run_without_pairs_has_a_report_of_its_funnel(tmp_path):
    text = report_of(make_world(tmp_path, num_questions=3, num_answers=1), tmp_path / "work")
    assert "candidate pairs" in text
    assert "<img" not in text


def test_equal_rewards_and_equal_lengths_can_be_plotted(tmp_path):
    world = make_world(tmp_path, num_questions=3, num_answers=4)
    for row in world.rows:
        row["answer"] = f"word{row['sample_index']}"
        row["instruct"] = row["reward"] = [-1.0]
    text = report_of(world, tmp_path / "work")
    assert text.count("data:image/png") == 3
    assert set(shown_margins(text)) == {0.0}


def test_an_image_that_cannot_be_decoded_is_replaced_by_the_reason(tmp_path):
    images = [{"bytes": b"no image", "path": None} for _ in range(3)]
    text = report_of(make_world(tmp_path, num_questions=3, image=images), tmp_path / "work")
    assert "not an image in a known format" in text
    assert "data:image/jpeg" not in text


def test_what_a_broken_image_puts_into_the_reason_is_escaped(tmp_path):
    """A PNG that ends too soon, and goes on with a chunk of a strange name, which Pillow's message repeats."""
    whole = png_header(6, 4)
    data = whole[:-12] + png_chunk(b"B<&b", b"")
    world = make_world(tmp_path, num_questions=3, image=[{"bytes": data, "path": None}] * 3)
    with pytest.raises(BadImage, match="B<&b"):
        decode(data, 64)
    text = report_of(world, tmp_path / "work")
    assert "B&lt;&amp;b" in text
    assert "B<" not in text
    assert any("B<&b" in shown for shown in Page(text).texts)


def test_time_and_quarantine_are_shown_and_escaped(world, tmp_path):
    logs.note(tmp_path, 0, "pairing <b>", 90.0)
    page = report_of(world, tmp_path, left_out={("sampled_answer", 0): [("x", TEXT)]})
    texts = [text.strip() for text in Page(page).texts]
    at = texts.index("pairing <b>")
    assert texts[at + 1 : at + 3] == ["1", "2 min"]
    assert "script" not in Page(page).tags
    assert "quarantined in" in texts
