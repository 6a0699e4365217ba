"""The dataset of all questions, byte for byte, where --limit grew under way: ranks, shards, kills, given answers."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs import Job, Result, ranks_that_worked, stray_files, write_questions
from test_same_dataset import WINDOWS, again, golden_world, run_here

from data_engine.store import units

# Of units of three questions: two whole ones and one cut short; then three and another one.
FIRST, SECOND = ("--limit", "7"), ("--limit", "11")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Job:
    """The fresh run of all 26 questions: one process, this one."""
    job = golden_world(tmp_path_factory.mktemp("whole"))
    run_here(job)
    return job


def kept(job: Job, *numbers: int) -> dict[Path, int]:
    """Which files some units are."""
    folders = [path.name for path in job.work_dir.iterdir() if any(path.glob("unit-*.parquet"))]
    paths = [units.unit_path(job.work_dir, folder, number) for folder in folders for number in numbers]
    return {path: path.stat().st_ino for path in paths}


def replaced(job: Job) -> list[str]:
    """The units that were computed again."""
    return sorted(path.name.partition(".")[0] for path in (job.work_dir / "replaced").iterdir())


@pytest.mark.parametrize("ranks", [1, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (2, 3))])
def test_a_limit_that_grows_twice_and_is_left_out_makes_the_dataset_of_all(whole, tmp_path, ranks):
    first, job = again(whole, tmp_path, *FIRST), again(whole, tmp_path)
    first.world(ranks, program="together")
    before = kept(job, 0, 1)
    again(whole, tmp_path, *SECOND).world(ranks)
    later = kept(job, 2)
    job.world(ranks, program="together")
    assert Result.of(job.work_dir) == Result.of(whole.work_dir)
    assert kept(job, 0, 1) == before
    assert kept(job, 2) == later
    stages = ("instruct_logps", "reward_logps", "sampled_answer")
    assert replaced(job) == [f"{stage}-unit-{number:05d}" for stage in stages for number in (2, 3)]
    assert not stray_files(job.work_dir)
    assert ranks_that_worked(job) >= ranks


@pytest.mark.slow
def test_starts_with_either_limit_that_are_killed_make_the_dataset_of_all(whole, tmp_path):
    log = tmp_path / "kills"
    for number, window in enumerate(WINDOWS * 2):
        job = again(whole, tmp_path, *(FIRST if number < len(WINDOWS) else ()))
        at = "0" if window == "dataset writing" else "1"
        job.run(code=-9, program="killed", KILL_WINDOW=window, KILL_AT=at, KILL_LOG=str(log))
    run_here(job)
    assert log.read_text().splitlines() == [*WINDOWS, *WINDOWS]
    assert Result.of(job.work_dir) == Result.of(whole.work_dir)
    assert not stray_files(job.work_dir)


def test_shards_of_a_larger_limit_go_on_with_the_units_of_a_smaller_one(whole, tmp_path):
    """As an array of jobs and the job that pairs, twice; the second array has another number of tasks."""
    for limit, shards in ((FIRST, 2), ((), 3)):
        for index in range(shards):
            shard = ("--num_shards", str(shards), "--shard_index", str(index), "--stop_after_stage", "1")
            run_here(again(whole, tmp_path, *limit, *shard))
        job = again(whole, tmp_path, *limit, "--continue_from_stage", "2")
        run_here(job)
    assert Result.of(job.work_dir) == Result.of(whole.work_dir)
    assert len(replaced(job)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_by_one_queue_through_all_units_a_limit_that_grows_makes_the_dataset_of_all(whole, tmp_path, ranks):
    """As on a GPU."""
    for limit in (FIRST, ()):
        job = again(whole, tmp_path, *limit)
        job.world(ranks, program="one_queue", ONE_QUEUE_LOG=str(tmp_path / "begun"))
    assert Result.of(job.work_dir) == Result.of(whole.work_dir)


def test_given_answers_and_a_rule_that_knows_the_whole_dataset_give_the_same_scores(tmp_path):
    """An object that only later rows name counts in the answers to the first ones."""
    write_questions(tmp_path / "questions.parquet", 8)
    rows = pq.read_table(tmp_path / "questions.parquet").to_pylist()
    for number, row in enumerate(rows):
        row["objects"] = ["cat"] if number < 6 else ["dog"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    texts = ("A cat and a dog.", "A cat.", "A dog.", "A tree.")
    answers = [{"idx": row["idx"], "answer": text} for row in rows for text in texts]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    flags = ("--answers", str(tmp_path / "answers.jsonl"), "--rewards", "implicit,rule", "--rule", "objects")
    flags += ("--rank_by", "rule", "--rank", "1", "--unit_size", "3")
    alone = Job(tmp_path / "questions.parquet", tmp_path / "alone", flags)
    run_here(alone)
    for limit in (("--limit", "4"), ()):
        job = again(alone, tmp_path, *limit)
        run_here(job)
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    # Of the two that are named, one is there.
    first = pq.read_table(units.unit_path(job.work_dir, "rule", 0))["score"].to_pylist()[:4]
    assert first == [0.5, 1.0, 0.0, None]
