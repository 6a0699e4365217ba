"""The export of every answer: the rewards and places as pairing has them, and texts as they are."""

import dataclasses
import json
from operator import itemgetter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_readers import scored
from export_run import build, finish, mixed_world
from stage2_world import digest, make_world

from data_engine import schemas
from data_engine.commands.export import main
from data_engine.exports import parquet_files


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = make_world(tmp_path_factory.mktemp("scored") / "world", num_questions=20, unit_size=7)
    # Those that never rank: no text, a marker of the prompt, a text that was there before.
    world.rows[0]["answer"], world.rows[1]["answer"], world.rows[3]["answer"] = "", "a </s> <image>", "once"
    world.rows[4]["answer"] = "once"
    finish(world, world.folder / "work")
    return world


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "out"
    assert main([str(world.folder / "work"), "--format", "scored", "--output", str(output)]) == 0
    return scored.read(output / "scored")


def test_every_answer_is_there_in_the_order_of_the_questions(world, rows):
    keys = ("idx", "sample_index", "answer")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in world.rows]
    columns = schemas.scored(world.questions().idx_type).names
    assert list(rows[0]) == [*columns, "question", "image_path"]
    assert all(row["token_ids"] == [5, 6, 2] and row["finish_reason"] == "stop" for row in rows)
    assert {(row["question"], row["image_path"]) for row in rows} == {
        (f"What is in picture {number}?", f"{number}.png") for number in range(20)
    }


def test_rewards_and_places_are_those_of_their_definition(world, rows):
    """beta times the sum, mean, least and last of the differences; places from 1 among the answers that rank."""
    for row, made in zip(rows, world.rows, strict=True):
        # Columns of log-probs have 32 bits.
        reward, instruct = (np.array(made[role], np.float32).astype(float) for role in ("reward", "instruct"))
        differences = list(reward - instruct)
        total = sum(differences)
        wanted = [total, total / len(differences), min(differences), differences[-1]]
        assert [row[name] for name in ("sum", "avg", "min", "last")] == pytest.approx([0.1 * one for one in wanted])
    for idx in {row["idx"] for row in rows}:
        ranked = [row for row in rows if row["idx"] == idx and row["not_ranked"] is None]
        for by in ("sum", "avg"):
            order = sorted(ranked, key=itemgetter(by), reverse=True)
            assert [row[f"{by}_rank"] for row in order] == list(range(1, len(ranked) + 1))


@pytest.mark.parametrize("given", [0.01, "auto"])
def test_rewards_and_places_are_by_the_beta_and_the_alpha_of_the_pairing(tmp_path, given):
    world = make_world(tmp_path / "world", num_questions=20)
    build("scored", finish(world, tmp_path / "work", beta=0.5, length_alpha=given), tmp_path / "scored")
    told = pq.read_schema(tmp_path / "work/pairs/pairs.parquet").metadata
    alpha = json.loads(told[b"length_alpha"]) if given == "auto" else given
    found, differ = scored.read(tmp_path / "scored"), 0
    for row, made in zip(found, world.rows, strict=True):
        assert row["sum"] == pytest.approx(0.5 * (sum(made["reward"]) - sum(made["instruct"])), abs=1e-5)
    for idx in {row["idx"] for row in found}:
        ranked = [row for row in found if row["idx"] == idx and row["not_ranked"] is None]
        for by in ("sum", "avg"):
            order = sorted(ranked, key=lambda row: alpha * len(row["answer"].split()) - row[by])
            assert [row[f"{by}_rank"] for row in order] == list(range(1, len(ranked) + 1))
            differ += order != sorted(ranked, key=itemgetter(by), reverse=True)
    assert differ


