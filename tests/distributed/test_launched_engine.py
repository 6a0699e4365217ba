"""The real command line under launch/run_engine.sh: its exit codes, and what a signal leaves behind."""

import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import ROOT, Job, stray_files, write_questions

SCRIPT = str(ROOT / "launch" / "run_engine.sh")
CPU = str(ROOT / "launch" / "accelerate" / "cpu.yaml")
FLAGS = ("--sample_k", "4", "--rank", "2", "--max_new_tokens", "32", "--unit_size", "2", "--temperature", "1.0")
PATIENCE_S = 120


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(write_questions(tmp_path / "questions.parquet", 24), tmp_path / "work", FLAGS)


def published(job: Job) -> list[Path]:
    return sorted(job.work_dir.glob("*/unit-*.parquet"))


def left_running(job: Job) -> list[str]:
    """Command lines that still name the job's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(job.work_dir) in words:
            found.append(" ".join(words))
    return found


# The script's part is in test_run_engine.py, the command's in test_validate_command.py.
@pytest.mark.slow
def test_a_mistake_is_told_once_and_exits_with_2_before_any_rank_starts(job):
    wrong = Job(job.dataset, job.work_dir, (*FLAGS, "--distanse", "3"))
    output = wrong.engine_script(2, code=2)
    assert output.count("--distanse") == 1
    assert "--distance" in output
    assert "Traceback" not in output
    assert not job.work_dir.exists()


@pytest.mark.slow
def test_usr2_to_a_rank_at_work_shows_where_its_threads_are_and_disturbs_nothing(job):
    lines = []
    job = Job(job.dataset, job.work_dir, (*FLAGS, "--limit", "4"))
    with job.start(sys.executable) as process:
        for line in process.stdout:
            lines.append(line)
            # The log's line: a stack may show the source that writes it.
            if "rank 0: loading the" in line:
                process.send_signal(signal.SIGUSR2)
    output = "".join(lines)
    assert process.returncode == 0, output
    # Once for each of the two models, from the main thread's outermost call to the innermost.
    assert output.count("Thread MainThread:") == 2
    stack = output[output.index("Thread MainThread:") :]
    assert 0 < stack.index("main.py") < stack.index("worker.py")
    assert len(list((job.work_dir / "dataset").iterdir())) == 1
    assert not stray_files(job.work_dir)


@pytest.mark.slow
def test_pairing_with_missing_units_exits_with_3_and_lists_them(job):
    output = Job(job.dataset, job.work_dir, (*FLAGS, "--continue_from_stage", "2")).engine_script(2, code=3)
    assert "sampled_answer" in output


@pytest.mark.slow
def test_a_mistake_that_only_a_rank_can_see_exits_with_2(job):
    """The check opens no picture; a rank does."""
    rows = pq.read_table(job.dataset).to_pylist()
    rows[-1]["image"] = {"bytes": b"no picture", "path": None}
    pq.write_table(pa.Table.from_pylist(rows), job.dataset)
    output = Job(job.dataset, job.work_dir, (*FLAGS, "--on_bad_row", "error")).engine_script(2, code=2)
    assert rows[-1]["idx"] in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["SIGTERM", *(pytest.param(name, marks=pytest.mark.long) for name in ("SIGUSR1", "SIGINT"))]
)
def test_a_signal_stops_the_run_with_75_and_the_same_command_goes_on(job, name):
    process = job.start(SCRIPT, NUM_PROCESSES="2", ACCELERATE_CONFIG=CPU, PYTHON=sys.executable)
    end = time.monotonic() + PATIENCE_S
    while not published(job) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, output
    assert not left_running(job)
    assert not stray_files(job.work_dir)
    kept = {path: path.stat().st_mtime_ns for path in published(job)}
    assert 0 < len(kept) < 36
    job.engine_script(2)
    assert len(published(job)) == 36
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "published units were computed again"


@pytest.mark.slow
@pytest.mark.parametrize("num_hanging", [1, 2])
def test_a_rank_told_to_stop_is_gone_after_its_grace_time_although_image_workers_hang(job, tmp_path, num_hanging):
    """5 s more than the grace time at most; the pictures would take CLOCK_S, 600 s, twice.

    The first picture is asked for alone, by the look at the first rows; those behind it are by two threads.
    """
    hanging = tmp_path / "hanging"
    hanging.touch()
    if num_hanging == 1:
        Path(f"{hanging}-not").touch()
    job = Job(job.dataset, job.work_dir, (*FLAGS, "--grace_s", "1"))
    process = job.start(sys.executable, program="hanging", HANGING=str(hanging))
    try:
        end = time.monotonic() + PATIENCE_S
        while len(hanging.read_text().splitlines()) < num_hanging:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, "no picture was asked for"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=1 + 5)
    finally:
        process.kill()
        workers = hanging.read_text().split()
        left = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        for pid in left:
            os.kill(int(pid), signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 75, output
    # No second try, and no worker outlives its rank.
    assert len(workers) == num_hanging
    assert not left
