"""`data-engine loop`: what it refuses before anything is done. Whole loops: tests/distributed/test_loops.py."""

import os
import subprocess
from pathlib import Path

import pytest
import small_disks
from bound_run import Run

from data_engine.commands import loop
from data_engine.commands.main import main
from data_engine.rounds import work

LAUNCH = Path(__file__).parents[2] / "launch"
TRAIN = "sh train.sh {model} {dataset} {output}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("loop") / "run").make()


@pytest.fixture
def told(made, tmp_path, capsys, monkeypatch):
    """The exit code and what is said; a loop that would begin is noted in the place of its work."""
    began = []
    monkeypatch.setattr(loop, "work", lambda *found: began.append(found) or 0)
    (tmp_path / "train.sh").touch()
    monkeypatch.chdir(tmp_path)

    def start(*more: str, **changes: object) -> tuple[int, str, list]:
        flags = {f"{role}_model_path": made.folder / role for role in ("instruct", "reward")}
        flags |= {"dataset_path": made.folder / "questions.parquet", "image_root": made.folder / "pictures"}
        flags |= {"work_dir": tmp_path / "loop", "rounds": 2, "train": TRAIN} | changes
        code = main(["loop", *(f"--{name}={value}" for name, value in flags.items() if value is not None), *more])
        assert not (tmp_path / "loop").exists()
        return code, capsys.readouterr().err, began

    return start


def test_a_loop_that_may_begin(told):
    code, error, [(config, num_rounds, train)] = told("--seed", "4")
    assert (code, error) == (0, "")
    assert (config.seed, num_rounds, train) == (4, 2, TRAIN)


def test_the_last_of_a_flag_that_is_given_twice_counts(told):
    code, error, [(_, num_rounds, train)] = told("--rounds", "3", "--rounds=5", "--train", f"{TRAIN} more")
    assert (code, error, num_rounds, train) == (0, "", 5, f"{TRAIN} more")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rounds": None}, "missing: --rounds; usage: data-engine loop --rounds N --train 'COMMAND'"),
        ({"rounds": "two"}, 'rounds must be a whole number, at least 1, got "two"'),
        ({"rounds": "0"}, "rounds must be a whole number, at least 1"),
        ({"train": None}, "missing: --train; usage"),
        ({"train": "sh x {dataset}"}, "train has no {output}"),
        (
            {"train": "sh trian.sh {dataset} {output}"},
            'train names "trian.sh", which is not there; did you mean',
        ),
        ({"train": "sh x {output} {exports}"}, "train has {exports}, and nothing is exported"),
        ({"stop_after_stage": 1}, "loop runs all stages of all questions in each round: leave stop_after_stage out"),
        ({"num_shards": 2}, "leave num_shards out"),
        ({"answers": "a.parquet"}, "answers cannot be given to a loop"),
        ({"instruct_model_path": "{model}"}, "instruct_model_path is the model of the first round"),
        ({"instruct_model_path": "models/{round}"}, "instruct_model_path is the model of the first round"),
        ({"reward_model_path": "{model}"}, "name the model before DPO by reference_model_path"),
        ({"temprature": 1}, "unknown flag --temprature; did you mean --temperature?"),
        ({"round": 3}, "unknown flag --round; did you mean --rounds?"),
        ({"dataset_path": "part-{round}.parquet"}, 'dataset_path "part-2.parquet"'),
        ({"image_root": "pictures-{round}"}, 'image_root "pictures-2" is not a folder'),
        ({"reference_model_path": "./models/{round}"}, '--reference_model_path "./models/2": model path'),
    ],
)
def test_what_is_refused(told, changes, expected):
    code, error, began = told(**changes)
    assert (code, began) == (2, [])
    assert expected in error
    assert "Traceback" not in error