def test_of_models_that_read_other_tokens_an_answer_has_sum_and_mean_alone(tmp_path):
    world = make_world(tmp_path / "world", num_questions=4)
    for row in world.rows:
        row["reward"] = [*row["reward"], -0.25]
    build("scored", finish(world, tmp_path / "work", same_tokenizer=False), tmp_path / "scored")
    for row, made in zip(scored.read(tmp_path / "scored"), world.rows, strict=True):
        reward, instruct = made["reward"], made["instruct"]
        assert row["sum"] == pytest.approx(0.1 * (sum(reward) - sum(instruct)), abs=1e-6)
        assert row["avg"] == pytest.approx(0.1 * (np.mean(reward) - np.mean(instruct)), abs=1e-6)
        assert (row["min"], row["last"]) == (None, None)


def test_answers_without_a_place_say_why(rows):
    found = {row["sample_index"]: row["not_ranked"] for row in rows[:6]}
    assert found == {0: "empty", 1: "marker", 2: None, 3: None, 4: "duplicate", 5: None}
    for row in rows[:2]:
        assert (row["sum_rank"], row["avg_rank"]) == (None, None)
        assert row["sum"] is not None
    assert rows[1]["answer"] == "a </s> <image>"


def test_questions_are_data_and_stand_as_they_are(tmp_path):
    questions = ["<image>\nWhat</s> is <video>?", "  ", "And?"]
    world = make_world(tmp_path / "world", num_questions=3, question=questions)
    source = finish(world, tmp_path / "work")
    written = build("scored", source, tmp_path / "scored")
    found = scored.read(tmp_path / "scored")
    assert [row["question"] for row in found] == [question for question in questions for _ in range(6)]
    assert (written.rows, written.rewritten, written.left_out) == (18, 0, {})


def test_answers_stay_where_the_picture_is_gone(tmp_path):
    world = make_world(tmp_path / "world", num_questions=4)
    source = finish(world, tmp_path / "work")
    table = pq.read_table(world.dataset_path).to_pylist()
    table[1]["image"]["bytes"] = None
    pq.write_table(pa.Table.from_pylist(table), world.dataset_path)
    source = dataclasses.replace(source, questions=world.questions())
    assert [question.problem is None for question in source.questions.rows(range(4))] == [True, False, True, True]
    written = build("scored", source, tmp_path / "scored")
    found = scored.read(tmp_path / "scored")
    assert (len(found), written.rows, written.left_out) == (24, 24, {})
    assert [row["question"] for row in found[6:12]] == ["What is in picture 1?"] * 6


def test_a_question_with_several_pictures_has_no_path(tmp_path):
    source = finish(mixed_world(tmp_path / "world"), tmp_path / "work")
    build("scored", source, tmp_path / "scored")
    found = {row["idx"]: (row["question"], row["image_path"]) for row in scored.read(tmp_path / "scored")}
    assert found == {
        "q000": ("How are you, 0?", None),
        "q001": ("What is this, 1?", "1.png"),
        "q002": ("Firstthenwhich is red, 2?", None),
        "q003": ("What is this, 3?", "4.png"),
        "q004": ("And 4?", "5.png"),
    }


def test_row_groups_and_files_are_bounded_and_the_bytes_the_same(world, tmp_path, monkeypatch):
    work_dir = world.folder / "work"
    for name in ("one", "other"):
        assert main([str(work_dir), "--format", "scored", "--output", str(tmp_path / name)]) == 0
    assert digest(tmp_path / "one") == digest(tmp_path / "other")
    monkeypatch.setattr(parquet_files, "ROW_GROUP_BYTES", 4000)
    monkeypatch.setattr(parquet_files, "FILE_BYTES", 8000)
    assert main([str(work_dir), "--format", "scored", "--output", str(tmp_path / "many")]) == 0
    files = sorted((tmp_path / "many/scored").glob("*.parquet"))
    assert len(files) > 1
    assert max(pq.ParquetFile(file).read_row_group(0).num_rows for file in files) < 120
    assert scored.read(tmp_path / "many/scored") == scored.read(tmp_path / "one/scored")
    assert json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]["sum_rank"]
