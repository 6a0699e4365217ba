"""Runs without some source of reward, or without any model: what exports and `pairs` make of them, and refuse."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_run import finish
from stage2_world import make_world

from data_engine.commands import main

NAMES = ("red", "green", "blue")
WORDS = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("left_out")
    finish(make_world(folder / "world"), folder / "work")
    return folder / "work"


@pytest.fixture
def ruled(finished, tmp_path):
    """A run whose pairs are by the implicit reward, and whose last start was by a rule alone."""
    shutil.copytree(finished, tmp_path / "work")
    path = tmp_path / "work/run.json"
    found = json.loads(path.read_text())
    found["config"] |= {"rewards": "rule", "rule": "contains"}
    path.write_text(json.dumps(found))
    return tmp_path / "work"


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """A run that names no model: given answers, and a rule; two answers of four to a question are right."""
    folder = tmp_path_factory.mktemp("unnamed")
    table = {"idx": [0, 1, 2], "question": ["Which colour?"] * 3, "answer": list(NAMES)}
    pq.write_table(pa.table(table), folder / "questions.parquet")
    said = [(idx, f"{word}: {NAMES[(idx + at // 2) % 3]}") for idx in range(3) for at, word in enumerate(WORDS)]
    pq.write_table(pa.table({"idx": [idx for idx, _ in said], "answer": [text for _, text in said]}),
                   folder / "answers.parquet")  # fmt: skip
    flags = {"dataset_path": folder / "questions.parquet", "answers": folder / "answers.parquet", "device": "cpu",
             "work_dir": folder / "work", "rewards": "rule", "rule": "contains", "rank": 1, "threads": 1}  # fmt: skip
    assert command("run", **flags) == 0
    return folder / "work"


def command(name, *words, **flags) -> int:
    return main.main(
        [name, *map(str, words), *(word for flag in flags.items() for word in (f"--{flag[0]}", str(flag[1])))]
    )


def test_a_run_that_names_no_model_is_exported(unnamed, tmp_path):
    assert command("export", unnamed, format="trl,scored", output=tmp_path / "out") == 0
    rows = pq.read_table(tmp_path / "out/trl/train.parquet").to_pylist()
    assert [(row["idx"], row["margin"]) for row in sorted(rows, key=lambda row: row["idx"])] == [
        (0, 1.0), (1, 1.0), (2, 1.0)
    ]  # fmt: skip
    [file] = (tmp_path / "out/scored").glob("*.parquet")
    assert pq.read_table(file)["rule"].to_pylist() == [1.0, 1.0, 0.0, 0.0] * 3


def test_log_probs_of_a_run_that_computes_none_are_refused_before_any_work(goldens, tmp_path, capsys):
    flags = {"instruct_model_path": goldens / "llava/instruct", "work_dir": tmp_path / "work", "rewards": "rule",
             "dataset_path": goldens / "llava/dataset/questions.parquet", "export": "rlaif-v-logps"}  # fmt: skip
    (tmp_path / "rule.py").write_text("def longest(row, answers):\n    return list(map(len, answers))\n")
    for name in ("validate", "run"):
        assert command(name, **flags, rule=f"{tmp_path}/rule.py:longest") == 2
        assert "needs log-probs of the instruct model, which no source of --rewards" in capsys.readouterr().err


def test_an_export_has_the_rewards_of_its_pairs_whatever_the_last_start_has(finished, ruled, tmp_path):
    """Which may be at work still: none of its units are there."""
    for work_dir, name in ((finished, "before"), (ruled, "after")):
        assert command("export", work_dir, format="scored", output=tmp_path / name) == 0
    [before], [after] = ((tmp_path / name / "scored").glob("*.parquet") for name in ("before", "after"))
    assert pq.read_table(after).equals(pq.read_table(before))
    card = (tmp_path / "after/scored/README.md").read_text()
    assert "Sources of reward: implicit." in card
    assert "--rewards" not in card


def test_another_pairing_ranks_by_the_rewards_of_the_run_s_own_whatever_the_last_start_has(ruled, capsys):
    assert command("pairs", ruled, "--name", "again") == 0
    own, again = (pq.read_table(ruled / f"pairs/{name}.parquet") for name in ("pairs", "again"))
    assert again.column_names == own.column_names
    assert again["margin"].to_pylist() == own["margin"].to_pylist()
    capsys.readouterr()
    assert command("pairs", ruled, "--name", "ruled", rank_by="rule") == 3
    assert "these are missing" in (told := capsys.readouterr().err)
    assert "rule: 0-" in told


def test_log_probs_that_the_last_start_left_out_are_not_exported(finished, ruled, tmp_path, capsys):
    # The pairs are by the rule, and log-probs of an earlier start lie beside them.
    path = ruled / "pairs/pairs.parquet"
    table = pq.read_table(path)
    metadata = table.schema.metadata
    metadata[b"settings"] = json.dumps(json.loads(metadata[b"settings"]) | {"rank_by": "rule"}).encode()
    metadata[b"rewards"] = b'"rule"'
    pq.write_table(table.replace_schema_metadata(metadata), path)
    assert command("export", ruled, format="rlaif-v-logps", output=tmp_path / "out") == 2
    assert "needs log-probs of the instruct model" in capsys.readouterr().err


def test_a_column_that_a_later_start_names_is_in_the_command_that_a_card_shows(unnamed, tmp_path):
    (tmp_path / "rule.py").write_text("def longest(row, answers):\n    return list(map(len, answers))\n")
    table = pq.read_table(unnamed.parent / "questions.parquet")
    pq.write_table(table.rename_columns(["idx", "question", "label"]), tmp_path / "questions.parquet")
    flags = {"dataset_path": tmp_path / "questions.parquet", "answers": unnamed.parent / "answers.parquet", "rank": 1,
             "work_dir": tmp_path / "work", "rewards": "rule", "device": "cpu", "threads": 1}  # fmt: skip
    assert command("run", **flags, rule=f"{tmp_path}/rule.py:longest", stop_after_stage=0) == 0
    assert command("run", **flags, rule="contains", columns="answer=label") == 0
    assert command("export", tmp_path / "work", format="trl", output=tmp_path / "out") == 0
    assert "--columns answer=label" in (tmp_path / "out/trl/README.md").read_text()


@pytest.mark.parametrize("strategy", ["cross", "best_worst", "aligned"])
def test_answers_that_a_rule_finds_all_alike_make_no_pair(unnamed, tmp_path, strategy):
    path = tmp_path / "rule.py"
    path.write_text("def same(row, answers):\n    return [row['idx'] > 0 and 'one' in text for text in answers]\n")
    flags = {"dataset_path": unnamed.parent / "questions.parquet", "answers": unnamed.parent / "answers.parquet",
             "work_dir": tmp_path / "work", "rewards": "rule", "device": "cpu", "threads": 1, "rank": 1}  # fmt: skip
    assert command("run", **flags, rule=f"{path}:same", strategy=strategy) == 0
    rows = pq.read_table(tmp_path / "work/pairs/pairs.parquet").to_pylist()
    assert [(row["idx"], row["status"], row["margin"]) for row in rows] == [
        (0, "equal", 0.0), (1, "kept", 1.0), (2, "kept", 1.0)
    ]  # fmt: skip
