"""The functions for Python refuse what would give a wrong number, or an error that does not say what is wrong."""

import io
import json
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from data_engine import build_pairs, load_model, sample_answers, score_answers
from data_engine.bench import shapes
from data_engine.errors import BadRow, UserError

ROWS = [{"idx": 1, "sample_index": n, "answer": f"a {n}", "sum": float(n), "avg": float(n)} for n in range(4)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 .0 is greedy., got -1.0"),
        ({"temperature": float("inf")}, "temperature must be a finite number, got inf"),
        ({"temperature": np.float32("inf")}, "temperature must be a finite number, got .*inf"),
        ({"repetition_penalty": Decimal("nan")}, "repetition_penalty must be a finite number, got Decimal"),
        ({"top_p": "0.9"}, "top_p must be a finite number, got '0.9'"),
        ({"max_megapixels": None}, "max_megapixels must be a finite number, got None"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"image": "a.png"}, "image must be a PIL image, the bytes of a file, .* got str"),
        ({"image": Path("a.png")}, "image must be a PIL image, .* got PosixPath"),
        ({"image": [None]}, "image must be a PIL image, .* got NoneType"),
        ({"question": None}, "question must be a text or chat messages, got None"),
        ({"question": 5}, "question must be a text or chat messages, got int"),
        ({"question": b"What?"}, "question must be a text or chat messages, got bytes"),
        ({"question": {"role": "user"}}, "question must be a text or chat messages, got dict"),
        ({"question": "x\ud83d"}, "question is no text .* in UTF-8: character 1, counted from 0, is half of"),
        ({"k": 2.0}, "k must be a whole number, got 2.0"),
        ({"k": True}, "k must be a whole number, got True"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"max_new_tokens": 1e3}, "max_new_tokens must be a whole number, got 1000.0"),
        ({"top_k": "5"}, "top_k must be a whole number, got '5'"),
        ({"idx": None}, "idx must be text or a whole number, got None"),
        ({"idx": 5.0}, "idx must be text or a whole number, got 5.0"),
        ({"exif": "no"}, "exif must be .apply. or .ignore., got 'no'"),
        ({"exif": True, "image": None}, "exif must be .apply. or .ignore., got True"),
    ],
)
def test_a_value_out_of_range_is_told_by_its_name(instruct, golden_images, changes, says):
    given = {"image": golden_images[0], "question": "What is it?", "k": 1, "max_new_tokens": 1} | changes
    with pytest.raises(UserError, match=says):
        sample_answers(instruct, **given)


def test_one_text_is_no_list_of_answers(instruct, golden_images):
    """Each of its letters would be scored as an answer."""
    with pytest.raises(UserError, match="answers must be a list of texts, or of lists of ids; got one text"):
        score_answers(instruct, golden_images[0], "What is it?", "a dog")


@pytest.mark.parametrize("answers", [None, 5, {"answer": "a dog"}, b"a dog", np.array(5), {5, 9}])
def test_answers_are_a_list(instruct, golden_images, answers):
    """The keys of a dict and the bytes of a text would be scored as answers, and a set has no order."""
    with pytest.raises(UserError, match=f"answers must be .* of ids; got {type(answers).__name__}"):
        score_answers(instruct, golden_images[0], "What is it?", answers)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([5, 10**6], "answer 1 has the id 1000000; the model has 1000 ids"),
        ([5, 2**70], "answer 1 has the id 1180591620717411303424; the model has 1000 ids"),
        ([-1, 5], "answer 1 has the id -1; ids are whole numbers from 0 on"),
        ([], "answer 1 has no ids, and so no log-probs"),
    ],
)
def test_ids_that_the_model_cannot_score_are_told_by_their_answer(instruct, golden_images, answer, says):
    with pytest.raises(BadRow, match=says):
        score_answers(instruct, golden_images[0], "What is it?", [[5, 9], answer])


