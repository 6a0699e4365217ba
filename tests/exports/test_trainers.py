"""What trainers make of the dataset that a run writes; of exports, tests/trainers."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_engine.config import RunConfig
from data_engine.job import worker


@pytest.fixture(scope="module")
def work_dir(goldens, tmp_path_factory, one_thread) -> Path:
    """A run on the golden questions, all three stages."""
    work_dir = tmp_path_factory.mktemp("trainers") / "work"
    paths = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
    paths |= {"dataset_path": goldens / "llava/dataset/questions.parquet", "work_dir": work_dir}
    settings = {"sample_k": 4, "rank": 2, "distance": 1000, "max_new_tokens": 8, "threads": 1}
    assert worker.run(RunConfig(**{name: str(path) for name, path in paths.items()} | settings)) == 0
    return work_dir


def test_the_folder_and_its_columns_are_what_the_rlaif_v_trainer_reads(work_dir):
    files = list((work_dir / "dataset").iterdir())
    assert [file.name for file in files] == ["dpo_dataset.parquet"]
    rows = pq.read_table(files[0]).to_pylist()
    assert rows
    for row in rows:
        assert set(row) >= {"idx", "question", "chosen", "rejected", "image"}
        assert not set(row) & {"logps", "origin_split"}
        assert set(row["image"]) == {"bytes", "path"}
        assert row["image"]["bytes"]
        assert row["chosen"].strip()
        assert row["rejected"].strip()
        assert "<image>" not in row["question"]


def test_datasets_loads_the_folder_and_the_file(work_dir, tmp_path):
    import datasets

    by_file = datasets.load_dataset(
        "parquet", data_files=str(work_dir / "dataset/dpo_dataset.parquet"), split="train", cache_dir=str(tmp_path)
    )
    by_folder = datasets.load_dataset(str(work_dir / "dataset"), split="train", cache_dir=str(tmp_path))
    assert by_file["chosen"] == by_folder["chosen"]
    assert len(by_file) == pq.read_metadata(work_dir / "dataset/dpo_dataset.parquet").num_rows
