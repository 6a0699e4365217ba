"""A run on a file system that really fills up, and goes on once there is room."""

import dataclasses
import re

import pytest
import small_disks
from jobs import Job, Result, stray_files, write_questions

FLAGS = (
    "--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "32", "--unit_size", "2",
    "--temperature", "1.0",
)  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    with small_disks.small_disk(tmp_path, "size=128k") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_75_and_what_is_needed_and_it_goes_on_after(tmp_path, small_disk):
    calm = Job(write_questions(tmp_path / "questions.parquet", 14), tmp_path / "calm", FLAGS)
    calm.run()
    job = dataclasses.replace(calm, work_dir=small_disk / "work")
    output = job.run(code=75)
    assert "No space left on device" in output
    size, disk = r"\d[\d.]* [kM]B", re.escape(f'on the file system of "{job.work_dir}"')
    assert re.search(f"need (about|more than) {size} more, {size} are free {disk}: {size} are missing", output)
    assert "Traceback" not in output
    published = sorted(job.work_dir.glob("*/unit-*.parquet"))
    assert 0 < len(published) < 21
    assert not [path for path in stray_files(job.work_dir) if path.name.startswith(".unit")]
    kept = {path: path.stat().st_mtime_ns for path in published}
    small_disks.with_room(small_disk, "50m")
    job.run()
    assert Result.of(job.work_dir) == Result.of(calm.work_dir)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "published units were computed again"
    assert not stray_files(job.work_dir)