def test_a_folder_of_a_run_and_one_that_cannot_be_are_refused(made, tmp_path, told, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    code, error, began = told(work_dir=tmp_path / "run")
    assert (code, began) == (2, [])
    assert f'work_dir "{tmp_path}/run" holds a run: choose another one' in error
    # One that an earlier release let into a loop's folder.
    (tmp_path / "run/round-1").mkdir()
    (tmp_path / "run/round-1/config.yaml").touch()
    code, error, began = told(work_dir=tmp_path / "run")
    assert (code, began) == (2, [])
    assert f'work_dir "{tmp_path}/run" holds a run beside rounds: move its run.json away, and the loop goes on' in error
    monkeypatch.setattr(loop, "work", work.work)
    (tmp_path / "file").touch()
    code, error, _ = told(work_dir=tmp_path / "file")
    assert code == 2
    file = tmp_path / "file"
    assert error == f'data-engine: error: work_dir "{file}": "{file}" is a file; name a folder, or a place for one\n'


def test_a_disk_that_cannot_be_written_at_all_is_refused_as_for_a_run(tmp_path, told, monkeypatch):
    monkeypatch.setattr(loop, "work", work.work)
    with small_disks.small_disk(tmp_path, "size=1m,ro") as disk:
        code, error, _ = told(work_dir=disk / "loop")
    assert (code, error) == (
        2, f'data-engine: error: work_dir "{disk}/loop": cannot write to "{disk}": Read-only file system\n'
    )  # fmt: skip


@pytest.fixture
def full_disk(tmp_path):
    """A file system with room for two files or folders, and no more."""
    with small_disks.small_disk(tmp_path, "size=1m,nr_inodes=3") as disk:
        yield disk


def test_a_full_disk_ends_it_as_a_stop_does(told, full_disk, monkeypatch, caplog):
    monkeypatch.setattr(loop, "work", work.work)
    code, error, _ = told(work_dir=full_disk / "loop")
    assert code == 75
    [message] = [record.getMessage() for record in caplog.records if "cannot write" in record.getMessage()]
    assert message.startswith(f'cannot write "{full_disk}/loop/')
    assert "No space left on device" in message
    assert "make room, or mend the disk, and run the same command again" in message
    assert "Traceback" not in error


def test_questions_of_rounds_that_are_done_need_not_be_there_any_more(tmp_path, told):
    (tmp_path / "done/round-2").mkdir(parents=True)
    changes = {"work_dir": tmp_path / "done", "dataset_path": "part-{round}.parquet"}
    assert told(**changes)[0] == 2
    (tmp_path / "done/round-2/trained.json").touch()
    assert told(**changes)[0] == 0


def test_a_model_may_reward_itself_against_a_reference(made, told):
    reference = made.folder / "instruct"
    assert told(reward_model_path="{model}", reference_model_path=reference)[0] == 0
    # What a trainer writes beside it is not there before the first round.
    assert told(reward_model_path="{model}-{round}", reference_model_path=reference)[0] == 0


def test_all_mistakes_are_told_at_once(told):
    code, error, _ = told(rounds="0", train="sh x {output}", seed=-1)
    assert code == 2
    assert "rounds must be" in error
    assert "train has neither" in error
    assert "seed must be between" in error


def test_a_job_over_several_machines_is_refused(told, monkeypatch):
    monkeypatch.setenv("NUM_MACHINES", "2")
    code, error, _ = told()
    assert code == 2
    assert "a loop starts its runs and its trainer on one machine" in error


def test_a_trainer_under_slurm_may_import_what_is_beside_it(tmp_path):
    """The batch script keeps the files of its own folder from standing in for Python's, and hands on no such thing."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" "safe=${PYTHONSAFEPATH:-}"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    environment |= {"PYTHON": str(python), "SLURM_JOB_ID": "1", "DATA_ENGINE_LAUNCH": str(LAUNCH)}
    done = subprocess.run(
        ["sh", str(LAUNCH / "slurm/loop.sbatch"), "--rounds", "2"], env=environment, cwd=tmp_path, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "-P -m data_engine loop --rounds 2 safe=\n"