def test_the_id_of_a_picture_is_no_token_of_an_answer(tmp_path, golden_images):
    """A run leaves such a row out; the model would score it as the picture's place."""
    shapes.write_checkpoint(tmp_path, 400, shapes.QWEN)
    model = load_model(None, tmp_path, device="cpu", dtype="float32")
    media = json.loads((tmp_path / "config.json").read_text())["image_token_id"]
    with pytest.raises(BadRow, match=f"answer 0 has the id {media}, which stands for a picture, film or sound"):
        score_answers(model, golden_images[0], "What is it?", [[5, media, 9]])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_megapixels": "64"}, "max_megapixels must be a finite number, got '64'"),
        ({"max_megapixels": None}, "max_megapixels must be a finite number, got None"),
        ({"max_megapixels": 0}, "max_megapixels must be above 0, got 0"),
    ],
)
def test_scoring_checks_the_values_that_sampling_checks(instruct, golden_images, changes, says):
    for call, given in ((score_answers, {"answers": ["a dog"]}), (sample_answers, {"k": 1, "max_new_tokens": 1})):
        with pytest.raises(UserError, match=says):
            call(instruct, golden_images[0], "What is it?", **given, **changes)


@pytest.mark.parametrize("model", [None, "models/llava-v1.5-7b", torch.nn.Linear(1, 1)])
def test_a_model_is_one_of_load_model(golden_images, model):
    for call, given in ((score_answers, {"answers": ["a dog"]}), (sample_answers, {"k": 1})):
        with pytest.raises(UserError, match=f"model must be what load_model gives, got {type(model).__name__}"):
            call(model, golden_images[0], "What is it?", **given)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": None}, "path must be a folder or a hub id, got None"),
        ({"path": 5}, "path must be a folder or a hub id, got 5"),
        ({"path": Path("no_such_folder")}, "model path 'no_such_folder' is neither a folder nor a hub id"),
        ({"name": Path("llava")}, "name must be a known model name, or None, got PosixPath"),
        ({"device": None}, "unknown device None; expected auto, cpu, cuda or cuda:N"),
        ({"device": "mps"}, "unknown device 'mps'; expected auto, cpu, cuda or cuda:N"),
        ({"device": torch.device("meta")}, "unknown device device(type='meta'); expected auto, cpu, cuda or cuda:N"),
        ({"dtype": torch.bfloat16}, "unknown dtype torch.bfloat16; expected auto, float32, bfloat16 or float16"),
        ({"chat_template": Path("a.jinja")}, "chat_template must be the text of a template, got PosixPath"),
        ({"chat_template_kwargs": '{"enable_thinking": false}'}, "chat_template_kwargs must be a dict, got str"),
    ],
)
def test_a_model_that_cannot_be_loaded_so_is_told_which_value_is_wrong(goldens, changes, says):
    given = {"name": None, "path": str(goldens / "llava/instruct"), "device": "cpu"} | changes
    with pytest.raises(UserError, match=re.escape(says)):
        load_model(**given)


@pytest.mark.parametrize("answer", [b"a dog", {"answer": "a dog"}, None, 5])
def test_an_answer_is_a_text_or_ids(instruct, golden_images, answer):
    """Each byte of one in bytes would be scored as the id of a token."""
    with pytest.raises(UserError, match=f"answers must be .* got one of {type(answer).__name__}"):
        score_answers(instruct, golden_images[0], "What is it?", ["a cat", answer])


def test_an_image_may_be_bytes_of_any_kind(instruct, golden_images):
    file = io.BytesIO()
    golden_images[0].save(file, "PNG")
    kinds = (file.getvalue(), bytearray(file.getvalue()), memoryview(file.getvalue()), [bytearray(file.getvalue())])
    found = [sample_answers(instruct, one, "What is it?", k=1, max_new_tokens=2)[0].token_ids for one in kinds]
    assert found == [found[0]] * 4


