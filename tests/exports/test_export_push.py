"""`data-engine export --push_to_hub`, as a process, against a stand-in of the hub: what arrives, what is refused."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from export_run import finish, mixed_world
from hub_stand_in import USER, environment, serve
from huggingface_hub import DatasetCard
from stage2_world import pairs_rows

from data_engine.exports.card import PICTURE


@pytest.fixture(scope="module")
def hub():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of which each test pushes a copy."""
    folder = tmp_path_factory.mktemp("push")
    finish(mixed_world(folder / "world"), folder / "work")
    return folder / "work"


@pytest.fixture
def pushed(hub, finished, tmp_path):
    """Push the pairs of a run by the command line; its exit code and what it wrote to stderr."""
    hub.forget()
    shutil.copytree(finished, tmp_path / "work")

    def push(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "data_engine", "export", str(tmp_path / "work"), *arguments]
        done = subprocess.run(
            command, env=environment(hub, str(tmp_path / "home")), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    return push


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_format_arrives_with_its_card_and_nothing_stays_behind(pushed, hub, tmp_path):
    before = files_of(tmp_path / "work")
    code, said = pushed("--format", "trl", "--push_to_hub", f"{USER}/pairs", "--license", "cc-by-4.0", "--private")
    assert code == 0, said
    repository = hub.repositories[f"{USER}/pairs"]
    assert repository.private
    assert {"README.md", PICTURE, "data/train-00000-of-00001.parquet"} <= set(repository.files)
    table = pq.read_table(io.BytesIO(repository.files["data/train-00000-of-00001.parquet"]))
    kept = [row for row in pairs_rows(tmp_path / "work") if row["status"] == "kept"]
    assert sorted(table["idx"].to_pylist()) == sorted(row["idx"] for row in kept)
    card = DatasetCard(repository.files["README.md"].decode())
    assert card.data.license == "cc-by-4.0"
    assert "configs" not in card.data.to_dict()
    assert f"{len(kept)} rows." in card.text
    assert {name for name in files_of(tmp_path / "work") if not name.startswith("hashes/")} == {
        name for name in before if not name.startswith("hashes/")
    }


@pytest.mark.slow
def test_the_same_export_is_kept_where_an_output_is_named_too(pushed, hub, tmp_path):
    code, said = pushed(
        "--format", "llama-factory", "--push_to_hub", "pairs", "--license", "mit", "--output", str(tmp_path / "out")
    )
    assert code == 0, said
    arrived = hub.repositories[f"{USER}/pairs"].files
    for name in files_of(tmp_path / "out/llama-factory"):
        assert arrived[name] == (tmp_path / "out/llama-factory" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--push_to_hub", "pairs"], "--license"),
        (["--push_to_hub", "pairs", "--license", "cc-by-4"], "cc-by-4.0"),
        (["--push_to_hub", "no/such/name", "--license", "mit"], "no/such/name"),
        (["--push_to_hub", "pairs", "--license", "mit", "--format", "trl,sft"], "takes one format"),
        (["--private", "--output", "out"], "--private is about --push_to_hub"),
        ([], "give --output DIR, --push_to_hub REPO, or both"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_any_work(pushed, hub, tmp_path, arguments, told):
    formats = [] if "--format" in arguments else ["--format", "trl"]
    code, said = pushed(*formats, *arguments)
    assert code == 2
    assert told in said
    assert "Traceback" not in said
    assert hub.repositories == {}
    assert not Path("out").exists()


# What the hub refuses is told in hub/test_hub_refusals.py too.
@pytest.mark.slow
@pytest.mark.parametrize("how", [401, 403, "reset"])
def test_a_push_that_breaks_off_leaves_nothing_half_written(pushed, hub, tmp_path, how):
    hub.refusals["/commit/main"] = how
    code, said = pushed(
        "--format", "trl", "--push_to_hub", "pairs", "--license", "mit", "--output", str(tmp_path / "out")
    )
    assert code == 2
    assert "Traceback" not in said
    assert set(hub.repositories[f"{USER}/pairs"].files) == {".gitattributes"}
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "work").glob(".export*"))
