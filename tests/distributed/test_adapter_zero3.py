"""An adapter merged into a model that is split over ranks: the dataset of the plain run."""

import dataclasses
import re
from pathlib import Path

import adapters
import pytest
from jobs import GOLDENS, Job, Result, write_questions
from safetensors.torch import load_file
from test_zero3 import FLAGS, OMNI, split


def adapted(folder: Path, base: Path, kinds: str, seed: int) -> Path:
    """An adapter of the matrices of decoder and tower, which are divided, and of the head, which is not."""
    found = {name: value for name, value in load_file(base / "model.safetensors").items()
             if re.search(rf"({kinds}|lm_head)\.weight$", name)}  # fmt: skip
    assert any("vision_tower" in name for name in found)
    return adapters.write(folder, base, adapters.stored(adapters.matrices(found, seed=seed)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "kinds"),
    [
        pytest.param(GOLDENS / "reward", "q_proj", id="llava"),
        pytest.param(OMNI / "instruct", "v_proj|qkv", id="omnilmm", marks=pytest.mark.long),
    ],
)
def test_split_models_with_adapters_make_the_dataset_of_whole_ones(tmp_path, base, kinds):
    dataset = write_questions(tmp_path / "questions.parquet", 6)
    instruct, reward = (adapted(tmp_path / str(seed), base, kinds, seed) for seed in (1, 2))
    job = Job(dataset, tmp_path / "plain", (*FLAGS, "--unit_size", "2"), instruct, reward)
    job.run()
    expected = Result.of(job.work_dir)
    divided = split(job, tmp_path)
    output = divided.world(2)
    assert "zero3 on: split over 2 ranks" in output
    assert Result.of(divided.work_dir) == expected
    # And not that of the base.
    bare = dataclasses.replace(job, work_dir=tmp_path / "bare", reward=base)
    bare.run()
    assert Result.of(bare.work_dir).units != expected.units
