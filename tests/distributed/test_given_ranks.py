"""Given answers, by several ranks and through kills: the same bytes as by one process that nothing disturbs."""

import dataclasses
import json
from pathlib import Path

import pytest
from jobs import ROOT, Job, Result, ranks_that_worked, stray_files, write_hard_questions

WINDOWS = ("copying", "mid-write", "before rename", "after rename", "scoring", "dataset writing")
FLAGS = ("--rank", "2", "--distance", "1000", "--unit_size", "3")


# Each starts ranks several times.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Job:
    """22 questions, four of them bad ones, with 2 to 6 answers each, one of them as ids; and two without any."""
    folder = tmp_path_factory.mktemp("alone")
    pictures = write_hard_questions(folder / "questions.parquet", 22)
    rows = [
        {"idx": f"q{number:04d}", "answer": f"Answer {answer} is {'very ' * (answer % 3)}long."}
        for answer in range(6) for number in range(20) if answer < 2 + number % 5
    ]  # fmt: skip
    rows += [{"idx": idx, "answer": answer} for idx in ("broken", "away") for answer in ("Yes.", "No.")]
    rows.append({"idx": "q0001", "token_ids": [300, 301, 2]})
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = Job(folder / "questions.parquet", folder / "work", (*FLAGS, *pictures, "--answers", str(file)))
    job.run()
    return job


def again(job: Job, folder: Path) -> Job:
    return dataclasses.replace(job, work_dir=folder / "work")


def strays(work_dir: Path) -> list[Path]:
    """Besides the copy of the answers, which stays for later starts."""
    return [path for path in stray_files(work_dir) if path != work_dir / "answers"]


def test_one_process_writes_what_the_file_says(alone):
    result = Result.of(alone.work_dir)
    assert list(result.dataset) == ["dpo_dataset.parquet"]
    sampled = [row for name, rows in result.units.items() if name.startswith("sampled") for row in rows]
    assert len(sampled) == 2 * 20 + 4 * (1 + 2 + 3 + 4) + 1
    assert {row["sample_index"] for row in sampled} == set(range(6))
    assert [row["idx"] for row in sampled if row["token_ids"] is not None] == ["q0001"]
    assert {(row["idx"], row["missing"]) for row in result.left_out} == {
        ("broken", False), ("silent", False), ("long", False), ("away", True), ("q0020", False), ("q0021", False),
    }  # fmt: skip
    assert not strays(alone.work_dir)


def test_two_ranks_make_the_same_dataset(alone, tmp_path):
    job = again(alone, tmp_path)
    output = job.world(2, program="together")
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not strays(job.work_dir)
    assert ranks_that_worked(job) == 2
    assert output.count("off-policy") == 1
    assert len(list((job.work_dir / "answers").iterdir())) == 1


@pytest.mark.parametrize("windows", [("copying", "mid-write"), WINDOWS])
def test_a_process_killed_and_rerun_makes_the_same_dataset(alone, tmp_path, windows):
    """While the copy of the answers is made, while a unit of them is written, and once it is."""
    job, log = again(alone, tmp_path), tmp_path / "kills"
    for window in windows:
        job.run(
            code=-9,
            program="killed",
            KILL_WINDOW=window,
            KILL_AT="0" if window in ("copying", "dataset writing") else "1",
            KILL_LOG=str(log),
        )
        # Whole, or not at all.
        assert bool(list((job.work_dir / "answers").iterdir())) == (window != "copying")
    job.world(2)
    assert log.read_text().splitlines() == list(windows)
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not strays(job.work_dir)


def test_ranks_that_share_split_models_make_the_same_dataset(alone, tmp_path):
    """No model is split while answers are read: the ranks meet when the first is loaded."""
    settings = json.loads((ROOT / "launch/deepspeed/zero3.json").read_text())
    settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 1}
    (tmp_path / "zero3.json").write_text(json.dumps(settings))
    job = again(alone, tmp_path)
    job = dataclasses.replace(job, flags=(*job.flags, "--zero3", "on", "--zero3_config", str(tmp_path / "zero3.json")))
    output = job.world(2)
    assert "zero3 on: split over 2 ranks" in output
    assert Result.of(job.work_dir) == Result.of(alone.work_dir)
    assert not strays(job.work_dir)
