"""LLaMA-Factory's datasets: what they hold, read by a reader that shares no code with the engine."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from export_readers import llama_factory, llama_factory_kto, llama_factory_sft
from export_world import (
    MESSAGES,
    QUESTIONS,
    expected_pairs,
    in_order,
    pair_of,
    square,
    write_export,
)
from hostile_images import png_header

from data_engine.exports import cleaned
from data_engine.exports.base import NOT_FITTING
from data_engine.exports.cleaned import UNREADABLE
from data_engine.exports.formats.turns import in_turns
from data_engine.exports.picture_files import PictureFiles
from data_engine.questions.conversation import Conversation

NAMES = ["llama-factory", "llama-factory-kto", "llama-factory-sft"]
TWO_USERS = {
    "idx": "users",
    "images": [],
    "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}
STARTED = {
    "idx": "started",
    "images": [],
    "messages": [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Who are you?"}],
}
# Trainers look for pictures in what the user says.
SHOWN = {
    "idx": "shown",
    "images": ["red.png"],
    "messages": [
        {"role": "user", "content": "Draw."},
        {"role": "assistant", "content": [{"type": "image"}]},
        {"role": "user", "content": "What is it?"},
    ],
}


@pytest.mark.parametrize("number", [8, 9])
def test_two_answers_to_a_question_never_follow_each_other(tmp_path, number):
    # Of the first, the question with a picture comes first in the shuffled rows; of the second, the other one.
    rows = [{"idx": f"{kind} {number}", "question": kind, "images": [kind] * (kind == "red.png")}
            for kind in ("red.png", "no picture")]  # fmt: skip
    folder, _ = write_export(tmp_path, "llama-factory-kto", rows)
    read = llama_factory_kto.read(folder)
    assert len(read) == 8
    assert all(row["messages"] != read[number - 1]["messages"] for number, row in enumerate(read))


def test_an_answer_that_is_chosen_in_one_pair_and_rejected_in_another_is_left_out(tmp_path):
    pairs = [pair_of("one", "a", "b", (0, 1)), pair_of("one", "b", "c", (1, 2))]
    folder, _ = write_export(tmp_path, "llama-factory-kto", QUESTIONS[:1], pairs)
    assert {row["answer"]: row["label"] for row in llama_factory_kto.read(folder)} == {"a": True, "c": False}


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_has_a_description_one_file_of_rows_and_each_picture_once(tmp_path, name):
    folder, _ = write_export(tmp_path, name)
    assert sorted(path.name for path in folder.iterdir()) == ["data.parquet", "dataset_info.json", "images"]
    assert len([path for path in folder.rglob("*.png") if path.is_file()]) == 2


@pytest.mark.parametrize(
    ("model_type", "has_break"),
    [("llava", True), ("llava_next", True), ("internvl", True), ("qwen2_5_vl", False), (None, False)],
)
def test_a_line_break_follows_pictures_for_models_whose_prompt_has_one(tmp_path, model_type, has_break):
    folder, _ = write_export(tmp_path, "llama-factory", model_type=model_type)
    texts = {row["conversations"][0]["value"] for row in pq.read_table(folder / "data.parquet").to_pylist()}
    assert ("<image>\nWhat is red?" in texts, "<image>What is red?" in texts) == (has_break, not has_break)
    assert ("<image>\n<image>\nWhich is larger?" in texts) == has_break
    assert in_order(llama_factory.read(folder, has_break)) == in_order(expected_pairs())


def test_the_beginning_of_an_answer_has_no_place_in_turns():
    asked = Conversation.of("Is it red?")
    assert in_turns(asked)
    assert not in_turns(dataclasses.replace(asked, answer_start="It is"))


@pytest.mark.parametrize("question", [TWO_USERS, STARTED, SHOWN], ids=lambda question: question["idx"])
def test_a_conversation_that_is_not_in_turns_is_left_out(tmp_path, question):
    folder, written = write_export(tmp_path, "llama-factory", [QUESTIONS[0], question])
    assert written.left_out == {NOT_FITTING: 3}
    assert in_order(llama_factory.read(folder)) == in_order(expected_pairs(["one"]))


def test_pictures_that_differ_in_their_last_byte_alone_are_two_and_one_is_written_once(tmp_path, monkeypatch):
    files, written = PictureFiles(tmp_path), []
    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: written.append(path) or write_bytes(path, data))
    pictures = [square("red") + end for end in (b"", b"\0", b"\1", b"")]
    paths = [files.path_of(picture) for picture in pictures]
    assert paths[0] == paths[3]
    assert len(written) == len(set(paths)) == 3
    assert [(tmp_path / path).read_bytes() for path in paths] == pictures


def test_a_picture_that_pillow_refuses_is_written_all_the_same(tmp_path):
    """So it is where the run's Pillow could read it. Of one that claims such a size, the error is no OSError."""
    huge = png_header(60_000, 60_000)
    path = PictureFiles(tmp_path).path_of(huge)
    assert path.endswith(".bin")
    assert (tmp_path / path).read_bytes() == huge


