"""Pushing an export to the hub: what arrives, under which names, and what a second push replaces."""

import json
import re
import subprocess
import sys

import datasets
import hub_stand_in
import pytest
from hub_pusher import arrived, local, write_export
from hub_stand_in import TOKEN, USER, environment

from data_engine.exports.hub import MANIFEST, repo_paths


def test_what_arrives_is_file_by_file_what_was_written(hub, ask, export):
    before = local(export)
    code, url, said = ask("push", other=export)
    assert code == 0, said
    repository = hub.repositories[f"{USER}/pairs"]
    assert url == f"{hub.url}/datasets/{USER}/pairs/commit/{repository.sha}"
    assert arrived(hub) == {
        "README.md": before["README.md"],
        ".report/rewards.png": before[".report/rewards.png"],
        "data/train-00000-of-00002.parquet": before["dpo_dataset-00000-of-00002.parquet"],
        "data/train-00001-of-00002.parquet": before["dpo_dataset-00001-of-00002.parquet"],
    }
    # One commit after the hub's own.
    assert len(repository.commits) == 2
    assert repository.private is False
    assert local(export) == before
    # No line a request, and no bar in a file.
    assert re.fullmatch(rf"uploading 4 files, 0\.0 MB, to the dataset {USER}/pairs\n", said)


def test_every_row_and_picture_is_read_by_datasets_from_the_hub(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    code = (
        "import datasets, json, sys\n"
        "loaded = datasets.load_dataset(sys.argv[1])\n"
        "rows = {split: [(row['idx'], row['chosen'], row['image'].getpixel((0, 0))) for row in rows]\n"
        "        for split, rows in loaded.items()}\n"
        "print(json.dumps(rows))"
    )
    known = environment(hub, str(tmp_path / "other home"))
    done = subprocess.run([sys.executable, "-c", code, f"{USER}/pairs"], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"train": [[n, f"answer {n}", [n, 0, 0]] for n in range(6)]}


def test_a_second_push_replaces_the_first_in_one_commit_and_leaves_what_is_not_of_it(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    repository = hub.repositories[f"{USER}/pairs"]
    repository.commit({**repository.files, "notes.md": b"mine", "README.md": b"changed by hand"})
    other = write_export(tmp_path / "other", num_parts=1, first=100)
    assert ask("push", other=other)[0] == 0
    assert len(repository.commits) == 4
    assert arrived(hub) == {
        "README.md": local(other)["README.md"],
        ".report/rewards.png": local(other)[".report/rewards.png"],
        "data/train-00000-of-00001.parquet": local(other)["dpo_dataset.parquet"],
        "notes.md": b"mine",
    }
    assert ".gitattributes" in repository.files


def test_a_file_that_was_deleted_on_the_hub_is_not_deleted_once_more(hub, ask, export, tmp_path):
    assert ask("push", other=export)[0] == 0
    repository = hub.repositories[f"{USER}/pairs"]
    kept = {name: data for name, data in repository.files.items() if name != "data/train-00001-of-00002.parquet"}
    repository.commit(kept)
    code, _, said = ask("push", other=write_export(tmp_path / "other", num_parts=1, first=100))
    assert code == 0, said
    assert "data/train-00000-of-00001.parquet" in arrived(hub)


def test_the_same_export_again_is_no_new_commit(hub, ask, export):
    _, first, _ = ask("push", other=export)
    code, second, _ = ask("push", other=export)
    assert (code, second) == (0, first)
    assert len(hub.repositories[f"{USER}/pairs"].commits) == 2


def test_a_private_push_makes_a_private_dataset_and_an_organization_can_own_it(hub, ask, export):
    assert ask("push", "club/pairs", export, private=True)[0] == 0
    assert hub.repositories["club/pairs"].private is True


def test_files_that_are_called_by_their_names_keep_them(tmp_path):
    def names(*files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for file in ("README.md", ".report/rewards.png", *files):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(b"x")
        return sorted(set(repo_paths(folder)) - {"README.md", ".report/rewards.png"})

    assert names("dpo_dataset.parquet") == ["data/train-00000-of-00001.parquet"]
    kept = ("RLAIF-V-Dataset-withlogp_000-12.parquet",)
    assert names(*kept) == list(kept)
    kept = ("dataset_info.json", "pairs.parquet")
    assert names(*kept) == list(kept)
    kept = ("images/ab.png", "meta.json", "pairs.jsonl")
    assert names(*kept) == list(kept)
    kept = ("one.parquet", "two.parquet")
    assert names(*kept) == list(kept)


def test_card_picture_and_list_of_files_are_no_data_to_a_loader(tmp_path, hub, ask):
    """Where files keep their names, a loader looks at every file of the repository that is not hidden."""
    export = write_export(tmp_path / "export", num_parts=0)
    (export / "pairs.jsonl").write_text("".join(f'{{"idx": {number}}}\n' for number in range(3)))
    assert ask("push", other=export)[0] == 0
    files = hub.repositories[f"{USER}/pairs"].files
    assert {"pairs.jsonl", ".report/rewards.png", MANIFEST} < set(files)
    for name, data in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    loaded = datasets.load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))
    assert {split: rows["idx"][:] for split, rows in loaded.items()} == {"train": [0, 1, 2]}


def test_the_stand_in_refuses_content_that_is_not_that_of_its_hash(hub):
    """The stand-in itself: it would notice a file that arrives damaged."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{hub.url}/storage/{'0' * 64}", data=b"other", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert hub.stored == {}
    assert TOKEN not in " ".join(hub.requests)
    assert hub_stand_in.oid("a.md", b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
