"""What `data-engine submit` asks of SLURM, whose programs are stood in for here; tests/distributed/test_slurm.py has
the real ones."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import data_engine
from data_engine.commands import main
from data_engine.commands.submit import _seconds, sbatch_folder
from data_engine.errors import UserError

LAUNCH = Path(__file__).parents[2] / "launch"
JOB = ("--config", "configs/llava-1.5-7b.yaml", "--work_dir", "w")


@pytest.fixture
def slurm(place) -> Path:
    """Programs that note how they were called; sbatch answers with ids from 70 on, or fails at `fail-ID`."""
    folder = place / "bin"
    folder.mkdir()
    answer = """
id=$(($(grep -c ^sbatch calls) + 69))
[ ! -e fail-$id ] || { echo "no partition" >&2; exit 1; }
echo "$id;cluster"
"""
    for name, then in (("sbatch", answer), ("scancel", "")):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> calls\n{then}')
        (folder / name).chmod(0o755)
    (place / "calls").touch()
    return place


def in_a_process(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    # PYTHONPATH: the code under test need not be the one that is installed.
    environment = {"PATH": f"{place}/bin:/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(
        [sys.executable, "-m", "data_engine", "submit", *arguments],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def submit(monkeypatch, capfd):
    """The command in this process, which has imported already what the check of a job needs."""
    importlib.import_module("data_engine.planning.heavy")

    def run(place: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
        monkeypatch.setenv("PATH", path or f"{place}/bin:/usr/bin:/bin")
        capfd.readouterr()
        code = main.main(["submit", *arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return run


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


@pytest.mark.slow
def test_given_answers_are_checked_and_go_to_both_jobs_as_they_were_named(submit, slurm):
    """Jobs start in the folder from which they were submitted, where a relative path means the same file."""
    idx = pq.read_table(slurm / "data/questions.parquet")["idx"][0].as_py()
    rows = [{"idx": idx, "answer": answer} for answer in ("A cat.", "A dog.", 7)]
    (slurm / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = (*JOB, "--rank", "1", "--answers", "mine.jsonl")
    done = submit(slurm, *flags, "--array", "2")
    assert done.returncode == 2
    assert 'answers "mine.jsonl", line 3: answer is 7; expected text' in done.stderr
    assert not calls(slurm)
    (slurm / "mine.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    done = submit(slurm, *flags, "--array", "2")
    assert done.returncode == 0, done.stderr
    assert "2 answers to 1 of " in done.stdout
    assert [" --answers mine.jsonl" in call for call in calls(slurm)] == [True, True]


def test_an_array_and_the_pairing_job_that_waits_for_it_are_submitted(submit, slurm):
    done = submit(slurm, *JOB, "--array", "3", "--sbatch", "--time 60", "--sbatch_pair=--gres none", "--seed", "5")
    assert done.returncode == 0, done.stderr
    common = f"sbatch --parsable --export=ALL,PYTHON={sys.executable},DATA_ENGINE_LAUNCH={LAUNCH}"
    flags = f"{' '.join(JOB)} --seed 5"
    array = f"--array=0-2 --output=w/logs/slurm-%A_%a.out --time 60 {LAUNCH}/slurm/array.sbatch"
    wait = "--dependency=afterok:70 --kill-on-invalid-dep=yes --output=w/logs/slurm-%j.out"
    assert calls(slurm) == [
        f"{common} {array} {flags} --num_shards 3",
        f"{common} --time 60 --gres none {wait} {LAUNCH}/slurm/pair.sbatch {flags}",
    ]
    assert "array job 70: 3 tasks" in done.stdout
    assert "pairing job 71" in done.stdout
    assert "data-engine status w" in done.stdout
    # SLURM makes no folder for a job's output, and a job without one fails.
    assert (slurm / "w/logs").is_dir()


def test_what_the_tasks_wait_for_the_pairing_job_does_not_wait_for_instead_of_them(submit, slurm):
    """sbatch goes by the last of two."""
    done = submit(slurm, *JOB, "--array", "2", "--sbatch", "--dependency afterok:44 --account=a")
    assert done.returncode == 0, done.stderr
    array, pair = (call.split() for call in calls(slurm))
    of = lambda call: [word for word in call if word.startswith("after") or "=after" in word]  # noqa: E731
    assert (of(array), of(pair)[-1]) == (["afterok:44"], "--dependency=afterok:70")


def test_a_percent_sign_in_a_work_dir_is_no_number_of_slurms(submit, slurm):
    done = submit(slurm, *JOB, "--array", "2", "--work_dir", "run-50%j")
    assert done.returncode == 0, done.stderr
    array, pair = calls(slurm)
    assert "--output=run-50%%j/logs/slurm-%A_%a.out" in array
    assert "--output=run-50%%j/logs/slurm-%j.out" in pair
    assert "--work_dir run-50%j" in array


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("9", 540), ("9:30", 570), ("1:00:00", 3600), ("1-2", 93600), ("1-2:30", 95400), ("1-2:30:10", 95410),
        ("soon", None), ("", None), ("1:2:3:4", None),
    ],
)  # fmt: skip
def test_times_are_read_as_slurm_does(time, seconds):
    assert _seconds(time) == seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (JOB, "missing: --array"),
        (("--array", "2"), "missing: --instruct_model_path, --reward_model_path, --dataset_path, --work_dir"),
        ((*JOB, "--array"), "--array needs a value"),
        ((*JOB, "--array", "0"), 'array must be a whole number of jobs, at least 1, got "0"'),
        ((*JOB, "--array", "2", "--sbatch", "--comment 'x"), "sbatch cannot be cut into options"),
        ((*JOB, "--array", "2", "--sample_k", "1"), "sample_k must be at least 2"),
        ((*JOB, "--array", "2", "--dataset_path", "nowhere"), "nowhere"),
        ((*JOB, "--array", "2", "--num_shards", "4"), "sets num_shards itself"),
        ((*JOB, "--array", "2", "--stop_after_stage", "1"), "sets stop_after_stage itself"),
        ((*JOB, "--array", "2", "--sbatch", "--mem 4G --export=NONE"), "sbatch has --export, which submit sets itself"),
        ((*JOB, "--array", "2", "--sbatch", "-a 0-3%2"), "sbatch has --array, which submit sets itself"),
        ((*JOB, "--array", "2", "--sbatch", "--outp x"), "sbatch has --output, which submit sets itself"),
        ((*JOB, "--array", "2", "--sbatch", "--ar=0-9"), "sbatch has --array, which submit sets itself"),
        ((*JOB, "--array", "2", "--sbatch", "--wrap=true"), "sbatch has --wrap, which submit sets itself"),
        ((*JOB, "--array", "2", "--sbatch_pair", "-d afterok:1"), "sbatch_pair has --dependency, which submit sets"),
        ((*JOB, "--array", "2", "--sbatch", "--time 1"), "sbatch has --time 1: jobs stop 120 s before their limit"),
        ((*JOB, "--array", "2", "--work_dir", "back\\slash"), "has a backslash in its name"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_submitted(submit, slurm, arguments, message):
    done = submit(slurm, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert calls(slurm) == []
    assert not (slurm / "w").exists()


def test_a_login_node_needs_no_gpu_for_jobs_that_ask_for_one(submit, slurm):
    done = submit(slurm, *JOB, "--array", "2", "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert [" --device cuda" in call for call in calls(slurm)] == [True, True]


def test_an_option_that_begins_as_another_one_does_is_told_once(submit, slurm):
    done = submit(slurm, *JOB, "--array", "2", "--sbatch=--export=NONE")
    told = [line for line in done.stderr.splitlines() if "which submit sets itself" in line]
    assert told == ["data-engine: error: sbatch has --export, which submit sets itself: leave it out"]


def test_the_pairing_job_loads_no_model_and_may_be_shorter(submit, slurm):
    done = submit(slurm, *JOB, "--array", "2", "--sbatch_pair", "--time 4")
    assert done.returncode == 2
    assert "sbatch_pair has --time 4: jobs stop 120 s before their limit, and a pairing that was" in done.stderr
    assert "give 5 minutes at least" in done.stderr
    done = submit(slurm, *JOB, "--array", "2", "--sbatch_pair", "--time 5")
    assert done.returncode == 0, done.stderr


def test_mistakes_of_options_flags_and_files_are_told_at_once(submit, slurm):
    wrong = ("--sbatch", "--comment 'x", "--sample_k", "1", "--dataset_path", "nowhere", "--num_shards", "4")
    done = submit(slurm, *JOB, *wrong)
    told = [line for line in done.stderr.splitlines() if line.startswith("data-engine: error: ")]
    assert len(told) == 5, told
    for word in ("missing: --array", "sbatch cannot be cut", "sets num_shards itself", "sample_k must be", "nowhere"):
        assert sum(word in line for line in told) == 1, (word, told)
    assert calls(slurm) == []


def test_jobs_that_have_no_unit_are_warned_of(submit, slurm):
    """Of the configuration's questions there are fewer units than jobs."""
    rows = pq.read_metadata(slurm / "data/questions.parquet").num_rows
    done = submit(slurm, *JOB, "--array", str(rows + 2), "--unit_size", "1")
    assert done.returncode == 0, done.stderr
    told = f"data-engine: warning: {rows + 2} shards have {rows} unit"
    assert sum(line.startswith(told) for line in done.stderr.splitlines()) == 1, done.stderr


