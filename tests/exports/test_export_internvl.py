"""InternVL's dataset for MPO: what it holds, read by a reader that shares no code with the engine."""

import json

from export_readers import internvl_mpo
from export_world import QUESTIONS, expected_pairs, in_order, write_export

from data_engine.exports.base import NOT_FITTING

FITTING = ["one", "odd", "same", "both", "two", "late"]


def test_every_pair_of_pictures_and_a_text_is_there(tmp_path):
    folder, written = write_export(tmp_path, "internvl-mpo")
    assert in_order(internvl_mpo.read(folder)) == in_order(expected_pairs(FITTING))
    assert (written.rows, written.left_out) == (18, {NOT_FITTING: 9})
    assert len(QUESTIONS) == len(FITTING) + 3


def test_the_folder_has_a_description_one_file_of_rows_and_each_picture_once(tmp_path):
    folder, _ = write_export(tmp_path, "internvl-mpo")
    assert sorted(path.name for path in folder.iterdir()) == ["data.jsonl", "images", "meta.json"]
    assert len([path for path in folder.rglob("*.png") if path.is_file()]) == 2
    assert json.loads((folder / "meta.json").read_text()) == {
        "data_engine": {
            "root": ".", "annotation": "data.jsonl", "data_augment": False, "repeat_time": 1, "length": 18,
        }
    }  # fmt: skip


def test_a_picture_before_its_question_is_left_to_the_trainer_and_others_stand_in_the_text(tmp_path):
    folder, _ = write_export(tmp_path, "internvl-mpo")
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    questions = {row["question"]: row["image"] for row in rows}
    assert isinstance(questions["What is red?"], str)
    assert isinstance(questions["See <image>\n"], str)
    assert len(questions["<image>\n<image>\nWhich is larger?"]) == 2
    assert len(questions["Between <image>\n and <image>\n"]) == 2
