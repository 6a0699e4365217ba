"""ms-swift trains on its exports: `make test-trainers` has its environment."""

import re

import pytest
import spoilt

pytestmark = pytest.mark.trainers


@pytest.mark.parametrize("name", ["ms-swift", "ms-swift-kto", "ms-swift-rm", "ms-swift-sft"])
def test_every_row_is_loaded_and_a_step_moves_the_weights(check, num_rows, name):
    code, figures = check("swift", name)
    assert code == 0, figures
    assert figures["rows"] == num_rows(name)


def test_earlier_answers_are_trained_too_without_the_flag_of_the_documented_command(check, exports):
    code, wrong = check("swift", "ms-swift-sft", exports["ms-swift-sft"], "--all_turns")
    assert code == 1
    assert re.search(r"what is trained is '\s*A dog\.", wrong)


def test_a_row_without_an_answer_is_missed_since_the_loader_leaves_it_out_silently(check, spoil):
    def unanswered(rows):
        rows[3]["messages"][-1]["content"] = None

    code, wrong = check("swift", "ms-swift-sft", spoil("ms-swift-sft", spoilt.parquet_rows(unanswered)))
    assert code == 1
    assert "1 are lost, 0 are not as expected" in wrong


def test_a_row_of_equal_answers_is_missed_since_the_loader_leaves_it_out_silently(check, spoil):
    def equal(rows):
        spoilt.set_cell(rows[3], "rejected_response", rows[3]["messages"][-1]["content"])

    code, wrong = check("swift", "ms-swift", spoil("ms-swift", spoilt.parquet_rows(equal)))
    assert code == 1
    assert "1 are lost, 0 are not as expected" in wrong


@pytest.mark.parametrize("name", ["ms-swift", "ms-swift-sft"])
def test_a_picture_that_is_cut_off_is_refused(check, spoil, name):
    def cut(rows):
        image = rows[0]["images"][0]
        image["bytes"] = image["bytes"][: len(image["bytes"]) // 2]

    code, wrong = check("swift", name, spoil(name, spoilt.parquet_rows(cut)))
    assert code == 1
    assert "truncated" in wrong