def test_a_machine_without_slurm_is_told_so(submit, slurm):
    done = submit(slurm, *JOB, "--array", "2", path=str(slurm))
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no sbatch on this machine" in done.stderr


@pytest.mark.parametrize("in_its_own_process", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_is_started_from_any_folder(submit, slurm, in_its_own_process):
    (slurm / "launch").unlink()
    done = (in_a_process if in_its_own_process else submit)(slurm, *JOB, "--array", "2")
    assert done.returncode == 0, done.stderr
    assert [Path(line.split(".sbatch")[0].split()[-1]).parent for line in calls(slurm)] == [LAUNCH / "slurm"] * 2


def test_a_package_in_a_folder_whose_name_sbatch_would_cut_is_refused(tmp_path, monkeypatch):
    launch = tmp_path / "a,b/data_engine/launch"
    launch.mkdir(parents=True)
    (launch / "run_engine.sh").touch()
    monkeypatch.setattr(data_engine, "__file__", str(launch.parent / "__init__.py"))
    with pytest.raises(UserError, match="has a comma in its name"):
        sbatch_folder()


def test_the_help_names_the_folder_of_the_scripts(submit, slurm):
    done = submit(slurm, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"The scripts are in {LAUNCH}." in done.stdout


@pytest.mark.parametrize(("failing", "cancelled"), [pytest.param(70, [], marks=pytest.mark.slow), (71, ["scancel 70"])])
def test_one_job_never_stays_in_the_queue_without_the_other(submit, slurm, failing, cancelled):
    (slurm / f"fail-{failing}").touch()
    done = submit(slurm, *JOB, "--array", "2")
    assert done.returncode == 2
    assert "no partition" in done.stderr
    assert [line for line in calls(slurm) if not line.startswith("sbatch")] == cancelled


@pytest.mark.parametrize("flag", ["--gres", "--partition", "--mem", "--time"])
def test_an_option_of_sbatch_that_is_given_as_a_flag_is_told_where_it_goes(slurm, submit, flag):
    done = submit(slurm, *JOB, "--array", "2", flag, "x")
    assert done.returncode == 2
    assert f'unknown flag {flag}; options of sbatch go into --sbatch: --sbatch "{flag} ..."' in done.stderr
