"""`data-engine export` and `run --export`: what they write, what they refuse, and that nothing is half-written."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_world import hostile_world, publish_run
from stage2_world import digest, make_world

from data_engine import exports
from data_engine.commands import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("export") / "world")


@pytest.fixture(scope="module")
def work_dir(world, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("export") / "work"
    publish_run(world, work_dir)
    return work_dir


def run(*arguments) -> int:
    return main.main(["export", *map(str, arguments)])


def test_several_formats_are_written_each_into_a_folder_of_its_own(work_dir, tmp_path, capsys):
    assert run(work_dir, "--format", "rlaif-v, trl", "--output", tmp_path / "a" / "b") == 0
    assert sorted(os.listdir(tmp_path / "a/b")) == ["rlaif-v", "trl"]
    dataset = pq.read_table(work_dir / "dataset/dpo_dataset.parquet")
    assert pq.read_table(tmp_path / "a/b/rlaif-v/dpo_dataset.parquet") == dataset
    told = capsys.readouterr().out
    assert f"export rlaif-v: {dataset.num_rows} rows" in told
    assert str(tmp_path / "a/b/trl") in told
    # An empty folder will do as well.
    (tmp_path / "empty").mkdir()
    assert run(work_dir, "--format", "rlaif-v", "--output", tmp_path / "empty") == 0
    assert digest(tmp_path / "empty") == digest_of(tmp_path / "a/b", "rlaif-v")


def digest_of(folder, name) -> str:
    """As `digest`, of a folder with that one export in it."""
    alone = folder.parent / "alone"
    alone.mkdir()
    (folder / name).rename(alone / name)
    return digest(alone)


def test_what_was_rewritten_and_left_out_is_told_with_its_counts(tmp_path, capsys):
    world = hostile_world(tmp_path / "world", num_questions=30)
    publish_run(world, tmp_path / "work", distance=10_000)
    assert run(tmp_path / "work", "--format", "rlaif-v", "--output", tmp_path / "out") == 0
    told = capsys.readouterr().out
    kept = [row for row in pq.read_table(tmp_path / "work/pairs/pairs.parquet").to_pylist() if row["status"] == "kept"]
    # Of the kinds 1120st, the second, fourth, fifth and sixth have no place in these columns.
    beyond = [row for row in kept if int(row["idx"][1:]) % 6 not in (0, 1)]
    assert f"{len(beyond)} left out: the format has no place for the question's images" in told
    assert f"export rlaif-v: {len(kept) - len(beyond)} rows" in told
    assert " rewritten, so that a trainer reads control tokens in texts as text\n" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--format", "rlaif"], 'format "rlaif"; did you mean rlaif-v?'),
        (["--format", "llama_factory"], "did you mean llama-factory?"),
        (["--format", "zzz"], f"formats: {', '.join(exports.EXPORTS)}"),
        (["--format", "trl,trl"], "--format names trl twice"),
        (["--format", ""], 'unknown format ""'),
        (["--formt", "trl"], "--formt"),
        (["--output", "{full}"], "is not empty; name an empty folder"),
        (["--output", "{file}"], "is a file; name an empty folder"),
        (["--output", "{file}/under"], "file"),
        (["--dataset_path", "{elsewhere}"], "is not the dataset that"),
        (["--dataset_path", "nowhere.parquet"], "where the dataset has moved, give --dataset_path"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(work_dir, tmp_path, capsys, change, message):
    (tmp_path / "full").mkdir()
    for name in ("full/file", "file"):
        (tmp_path / name).write_text("mine")
    other = make_world(tmp_path / "other", num_questions=4)
    places = {"full": tmp_path / "full", "file": tmp_path / "file", "elsewhere": other.dataset_path}
    arguments = {"--format": "trl", "--output": str(tmp_path / "out")} | {change[0]: change[1].format(**places)}
    before = sorted(tmp_path.rglob("*"))
    assert run(work_dir, *(word for both in arguments.items() for word in both)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


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


def test_where_one_format_has_no_row_none_is_written(tmp_path, capsys):
    world = hostile_world(tmp_path / "world", num_questions=12, kinds="0")
    publish_run(world, tmp_path / "work", distance=10_000)
    assert run(tmp_path / "work", "--format", "trl,internvl-mpo", "--output", tmp_path / "out") == 2
    assert "the format internvl-mpo has no row (" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


KILL = """
import os, signal, sys
from data_engine import exports
from data_engine.commands import main
moved = exports.move_all
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
exports.move_all = die
main.main(sys.argv[1:])
"""


def test_a_killed_export_leaves_nothing_that_looks_finished_and_can_be_repeated(work_dir, tmp_path):
    arguments = ["export", str(work_dir), "--format", "trl", "--output", str(tmp_path / "out")]
    killed = subprocess.run([sys.executable, "-c", KILL, *arguments], capture_output=True)
    assert killed.returncode == -9
    assert not [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")]
    assert main.main(arguments) == 0
    assert os.listdir(tmp_path / "out") == ["trl"]


def test_the_help_names_every_format():
    shown = subprocess.run(
        [sys.executable, "-m", "data_engine", "export", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(name in " ".join(shown.split()) for name in exports.EXPORTS)


def test_a_run_of_before_control_tokens_were_kept_uses_its_markers(work_dir, tmp_path):
    found = json.loads((work_dir / "run.json").read_text())
    for model in found["models"].values():
        del model["control_tokens"]
    (tmp_path / "run.json").write_text(json.dumps(found))
    for name in ("pairs", "sampled_answer", "instruct_logps", "reward_logps"):
        (tmp_path / name).symlink_to(work_dir / name)
    assert run(tmp_path, "--format", "rlaif-v", "--output", tmp_path / "out") == 0
