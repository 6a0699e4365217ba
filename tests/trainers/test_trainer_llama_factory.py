"""LLaMA-Factory trains on its exports: `make test-trainers` has its environment."""

import re

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import spoilt

pytestmark = pytest.mark.trainers


@pytest.mark.parametrize("name", ["llama-factory", "llama-factory-kto", "llama-factory-sft"])
def test_every_row_is_loaded_and_a_step_moves_the_weights(check, num_rows, name):
    code, figures = check("llama_factory", name)
    assert code == 0, figures
    assert figures["rows"] == num_rows(name)


def test_earlier_answers_are_trained_too_without_the_flag_of_the_documented_command(check, exports):
    code, wrong = check("llama_factory", "llama-factory-sft", exports["llama-factory-sft"], "--all_turns")
    assert code == 1
    assert re.search(r"what is trained is '\s*A dog\.", wrong)


def marker_in_an_answer(rows):
    rows[2]["chosen"]["value"] += " <image>"


def answers_as_texts(folder):
    table = pq.read_table(folder / "data.parquet")
    column = table.schema.get_field_index("chosen")
    texts = pc.struct_field(table["chosen"], "value")
    pq.write_table(table.set_column(column, "chosen", texts), folder / "data.parquet")


def marker_in_the_last_turn(rows):
    rows[2]["conversations"][-1]["value"] += " <image>"


def without_the_answer(rows):
    rows[2]["conversations"].pop()


SPOILT = {
    "a marker in an answer": (
        "llama-factory",
        spoilt.parquet_rows(marker_in_an_answer),
        "number of images does not match",
    ),
    "answers as texts": ("llama-factory", answers_as_texts, "Cannot find valid samples"),
    "a missing picture": ("llama-factory", spoilt.picture_missing, "No such file"),
    "a marker in a best answer": (
        "llama-factory-sft",
        spoilt.parquet_rows(marker_in_the_last_turn),
        "number of images does not match",
    ),
    "no best answer": ("llama-factory-sft", spoilt.parquet_rows(without_the_answer), "1 are lost"),
    "a missing picture of a best answer": ("llama-factory-sft", spoilt.picture_missing, "No such file"),
    "neighbours": ("llama-factory-kto", spoilt.parquet_rows(spoilt.neighbours), "follows another of its question"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_export_is_refused(check, spoil, what):
    name, change, reason = SPOILT[what]
    code, wrong = check("llama_factory", name, spoil(name, change))
    assert code == 1
    assert reason in wrong
