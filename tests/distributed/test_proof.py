"""The slow proof: one dataset from 1, 2 and 3 ranks, shards and kills, by launch/run_engine.sh and without."""

import os
import signal
import sys
import time

import pytest
from jobs import ROOT, Job, Result, ranks_that_worked, stray_files
from test_same_dataset import WINDOWS, again
from worlds import bench_shaped, tiny_world

pytestmark = pytest.mark.slow


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(tiny_world, id="tiny_world"),
        pytest.param(bench_shaped, id="bench_shaped", marks=pytest.mark.long),
    ],
)
def alone(request, tmp_path_factory) -> tuple[Job, Result]:
    """The undisturbed run of one rank, and what it left."""
    job = request.param(tmp_path_factory.mktemp(request.param.__name__))
    job.engine_script(1)
    result = Result.of(job.work_dir)
    assert any(result.dataset)
    # Equality of bytes would mean little if every answer were the same.
    answers = [tuple(row["token_ids"]) for rows in result.units.values() for row in rows if "token_ids" in row]
    assert len(set(answers)) > len(answers) / 3
    return job, result


@pytest.mark.parametrize("num_processes", [pytest.param(2, marks=pytest.mark.long), 3])
def test_any_number_of_ranks_under_the_launcher_makes_the_same_dataset(alone, tmp_path, num_processes):
    job, expected = again(alone[0], tmp_path), alone[1]
    job.engine_script(num_processes, DATA_ENGINE_PROGRAM="together")
    assert Result.of(job.work_dir) == expected
    assert not stray_files(job.work_dir)
    assert ranks_that_worked(job) == num_processes, "some ranks found nothing to do: nothing was shared out"


@pytest.mark.parametrize("at_once", [pytest.param(False, marks=pytest.mark.long), True])
def test_three_shards_and_a_pairing_job_make_the_same_dataset(alone, tmp_path, at_once):
    flags = ("--stop_after_stage", "1", "--num_shards", "3", "--shard_index")
    shards = [again(alone[0], tmp_path, *flags, str(index)) for index in range(3)]
    if at_once:
        processes = [shard.start() for shard in shards]
        outputs = [process.communicate(timeout=600)[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], outputs
    else:
        for shard in shards:
            shard.run()
    again(alone[0], tmp_path, "--continue_from_stage", "2").run()
    assert Result.of(tmp_path / "work") == alone[1]


def test_two_ranks_killed_in_every_window_and_rerun_make_the_same_dataset(alone, tmp_path):
    job, log = again(alone[0], tmp_path), tmp_path / "kills"
    for number, window in enumerate(WINDOWS):
        # The ranks die in turn; rank 0 alone writes the dataset.
        rank = "0" if window == "dataset writing" else str(number % 2)
        environment = {"KILL_WINDOW": window, "KILL_RANK": rank, "KILL_LOG": str(log), "KILL_AT": "0"}
        # What the launcher makes of a rank that dies is shown in test_run_engine.py.
        job.world(2, code=-9, program="killed", **environment)
    job.engine_script(2)
    hits = log.read_text().splitlines()
    print({window: hits.count(window) for window in WINDOWS})
    assert hits == list(WINDOWS)
    assert Result.of(job.work_dir) == alone[1]
    assert not stray_files(job.work_dir)


def test_a_signalled_job_exits_75_and_goes_on(alone, tmp_path):
    job = again(alone[0], tmp_path)
    process = job.start(
        str(ROOT / "launch/run_engine.sh"), NUM_PROCESSES="2", PYTHON=sys.executable,
        ACCELERATE_CONFIG=str(ROOT / "launch/accelerate/cpu.yaml"),
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list((job.work_dir / "sampled_answer").glob("unit-*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert not (job.work_dir / "dataset").exists()
    job.engine_script(2)
    assert Result.of(job.work_dir) == alone[1]
