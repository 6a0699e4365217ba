"""What `data-engine export` refuses, by its name, and that it leaves nothing behind then."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_run import BEST, run, with_entries
from hostile_world import hostile_world, publish_run
from stage2_world import make_world

from data_engine import exports
from data_engine.commands.work_dir import open_finished


def everything(*folders) -> list[Path]:
    """What lies in folders, but for the hashes of files, which any command may remember."""
    return sorted(path for folder in folders for path in folder.rglob("*") if path.parent.name != "hashes")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--format", "rlaif"], 'format "rlaif"; did you mean rlaif-v?'),
        (["--format", "llama_factory"], "did you mean llama-factory?"),
        (["--format", "TRL"], "did you mean trl?"),
        (["--format", "MS-Swft"], "did you mean ms-swift?"),
        (["--format", "zzz"], f"formats: {', '.join(exports.EXPORTS)}"),
        (["--format", "trl,trl"], "--format names trl twice"),
        (["--format", ""], 'unknown format ""'),
        (["--formt", "trl"], "--formt"),
        (["--license", "CC BY 4.0"], '"CC BY 4.0"; did you mean cc-by-4.0?'),
        (["--image_root", "nowhere"], "where the dataset has moved, give --dataset_path and --image_root"),
        (["--output", "{full}"], "is not empty; name an empty folder"),
        (["--output", "{file}"], "is a file; name an empty folder"),
        (["--output", "{file}/under"], "file"),
        (["--output", "{link}"], "is a link to nothing; name an empty folder"),
        (["--output", "x" * 300], "cannot be used: File name too long"),
        (["--output", "/proc/out"], '"/proc/out" cannot be read or written: No such file or directory'),
        (["--output", "{work}/dataset/out"], "dataset\", which is the run's own; name another"),
        (["--output", "{work}/exports/trl"], "exports\", which is the run's own; name another"),
        # The run swaps what stands there for its own.
        (["--output", "{work}/exports"], "exports\", which is the run's own; name another"),
        (["--dataset_path", "{elsewhere}"], "is not the dataset that"),
        (["--dataset_path", "nowhere.parquet"], 'no file or folder at dataset_path "nowhere.parquet"\n'),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(work_dir, tmp_path, capsys, change, message):
    (tmp_path / "full").mkdir()
    for name in ("full/file", "file"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    other = make_world(tmp_path / "other", num_questions=4)
    places = {"full": tmp_path / "full", "file": tmp_path / "file", "elsewhere": other.dataset_path}
    places |= {"link": tmp_path / "link", "work": work_dir}
    arguments = {"--format": "trl", "--output": str(tmp_path / "out")} | {change[0]: change[1].format(**places)}
    before = everything(tmp_path, work_dir)
    assert run(work_dir, *(word for both in arguments.items() for word in both)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert everything(tmp_path, work_dir) == before


@pytest.mark.parametrize("name", ["circle", "x" * 300, "file"])
def test_a_work_dir_that_is_no_folder_is_refused(tmp_path, capsys, name):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").touch()
    assert run(tmp_path / name, "--format", "trl", "--output", tmp_path / "out") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_pairs_is_refused(world, tmp_path, capsys):
    assert run(tmp_path / "none", "--format", "trl", "--output", tmp_path / "out") == 2
    work_dir = tmp_path / "work"
    publish_run(world, work_dir)
    pairs = work_dir / "pairs/pairs.parquet"
    table = pq.read_table(pairs)
    none = table.set_column(table.schema.get_field_index("status"), "status", pa.array(["identical"] * table.num_rows))
    pq.write_table(none, pairs)
    assert run(work_dir, "--format", "trl", "--output", tmp_path / "out") == 2
    assert "no pair of" in capsys.readouterr().err
    pairs.unlink()
    assert run(work_dir, "--format", "trl", "--output", tmp_path / "out") == 2
    assert "no pairs/pairs.parquet yet: let the run finish stage 2 first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def without_metadata(work_dir):
    table = pq.read_table(work_dir / "pairs/pairs.parquet")
    pq.write_table(table.replace_schema_metadata(None), work_dir / "pairs/pairs.parquet")


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (without_metadata, 2, "were made by an earlier version of this program; pair again"),
        (lambda work: os.truncate(work / "pairs/pairs.parquet", 2000), 2, 'pairs.parquet" is broken; pair again'),
        (lambda work: (work / "run.json").write_text("{}"), 2, "is not one of this version of the program"),
        (lambda work: (work / "run.json").write_text("[]"), 2, "is not one of this version of the program"),
        (with_entries(config={"removed": 1}), 2, "is not one of this version of the program ("),
        (with_entries(models={}), 2, "is not one of this version of the program (models has no instruct)"),
        (lambda work: (work / "sampled_answer/unit-00000.parquet").unlink(), 3, "unit-00000.parquet is gone; the"),
        (lambda work: os.truncate(work / "sampled_answer/unit-00000.parquet", 900), 3, "computes it again"),
    ],
)
def test_a_work_dir_that_is_damaged_or_of_another_version_is_told(work_dir, tmp_path, capsys, damage, code, message):
    damage(shutil.copytree(work_dir, tmp_path / "work"))
    assert run(tmp_path / "work", "--format", "trl", "--output", tmp_path / "out" / "deep") == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_where_one_format_has_no_row_none_is_written(tmp_path, capsys):
    world = hostile_world(tmp_path / "world", num_questions=12, kinds="0")
    publish_run(world, tmp_path / "work", distance=10_000)
    assert run(tmp_path / "work", "--format", "trl,internvl-mpo", "--output", tmp_path / "out") == 2
    assert "the format internvl-mpo has no row (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "least", "told"),
    [
        ("trl,scored", "1", f"--min_reward is about the formats {BEST}, and --format names trl, scored"),
        ("sft", "nan", "--min_reward must be a finite number, got nan"),
        ("sft", "high", "argument --min_reward: invalid float value: 'high'"),
        # Of 30 questions none has so good an answer.
        ("sft", "1e9", "30 rows: the best answer has less than 1e+09 of the reward sum"),
    ],
)
def test_a_least_reward_that_means_nothing_is_refused(work_dir, tmp_path, capsys, names, least, told):
    assert run(work_dir, "--format", names, "--output", tmp_path / "out", "--min_reward", least) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_best_answers_none_of_which_is_good_enough_are_told_of_answers(work_dir, tmp_path, capsys):
    """pairs.parquet has no answer that makes no pair."""
    assert run(work_dir, "--format", "sft", "--output", tmp_path / "out", "--min_reward", "1000") == 2
    told = capsys.readouterr().err
    assert "the format sft has no row (" in told
    assert told.endswith("); the format scored has every answer\n")


@pytest.mark.parametrize("name", exports.BEST_OF_N)
def test_a_run_without_an_answer_that_can_be_ranked_is_told_of_answers(tmp_path, capsys, caplog, name):
    world = make_world(tmp_path / "world")
    for row in world.rows:
        row["answer"] = ""
    publish_run(world, tmp_path / "work")
    assert run(tmp_path / "work", "--format", name, "--output", tmp_path / "out") == 2
    assert f"can be ranked: the format {name} has nothing to write; the format scored" in capsys.readouterr().err
    open_finished(tmp_path / "work", {}).write([name], tmp_path / "exports", tmp_path)
    assert f"no answer can be ranked: {tmp_path / 'exports' / name} is written without a row" in caplog.text
