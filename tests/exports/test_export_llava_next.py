"""LLaVA-NeXT's dataset for DPO: what it holds, read by a reader that shares no code with the engine."""

import json

from export_readers import llava_next
from export_world import QUESTIONS, expected_pairs, in_order, write_export

from data_engine.exports.base import NOT_FITTING

FITTING = ["one", "odd", "same"]


def rows_of(folder):
    return json.loads((folder / "data.json").read_text())


def test_every_pair_of_one_picture_and_a_text_behind_it_is_there(tmp_path):
    folder, written = write_export(tmp_path, "llava-next")
    assert in_order(llava_next.read(folder)) == in_order(expected_pairs(FITTING))
    assert (written.rows, written.left_out) == (9, {NOT_FITTING: 18})
    assert len(QUESTIONS) == len(FITTING) + 6


def test_the_folder_has_one_file_of_rows_and_each_picture_once(tmp_path):
    folder, _ = write_export(tmp_path, "llava-next")
    assert sorted(path.name for path in folder.iterdir()) == ["data.json", "images"]
    assert len([path for path in folder.rglob("*.png") if path.is_file()]) == 2


def test_the_picture_stands_first_as_llava_next_puts_it_whatever_the_row_says(tmp_path):
    for row in rows_of(write_export(tmp_path, "llava-next")[0]):
        # Its loader's own words: the marker is taken out, and put before what is left.
        assert row["prompt"] == "<image>\n" + row["prompt"].replace("<image>", "").strip()


def test_a_row_has_what_llava_next_counts_the_words_of(tmp_path):
    """Its scripts set --group_by_modality_length, which reads these four of every row."""
    for row in rows_of(write_export(tmp_path, "llava-next")[0]):
        assert all(isinstance(row[column], str) for column in ("prompt", "answer", "chosen", "rejected"))
        assert row["answer"].split() == []


def test_an_export_without_a_row_is_an_empty_list(tmp_path):
    assert rows_of(write_export(tmp_path, "llava-next", pairs=[])[0]) == []
