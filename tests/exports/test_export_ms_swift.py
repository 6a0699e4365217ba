"""ms-swift's datasets: what they hold, read by a reader that shares no code with the engine."""

import io

import datasets
import pytest
from export_readers import ms_swift, ms_swift_kto, ms_swift_rm, ms_swift_sft
from export_world import (
    QUESTIONS,
    expected_best,
    expected_pairs,
    in_order,
    pair_of,
    three_each,
    write_export,
)
from PIL import Image

from data_engine.exports.base import NOT_FITTING

NAMES = ["ms-swift", "ms-swift-kto", "ms-swift-rm", "ms-swift-sft"]


def test_two_answers_to_a_question_never_follow_each_other(tmp_path):
    folder, _ = write_export(tmp_path, "ms-swift-kto", QUESTIONS[:2])
    rows = ms_swift_kto.read(folder)
    assert len(rows) == 8
    assert all(row["messages"] != rows[number - 1]["messages"] for number, row in enumerate(rows))


def test_the_margin_is_the_difference_of_the_summed_rewards(tmp_path):
    folder, _ = write_export(tmp_path, "ms-swift-rm")
    margins = {(0, 8): 8.5, (0, 9): 9.5, (1, 9): 10.5}
    by_answers = {
        (pair["chosen"], pair["rejected"]): margins[pair["chosen_index"], pair["rejected_index"]]
        for pair in three_each()
    }
    rows = ms_swift_rm.read(folder)
    assert {(row["chosen"], row["rejected"]): row.pop("margin") for row in rows} == by_answers
    assert in_order(rows) == in_order(expected_pairs())


def test_a_margin_is_never_negative_since_it_would_let_the_rejected_answer_win(tmp_path):
    pairs = [pair_of("one", "good", "bad", sums=(-2.0, -1.0)), pair_of("odd", "good", "bad", sums=(-1.0, -1.25))]
    folder, _ = write_export(tmp_path, "ms-swift-rm", QUESTIONS[:2], pairs)
    assert sorted(row["margin"] for row in ms_swift_rm.read(folder)) == [0.0, 0.25]


@pytest.mark.parametrize("name", NAMES)
def test_datasets_loads_the_folder_with_messages_and_pictures_as_bytes_that_nobody_encodes_again(tmp_path, name):
    """Of a list that is declared as pictures, ms-swift reads the pixels, and stores them in another encoding."""
    folder, written = write_export(tmp_path, name)
    assert [path.name for path in folder.iterdir()] == ["train.parquet"]
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == written.rows
    sizes = {Image.open(io.BytesIO(image["bytes"])).size for row in rows for image in row["images"]}
    assert sizes == {(40, 30)}
    assert {tuple(message) for row in rows for message in row["messages"]} == {("role", "content")}


@pytest.mark.parametrize(
    ("name", "reader", "expected", "each"),
    [("ms-swift", ms_swift, expected_pairs, 3), ("ms-swift-sft", ms_swift_sft, expected_best, 1)],
)
def test_a_conversation_that_is_not_in_turns_is_left_out(tmp_path, name, reader, expected, each):
    users = [{"role": "user", "content": text} for text in ("What?", "Or which?")]
    twice = {"idx": "twice", "images": [], "messages": users}
    folder, written = write_export(tmp_path, name, [QUESTIONS[0], twice])
    assert written.left_out == {NOT_FITTING: each}
    assert in_order(reader.read(folder)) == in_order(expected(["one"]))
