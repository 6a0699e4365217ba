"""One dataset, byte for byte, however the job was run: ranks, shards, launchers, kills."""

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import Job, Result, ranks_that_worked, stray_files, torchrun, write_hard_questions
from stage2_world import digest

from data_engine.commands import main
from data_engine.stages import RunStages

FLAGS = (
    "--sample_k", "4", "--rank", "2", "--distance", "1000", "--max_new_tokens", "16", "--unit_size", "3",
    "--temperature", "1.0",
)  # fmt: skip
# Every place where a rank can die that leaves something different behind.
WINDOWS = ("sampling", "mid-write", "before rename", "after rename", "scoring", "dataset writing")


def golden_world(folder: Path) -> Job:
    """The goldens' tiny random checkpoints, whose answers differ in length from 1 token to the limit."""
    flags = write_hard_questions(folder / "questions.parquet", 22)
    return Job(folder / "questions.parquet", folder / "work", (*FLAGS, *flags))


def again(job: Job, folder: Path, *flags: str) -> Job:
    return dataclasses.replace(job, work_dir=folder / "work", flags=(*job.flags, *flags))


def run_here(job: Job) -> None:
    """As `job.run`, without a process that would import all anew."""
    assert main.main(["run", *job.arguments()]) == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Job:
    """The undisturbed run: one process, this one."""
    job = golden_world(tmp_path_factory.mktemp("alone"))
    run_here(job)
    return job


def test_a_run_leaves_what_the_design_names_and_nothing_else(alone):
    result = Result.of(alone.work_dir)
    assert list(result.dataset) == ["dpo_dataset.parquet"]
    assert len(result.units) == 3 * 9
    assert [(row["idx"], row["missing"]) for row in result.left_out] == [
        ("broken", False), ("silent", False), ("long", False), ("away", True),
    ]  # fmt: skip
    assert sum(len(rows) for name, rows in result.units.items() if name.startswith("sampled")) == 22 * 4
    # Equality of bytes would mean little if every answer were the same.
    assert len({tuple(row["token_ids"]) for rows in result.units.values() for row in rows if "token_ids" in row}) > 80
    assert not stray_files(alone.work_dir)


@pytest.mark.slow
def test_three_ranks_under_torchrun_make_the_same_dataset(alone, tmp_path):
    job = again(alone, tmp_path)
    job.run(*torchrun(3), program="together")
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not stray_files(job.work_dir)
    assert ranks_that_worked(job) == 3, "a rank found nothing to do"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_makes_the_same_dataset(alone, tmp_path, ranks):
    job = again(alone, tmp_path)
    job.world(ranks, program="together")
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not stray_files(job.work_dir)
    assert ranks_that_worked(job) == ranks


def by_one_queue(alone: Job, folder: Path, ranks: int = 1, code: int | None = 0, **options: str) -> tuple[Job, list]:
    """The job by the path of a GPU, and the units that a rank began while it had others in hand."""
    job, log = again(alone, folder), folder / "begun"
    job.world(ranks, code=code, **{"program": "one_queue", "ONE_QUEUE_LOG": str(log), **options})
    return job, log.read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_by_one_queue_through_all_units_any_number_of_ranks_makes_the_same_dataset(alone, tmp_path, ranks):
    """That of the plain path too: with one thread in fp32 the draws are the same."""
    job, begun = by_one_queue(alone, tmp_path, ranks)
    assert len(begun) > 2
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not stray_files(job.work_dir)
    assert ranks_that_worked(job) == ranks


@pytest.mark.slow
def test_with_compiled_layers_one_rank_and_two_make_the_same_dataset_and_the_answers_of_plain_ones(alone, tmp_path):
    """By a real compiler; the second job begins with other units, so its first sizes are others."""
    one, two = (again(alone, tmp_path / name, "--compile_layers") for name in ("one", "two"))
    one.run()
    two.world(2, program="together")
    assert Result.of(one.work_dir) == Result.of(two.work_dir)
    assert ranks_that_worked(two) == 2
    compiled, plain = (Result.of(job.work_dir).units for job in (one, alone))
    for name, rows in plain.items():
        for row, other in zip(rows, compiled[name], strict=True):
            if "token_logps" in row:
                assert np.allclose(other["token_logps"], row["token_logps"], rtol=0, atol=1e-4)
            else:
                assert other == row


@pytest.mark.slow
def test_a_process_killed_with_several_units_in_hand_makes_the_same_dataset(alone, tmp_path):
    kills = {"KILL_WINDOW": "sampling", "KILL_AT": "20", "KILL_LOG": str(tmp_path / "kills")}
    job, begun = by_one_queue(alone, tmp_path, code=-9, program="killed", **kills)
    assert begun
    job.run(program="one_queue")
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not stray_files(job.work_dir)


@pytest.mark.slow
def test_one_of_two_ranks_exports_and_writes_what_the_command_writes(alone, tmp_path):
    names = "rlaif-v,trl,llama-factory-kto,scored"
    job = again(alone, tmp_path, "--export", names)
    told = job.world(2)
    assert [told.count(f"export {name}: ") for name in names.split(",")] == [1] * 4
    command = [sys.executable, "-m", "data_engine", "export", str(alone.work_dir), "--format", names]
    subprocess.run([*command, "--output", str(tmp_path / "out")], check=True, capture_output=True)
    assert digest(job.work_dir / "exports") == digest(tmp_path / "out")


@pytest.mark.slow
def test_a_rank_that_is_ten_times_slower_and_clocks_that_jump_change_nothing(alone, tmp_path):
    """Nobody takes a unit from its owner, and the slow rank takes fewer."""
    job = again(alone, tmp_path)
    job.world(3, program="troubled")
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    done = collections.Counter(
        (line["stage"], line["unit"], file.stem[: len("rank-0")])
        for file in (job.work_dir / "logs").glob("rank-*.jsonl")
        for line in map(json.loads, file.read_text().splitlines())
        if "unit" in line
    )
    assert sorted((stage, unit) for stage, unit, _ in done) == sorted(
        (s, u) for s in RunStages().by_name for u in range(9)
    )
    by_rank = collections.Counter(rank for _, _, rank in done.elements())
    assert by_rank["rank-1"] < min(by_rank["rank-0"], by_rank["rank-2"])


@pytest.mark.parametrize("windows", [("mid-write",), pytest.param(WINDOWS, marks=pytest.mark.slow)])
def test_a_process_killed_and_rerun_makes_the_same_dataset(alone, tmp_path, windows):
    job = again(alone, tmp_path)
    log = tmp_path / "kills"
    for window in windows:
        job.run(
            code=-9,
            program="killed",
            KILL_WINDOW=window,
            KILL_AT="0" if window == "dataset writing" else "1",
            KILL_LOG=str(log),
        )
    run_here(job)
    assert log.read_text().splitlines() == list(windows)
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not stray_files(job.work_dir)


@pytest.mark.slow
def test_one_shard_alone_is_incomplete_and_says_what_is_missing(alone, tmp_path):
    shard = again(alone, tmp_path, "--num_shards", "2", "--shard_index", "1")
    output = shard.run(code=3)
    assert "sampled_answer: 0, 2, 4, 6" in output
    assert "Traceback" not in output
