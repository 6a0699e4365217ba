"""Hostile pictures by the hundred, in workers and through whole runs."""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_images import mutations, outcome
from run_files import read

from data_engine.questions import image_workers, images
from data_engine.questions.image_workers import ImageWorkers
from data_engine.store import units


@pytest.fixture
def workers():
    with ImageWorkers() as workers:
        yield workers


def hostile_files(workers: ImageWorkers, count: int) -> None:
    """Each is converted or refused with a reason, no worker is lost, and none grows beyond its limit."""
    converted, reasons, seen = 0, [], set()
    for data in mutations(random.Random(0), count):
        found = outcome(workers.decode, data)
        seen.update(worker.process.pid for worker in workers._free)
        if isinstance(found, str):
            reasons.append(found)
        else:
            converted += 1
            assert len(found[2]) == 3 * found[1][0] * found[1][1] <= 3e6
    assert min(converted, len(reasons)) > count / 8
    assert all(text and len(text) < 250 and "0x" not in text for text in reasons)
    assert not [text for text in reasons if text.startswith("decoding")]
    # One process did them all: none crashed or hung.
    [worker] = seen
    status = Path(f"/proc/{worker}/status").read_text()
    peak_bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024
    limit = image_workers.MEMORY_BYTES + image_workers.BYTES_A_PIXEL * 1e6
    print(f"{count} files: {converted} converted, {len(set(reasons))} different reasons for {len(reasons)} others; "
          f"peak of the worker {peak_bytes / 1e6:.0f} MB of {limit / 1e6:.0f}")  # fmt: skip
    # Nobody needs the limit: a picture of a megapixel is 3 MB.
    assert peak_bytes < 250e6 < limit


def test_150_hostile_files_are_converted_or_refused(workers):
    hostile_files(workers, 150)


@pytest.mark.slow
def test_2000_hostile_files_are_converted_or_refused(workers):
    hostile_files(workers, 2000)


def test_hostile_files_go_through_a_run_with_a_reason_for_each_that_is_left_out(config, tmp_path):
    hostile_run(config, tmp_path, 24)


@pytest.mark.slow
def test_200_hostile_files_go_through_a_run(config, tmp_path):
    hostile_run(config, tmp_path, 200)


def hostile_run(config, tmp_path: Path, count: int) -> None:
    """As the run sees them: under names that say another format, and each either answered or quarantined."""
    files = list(mutations(random.Random(1), count))
    names = ("a.jpg", "b.png", "c.tiff", "d.exe", "../../e.gif", "")
    rows = [
        {"idx": i, "question": "What is it?", "image": {"bytes": data, "path": names[i % len(names)]}}
        for i, data in enumerate(files)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    from data_engine.job import worker

    assert worker.run(config(tmp_path / "questions.parquet", sample_k=2, rank=1, unit_size=16)) == 0
    answered = {row["idx"] for row in read(tmp_path / "work/sampled_answer")}
    reasons = {row["idx"]: row["reason"] for row in list(units.left_out(tmp_path / "work"))}
    assert answered | set(reasons) == set(range(count))
    # A row that stage 0 can use may be too large for the crop of stage 1, which is then the stage that says so.
    assert {row["idx"] for row in read(tmp_path / "work/reward_logps")} == set(range(count)) - set(reasons)
    assert all(reason and len(reason) < 250 for reason in reasons.values())
    for i, data in enumerate(files):
        if isinstance(refused := outcome(images.decode, data, 64), str) and data:
            assert reasons[i] == refused