def test_ids_are_whole_numbers_of_any_library_and_texts_can_be_written(instruct, golden_images):
    given = instruct, golden_images[0], "What is it?"
    expected = score_answers(*given, [[5, 9]])[0]
    for ids in (np.array([5, 9]), torch.tensor([5, 9]), (5, 9)):
        assert torch.equal(score_answers(*given, [ids])[0], expected)
    for ids in ([5.0, 2], ["a"], [None]):
        with pytest.raises(UserError, match="answer 1, counted from 0, has ids that are no whole numbers: "):
            score_answers(*given, [[5], ids])
    with pytest.raises(UserError, match="an answer is no text that can be written in UTF-8: character 1, "):
        score_answers(*given, ["a", "a\ud83d"])


def test_numbers_of_a_table_are_numbers(instruct, golden_images):
    """As `for idx in table["idx"]` gives them, of pandas or numpy; the answers are those of the same plain number."""
    given = instruct, golden_images[0], "What is it?"
    expected = sample_answers(*given, k=2, seed=3, idx=7, max_new_tokens=4)
    for kind in (np.int64, np.uint8):
        assert sample_answers(*given, k=kind(2), seed=kind(3), idx=kind(7), max_new_tokens=kind(4)) == expected


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("idx", "row 1 is of type str; expected a dict for each answer, as a DataFrame has by "),
        ({"answer": float("nan")}, "row 1: answer must be text, or None where there is none, got nan"),
        ({"sum": "1"}, "row 1: sum must be a number, or None where there is none, got '1'"),
        ({"avg": True}, "row 1: avg must be a number, or None where there is none, got True"),
        ({"idx": float("nan")}, "row 1: idx must be text or a whole number, got nan"),
        ({"idx": None}, "row 1: idx must be text or a whole number, got None"),
        ({"idx": 1.5}, "row 1: idx must be text or a whole number, got 1.5"),
        ({"sample_index": float("nan")}, "row 1: sample_index must be a whole number, got nan"),
        ({"sample_index": "1"}, "row 1: sample_index must be a whole number, got '1'"),
    ],
)
def test_a_row_of_an_answer_has_what_pairs_are_made_of(row, says):
    """As rows of pandas may not."""
    rows = [ROWS[0], row if isinstance(row, str) else ROWS[1] | row, *ROWS[2:]]
    with pytest.raises(UserError, match=re.escape(says)):
        build_pairs(rows)


def test_rewards_may_be_numbers_of_any_library():
    expected = [pair.chosen for pair in build_pairs(ROWS)]
    for kind in (np.float32, np.int64, Decimal, torch.tensor):
        rows = [row | {"sum": kind(row["sum"]), "avg": kind(row["avg"])} for row in ROWS]
        assert [pair.chosen for pair in build_pairs(rows)] == expected


def test_one_text_is_no_list_of_markers():
    """Each answer with one of its letters would not rank."""
    with pytest.raises(UserError, match="markers must be a list of texts, got one text, 'USER:'"):
        build_pairs(ROWS, markers="USER:")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": "2"}, "rank must be a whole number, got '2'"),
        ({"rank": 2.0}, "rank must be a whole number, got 2.0"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"distance": None}, "distance must be a number, got None"),
        ({"strategy": None}, 'unknown strategy "None"; known: cross, '),
        ({"strategy": "right_wrong", "right": "2"}, "right must be a finite number, got '2'"),
    ],
)
def test_a_setting_of_pairs_is_told_by_its_name(changes, says):
    with pytest.raises(UserError, match=says):
        build_pairs(ROWS, **changes)


def test_pairs_by_what_is_right_need_to_know_it():
    found = build_pairs(ROWS, strategy="right_wrong", right=2.0)
    assert {(pair.chosen_sum, pair.rejected_sum) for pair in found} == {(2.0, 0.0), (2.0, 1.0), (3.0, 0.0), (3.0, 1.0)}
    for wrong in ({"strategy": "right_wrong"}, {"right": 2.0}):
        with pytest.raises(UserError, match="right goes with strategy right_wrong, and is needed there"):
            build_pairs(ROWS, **wrong)
    with pytest.raises(UserError, match="right must be a finite number, got nan"):
        build_pairs(ROWS, strategy="right_wrong", right=float("nan"))
