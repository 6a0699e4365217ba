"""`data-engine export`: what it writes, and that nothing is half-written. What it refuses: test_export_refusals.py."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from export_run import BEST, run, with_entries
from hostile_world import hostile_world, publish_run
from stage2_world import digest

from data_engine import exports
from data_engine.commands import export, main


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


def test_an_export_goes_to_a_home_that_the_shell_did_not_fill_in(work_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(work_dir, "--format", "rlaif-v", "--output=~/out") == 0
    assert (tmp_path / "out/rlaif-v/dpo_dataset.parquet").exists()


def digest_of(folder, name) -> str:
    """As `digest`, of a folder with that one export in it."""
    alone = folder.parent / "alone"
    alone.mkdir()
    (folder / name).rename(alone / name)
    return digest(alone)


@pytest.mark.parametrize("others", [{"distance": 1}, {"distance": 10_000, "max_pairs": 1}])
def test_an_export_of_pairs_that_are_written_anew_meanwhile_is_not_written(
    world, work_dir, tmp_path, capsys, monkeypatch, others
):
    """By a start with other settings, between the export's count of the kept pairs and its reading of them."""
    work = shutil.copytree(work_dir, tmp_path / "work")
    build = export.build

    def late(name, source, scratch):
        assert len(source.pairs)
        world.pair(work, bound=json.loads((work / "run.json").read_text())["bound"], **others)
        return build(name, source, scratch)

    monkeypatch.setattr(export, "build", late)
    assert run(work, "--format", "scored,trl", "--output", tmp_path / "out") == 3
    assert "were written anew meanwhile: give the command again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
    ("name", "file"),
    [("sft", "train.parquet"), ("llama-factory-sft", "data.parquet"), ("ms-swift-sft", "train.parquet")],
)
def test_the_card_of_best_answers_says_how_many_were_not_good_enough(work_dir, tmp_path, capsys, name, file):
    assert run(work_dir, "--format", f"{name},trl", "--output", tmp_path / "out", "--min_reward", "0.13") == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "less than 0.13" in line]
    count = int(line.split()[0])
    assert 0 < count < 30
    assert pq.read_table(tmp_path / "out" / name / file).num_rows == 30 - count
    card = (tmp_path / "out" / name / "README.md").read_text()
    assert f"left out: the best answer has less than 0.13 of the reward sum | {count} |" in card
    assert "less than 0.13" not in (tmp_path / "out/trl/README.md").read_text()


def test_a_full_disk_leaves_nothing_half_written(work_dir, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(work_dir, "--format", "trl,llama-factory", "--output", tmp_path / "out" / "deep") == 2
    assert "cannot be read or written: No space left on device\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_exports_into_one_folder_leave_one_of_them_whole(work_dir, tmp_path, capsys, monkeypatch):
    built = exports.build

    def slow(name, *arguments):
        # The other one is done before this one has moved anything.
        monkeypatch.setattr(export, "build", built)
        assert run(work_dir, "--format", "llama-factory,trl", "--output", tmp_path / "out") == 0
        return built(name, *arguments)

    monkeypatch.setattr(export, "build", slow)
    assert run(work_dir, "--format", "sft,trl", "--output", tmp_path / "out") == 2
    assert 'is not empty any more: another program has written "trl" there' in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "out")) == ["llama-factory", "trl"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(work_dir, tmp_path, capsys, monkeypatch, number):
    monkeypatch.setattr(export, "build", lambda *arguments: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert run(work_dir, "--format", "trl", "--output", tmp_path / "out") == 75
    assert "interrupted; run the same command again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert signal.getsignal(number) is before


def test_a_run_in_an_archive_that_cannot_be_written_is_exported(work_dir, tmp_path, monkeypatch):
    archive = shutil.copytree(work_dir, tmp_path / "archive")
    shutil.rmtree(archive / "hashes")
    before = sorted(archive.rglob("*"))
    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run(archive, "--format", "rlaif-v", "--output", tmp_path / "out") == 0
    assert sorted(archive.rglob("*")) == before


@pytest.mark.parametrize("told_by", ["flag", "later start"])
def test_a_copy_of_a_dataset_of_the_hub_takes_its_place(work_dir, world, tmp_path, told_by):
    moved = shutil.copytree(work_dir, tmp_path / "work")
    config = json.loads((moved / "run.json").read_text())["config"]
    config |= {"dataset_path": "owner/gone", "dataset_split": "validation", "dataset_revision": "v1"}
    flag = ["--dataset_path", world.dataset_path] if told_by == "flag" else []
    with_entries(config=config, places={} if flag else {"dataset_path": str(world.dataset_path)})(moved)
    assert run(moved, "--format", "rlaif-v", *flag, "--output", tmp_path / "out") == 0


def test_answers_are_exported_though_no_pair_is_kept(world, tmp_path, capsys):
    publish_run(world, tmp_path / "work", min_margin=1e9)
    assert run(tmp_path / "work", "--format", "scored,sft", "--output", tmp_path / "out") == 0
    assert pq.read_table(tmp_path / "out/scored/scored.parquet").num_rows > 0
    assert pq.read_table(tmp_path / "out/sft/train.parquet").num_rows > 0
    assert run(tmp_path / "work", "--format", "scored,trl", "--output", tmp_path / "more") == 2
    told = "is kept: the format trl has nothing to write; those that are made of answers need none: "
    told = f'no pair of "{tmp_path}/work/pairs/pairs.parquet" {told}{BEST}, scored\n'
    assert told in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


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


@pytest.mark.parametrize("columns", [50, 80, 130])
def test_the_help_names_every_format(columns):
    shown = subprocess.run(
        [sys.executable, "-m", "data_engine", "export", "--help"], capture_output=True, text=True, check=True,
        # Narrow, so that lines end where they would cut a name in two.
        env=os.environ | {"COLUMNS": str(columns)},
    ).stdout  # fmt: skip
    assert {*exports.EXPORTS} <= {word.strip(",") for word in shown.split()}


def test_a_run_of_before_control_tokens_were_kept_uses_its_markers(work_dir, tmp_path):
    found = json.loads((work_dir / "run.json").read_text())
    for model in found["models"].values():
        del model["control_tokens"]
    (tmp_path / "run.json").write_text(json.dumps(found))
    for name in ("pairs", "sampled_answer", "instruct_logps", "reward_logps"):
        (tmp_path / name).symlink_to(work_dir / name)
    assert run(tmp_path, "--format", "rlaif-v", "--output", tmp_path / "out") == 0
