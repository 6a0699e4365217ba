"""Splits of datasets of the hub, of which a folder in its layout takes the place, and of the cache of `datasets`."""

import json
from pathlib import Path

import pytest
from question_files import folder_of, only, refusal, write

from data_engine.errors import UserError
from data_engine.questions.dataset import Questions, load_questions
from data_engine.questions.sources.hub import DatasetsSource, load_hub


@pytest.fixture
def cache_of_datasets(tmp_path, monkeypatch):
    """`datasets` keeps what it loads under tmp_path."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("cache_of_datasets")
def test_the_only_split_of_a_hub_dataset_is_read(tmp_path):
    write(tmp_path / "hub/data/test-00000-of-00001.parquet", [4, 5])
    source = DatasetsSource(load_hub(str(tmp_path / "hub"), None, None))
    assert Questions(source, "dataset").idx == [4, 5]
    assert only(Questions(source, "dataset")).image == b"image 0"


@pytest.mark.usefixtures("cache_of_datasets")
def test_splits_of_a_hub_dataset_are_refused_by_name_or_chosen(tmp_path):
    path = folder_of(tmp_path / "hub/data", "train-00000-of-00001.parquet", "test-00000-of-00001.parquet")
    path = str(Path(path).parent)
    with pytest.raises(UserError, match="has several splits: train, test; choose one with --dataset_split"):
        load_hub(path, None, None)
    assert load_hub(path, "test", None)["idx"] == ["test-00000-of-00001.parquet"]
    with pytest.raises(UserError, match=r'as a hub dataset \(split "tset", revision newest\) it cannot be loaded: '):
        load_hub(path, "tset", None)


@pytest.mark.usefixtures("cache_of_datasets")
@pytest.mark.parametrize("split", [None, "validation"])
def test_a_hub_dataset_that_is_several_is_refused_with_the_way_to_read_one(tmp_path, split):
    """As MMMU and the Cauldron are, by the head of their README.md."""
    write(tmp_path / "hub/Art/validation-00000-of-00001.parquet", [1])
    write(tmp_path / "hub/Music/validation-00000-of-00001.parquet", [2])
    data_files = "  data_files:\n  - split: validation\n    path: {0}/validation-*\n"
    configs = "".join(f"- config_name: {name}\n{data_files.format(name)}" for name in ("Art", "Music"))
    (tmp_path / "hub/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    path = str(tmp_path / "hub")
    with pytest.raises(UserError) as caught:
        load_hub(path, split, None)
    assert str(caught.value) == (
        f'dataset_path "{path}" is several datasets: Art, Music; download the files of one and name their folder: hf '
        f'download {path} --repo-type dataset --include "Art/*" --local-dir data, then --dataset_path data/Art'
    )
    assert load_questions(f"{path}/Art").idx == [1]


@pytest.mark.usefixtures("cache_of_datasets")
def test_the_reason_for_which_a_hub_dataset_cannot_be_loaded_is_told_without_asking_the_hub_again(
    tmp_path, monkeypatch
):
    import datasets

    def ask(*_, **__):
        raise ConnectionError("no network now")

    path = str(Path(folder_of(tmp_path / "hub/data", "train-00000-of-00001.parquet")).parent)
    monkeypatch.setattr(datasets, "get_dataset_config_names", ask)
    with pytest.raises(UserError, match=r'it cannot be loaded: Unknown split "tset"'):
        load_hub(path, "tset", None)


@pytest.mark.usefixtures("cache_of_datasets")
def test_a_hub_dataset_that_the_library_cannot_read_is_refused(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/q.json").write_text(json.dumps({"a": 1}) + "{")
    with pytest.raises(UserError, match=r"as a hub dataset .* it cannot be loaded: "):
        load_hub(str(tmp_path / "hub"), None, None)


@pytest.mark.usefixtures("cache_of_datasets")
def test_splits_of_the_cache_of_load_dataset_are_chosen_by_name(tmp_path):
    """Without what map made of one, which the cache keeps beside them."""
    import datasets

    for split in ("train", "test"):
        lines = [f'{{"idx": "{split}-{number}", "question": "?"}}\n' for number in range(3)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    loaded = datasets.load_dataset("json", data_files=files)
    loaded["test"].map(lambda row: {"question": f"{row['question']}!"})
    (folder,) = {file.parent for file in (tmp_path / "cache").rglob("*-train.arrow")}
    assert [*folder.glob("cache-*.arrow")]
    assert "has several splits: test, train; choose one with --dataset_split" in refusal(str(folder))
    assert load_questions(str(folder), split="test").idx == ["test-0", "test-1", "test-2"]