def test_the_first_row_has_a_picture_wherever_there_is_one(tmp_path):
    """Its types are learnt from the first 1,000 rows, and a list that is empty in all of them takes no path later."""
    rows = [{"idx": number, "question": f"{number}?", "images": ["red.png"] * (number == 7)} for number in range(40)]
    readers = (llama_factory, 3), (llama_factory_sft, 1), (llama_factory_kto, 4)
    for reader, each in readers:
        name = reader.__name__.rpartition(".")[2].replace("_", "-")
        read = reader.read(write_export(tmp_path, name, rows)[0])
        assert [bool(row["images"]) for row in read[:2]] == [True, False]
        assert sum(bool(row["images"]) for row in read) == each
    assert all(row["messages"] != read[number - 1]["messages"] for number, row in enumerate(read))


def test_texts_that_look_like_times_stay_texts(tmp_path):
    pairs = [pair_of("one", "2024-01-01", "2024-01-02")]
    folder, _ = write_export(tmp_path, "llama-factory", QUESTIONS[:1], pairs)
    assert [(row["chosen"], row["rejected"]) for row in llama_factory.read(folder)] == [("2024-01-01", "2024-01-02")]


@pytest.mark.parametrize("name", NAMES)
def test_the_description_names_what_a_row_has(tmp_path, name):
    folder, _ = write_export(tmp_path, name)
    [entry] = json.loads((folder / "dataset_info.json").read_text()).values()
    assert set(entry["columns"].values()) == set(pq.read_schema(folder / entry["file_name"]).names)


@pytest.mark.parametrize("placeholder", cleaned.PLACEHOLDERS)
def test_a_placeholder_of_a_trainer_is_rewritten_in_questions_and_answers(tmp_path, placeholder):
    rows = [{"idx": "one", "question": f"What {placeholder} is red?", "images": ["red.png"]}]
    pairs = [pair_of("one", f"a {placeholder}b", f"c {placeholder}")]
    folder, written = write_export(tmp_path, "llama-factory", rows, pairs)
    [row] = llama_factory.read(folder)
    spaced = f"{placeholder[0]} {placeholder[1:]}"
    # A marker in a question is no text of it: it is taken out.
    asked = "What  is red?" if placeholder == "<image>" else f"What {spaced} is red?"
    assert row["messages"] == [("user", (0, asked))]
    assert (row["chosen"], row["rejected"], written.rewritten) == (f"a {spaced}b", f"c {spaced}", 1)


def test_the_placeholders_are_those_of_the_trainers():
    """By hand, from the sources of ms-swift 4.6.0 and LLaMA-Factory 0.9.5."""
    of_swift = ["<image>", "<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>", "<start-image>", "<img>"]
    of_llama_factory = ["<image>", "<video>", "<audio>", "{{image}}", "{{video}}", "{{audio}}", "{{idx}}"]
    assert {*of_swift, *of_llama_factory} <= set(cleaned.PLACEHOLDERS)


@pytest.mark.parametrize("parts", [("<im", "age>"), ("<vid", "eo>"), ("a <", "/s> b")])
def test_a_control_token_that_two_texts_make_together_is_left_out(tmp_path, parts):
    content = [{"type": "image"}, *({"type": "text", "text": part} for part in parts)]
    split = {"idx": "split", "messages": [{"role": "user", "content": content}], "images": ["red.png"]}
    folder, written = write_export(tmp_path, "llama-factory", [QUESTIONS[0], split], control_tokens=("</s>",))
    assert written.left_out == {UNREADABLE: 3}
    assert {row["messages"][0] for row in llama_factory.read(folder)} == {MESSAGES["one"][0]}
