"""A process that is stopped for a while, superseded by another start of the same work_dir, and goes on."""

import dataclasses
import json
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fork_server import POLL_S, Forked
from jobs import Job, write_questions

FLAGS = (
    "--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "8", "--unit_size", "3",
    "--temperature", "1.0",
)  # fmt: skip
EXPORTS = ("--export", "trl")


@pytest.fixture
def job(tmp_path):
    return Job(write_questions(tmp_path / "questions.parquet", 6), tmp_path / "work", (*FLAGS, *EXPORTS))


def with_flags(job: Job, *flags: str) -> Job:
    return dataclasses.replace(job, flags=(*job.flags, *flags))


def stopped(job: Job, before: str) -> Forked:
    """A start that has stopped itself right before it publishes `before`."""
    process = job.start(program="stopped", STOP_BEFORE=before)
    while state(process.pid) != "T":
        assert process.poll() is None, process.communicate()[0]
        time.sleep(POLL_S)
    return process


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def go_on(process: Forked) -> tuple[int, str]:
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize("before", ["scratch", "dataset", "pairs.parquet", "index.html", "trl"])
def test_who_was_stopped_before_it_published_its_pairing_does_not_publish_it_over_a_newer_one(job, before):
    older = stopped(job, before)
    newer = with_flags(job, "--rank", "1")
    newer.run(program="stopped", LAPSE_S="1")
    made = what_is_made(job.work_dir)
    code, output = go_on(older)
    assert what_is_made(job.work_dir) == made
    assert settings_of(job.work_dir)["rank"] == 1
    assert code == 3, output
    assert "another start of" in output
    assert "Traceback" not in output
    assert not list(job.work_dir.glob(".*"))


def what_is_made(work_dir: Path) -> dict[str, bytes]:
    files = (path for name in ("dataset", "pairs", "exports", "report") for path in (work_dir / name).rglob("*"))
    return {str(path): path.read_bytes() for path in files if path.is_file()}


def settings_of(work_dir: Path) -> dict:
    return json.loads(pq.read_schema(work_dir / "pairs/pairs.parquet").metadata[b"settings"])
