"""A run with three sources of reward, by two ranks that are killed: the bytes of a run that nothing disturbs.

The judge is asked by the default template, and about three aspects.
"""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from jobs import GOLDENS, Job, Result, ranks_that_worked, stray_files, write_hard_questions

WINDOWS = ("sampling", "scoring", "judging", "before rename")
STAGES = {"sampled_answer", "instruct_logps", "contrast_logps", "reward_logps", "yesno"}


# Each starts ranks several times.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[(), ("true", "kind", "short")], ids=["one", "aspects"])
def alone(request, tmp_path_factory) -> Job:
    """10 questions, and four bad ones among them."""
    folder = tmp_path_factory.mktemp("alone")
    pictures = write_hard_questions(folder / "questions.parquet", 10)
    flags = ("--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "12", "--unit_size", "2")
    sources = ("--rewards", "implicit,contrast,yesno", "--yesno_model_path", str(GOLDENS / "reward"))
    for name in request.param:
        (folder / f"{name}.txt").write_text(f"{{question}} {{answer}} Is it {name}?")
    if request.param:
        sources += ("--yesno_template", ",".join(f"{name}={folder / name}.txt" for name in request.param))
    job = Job(folder / "questions.parquet", folder / "work", (*flags, *pictures, *sources))
    job.run()
    return job


def files_of(work_dir: Path) -> dict[str, bytes]:
    """Of every unit and of the dataset, byte for byte."""
    files = [*work_dir.glob("*/unit-*.parquet"), *(work_dir / "dataset").iterdir()]
    return {str(path.relative_to(work_dir)): path.read_bytes() for path in files}


def test_two_ranks_killed_at_work_on_each_source_and_run_again_write_the_same_bytes(alone, tmp_path):
    job, log = dataclasses.replace(alone, work_dir=tmp_path / "work"), tmp_path / "kills"
    for number, window in enumerate(WINDOWS):
        job.world(
            2, program="killed", code=-9, KILL_WINDOW=window, KILL_RANK=str(number % 2), KILL_AT="0",
            KILL_LOG=str(log),
        )  # fmt: skip
    assert log.read_text().split("\n")[:-1] == list(WINDOWS)
    job.world(2)
    # Logs of every start.
    assert ranks_that_worked(job) > 2
    found = files_of(job.work_dir)
    assert {name.partition("/")[0] for name in found} == STAGES | {"dataset"}
    assert found == files_of(alone.work_dir)
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert stray_files(job.work_dir) == []


def test_one_and_three_ranks_write_the_same_bytes(alone, tmp_path):
    for ranks in (1, 3):
        job = dataclasses.replace(alone, work_dir=tmp_path / f"{ranks}")
        job.world(ranks)
        assert files_of(job.work_dir) == files_of(alone.work_dir)


def test_models_that_are_split_over_two_ranks_give_the_same_numbers(alone, tmp_path):
    flags = (*alone.flags, "--zero3", "on", "--stop_after_stage", "1")
    job = dataclasses.replace(alone, work_dir=tmp_path / "work", flags=flags)
    job.world(2)
    unit = pq.read_schema(next(alone.work_dir.glob("yesno/unit-*")))
    scores = [("yesno", name) for name in unit.names if name.startswith("score")]
    for stage, column in (("instruct_logps", "sum"), ("contrast_logps", "sum"), *scores):
        one, other = (
            [row for file in sorted((work / stage).glob("unit-*")) for row in pq.read_table(file).to_pylist()]
            for work in (alone.work_dir, job.work_dir)
        )
        assert [row["sample_index"] for row in one] == [row["sample_index"] for row in other]
        assert [row[column] for row in one] == pytest.approx([row[column] for row in other], abs=1e-4)
