"""The commands on datasets with columns of other names, or without a column of images."""

import base64
import dataclasses
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from conversation_rows import USER, message
from PIL import Image
from question_files import write_jsonl
from stage2_world import dataset_rows, make_world

from data_engine.commands import main
from data_engine.config import RunConfig
from data_engine.job.plan import NO_IMAGES, Plan
from data_engine.models.device import Target
from data_engine.stages import RunStages
from data_engine.store.file_hashes import hash_files

NEEDED = ("instruct_model_path", "reward_model_path", "dataset_path", "work_dir")


def coded(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 30), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


PNG, BROKEN = coded(png()), coded(png()[:50])


def validated(goldens: Path, folder: Path, rows: list[dict], *flags: str) -> int:
    paths = {"instruct_model_path": goldens / "llava/instruct", "reward_model_path": goldens / "llava/reward"}
    paths |= {"dataset_path": write_jsonl(folder / "q.jsonl", *rows), "work_dir": folder / "work"}
    return main.main(["validate", *(f"--{flag}={value}" for flag, value in paths.items()), *flags])


@pytest.fixture(scope="module")
def any_images(tmp_path_factory) -> Path:
    """A folder like that of the goldens, whose models take any number of images, as LLaVA does not."""
    folder = tmp_path_factory.mktemp("any_images")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "families")
        from checkpoints import Checkpoint

        made = Checkpoint("qwen2_5_vl", folder).folder
    (folder / "llava").mkdir()
    for role in ("instruct", "reward"):
        (folder / "llava" / role).symlink_to(made)
    return folder


def test_a_model_that_takes_none_without_an_image_is_told_of_a_dataset_without_a_column_of_them(
    goldens, tmp_path, capsys
):
    """As of imagefolder, which calls it file_name."""
    assert validated(goldens, tmp_path, [{"idx": 1, "question": "What?", "file_name": "a.jpg"}]) == 2
    assert f"the row has no image; {NO_IMAGES}" in capsys.readouterr().err


def test_a_dataset_without_images_is_valid_and_validate_says_so(any_images, tmp_path, capsys):
    assert validated(any_images, tmp_path, [{"idx": 1, "question": "What is two and two?"}]) == 0
    assert "; every question is asked without an image: the dataset has no column of them" in capsys.readouterr().out
    assert validated(any_images, tmp_path, [{"idx": 1, "question": "?", "images": []}]) == 0
    assert "without an image" not in capsys.readouterr().out


def test_the_first_rows_are_looked_at_with_all_of_their_images(any_images, tmp_path, capsys):
    rows = [{"idx": 1, "messages": [message(USER, "?")], "images": [PNG, PNG]}]
    assert validated(any_images, tmp_path, rows) == 0
    rows.append({"idx": 2, "messages": [message(USER, "?")], "images": [PNG, BROKEN]})
    capsys.readouterr()
    assert validated(any_images, tmp_path, rows) == 0
    assert "; of the first 2 rows 1 cannot be used" in capsys.readouterr().out
    assert validated(any_images, tmp_path, rows[1:]) == 2
    assert "the most frequent reason (1 row): image 2 of 2: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--columns", "question=promt"], 'columns question=promt: dataset "'),
        # The rows of this test have no column of images.
        (
            ["--image_root", "."],
            'image_root "." is given, and the dataset has no column "image" or "images" with paths',
        ),
        (["--columns", "promt=question"], 'columns names "promt", which is not one of '),
        (["--chat_template", "none.jinja"], 'chat_template "none.jinja" cannot be read'),
        (["--chat_template_kwargs", "x"], "chat_template_kwargs must be a JSON object"),
    ],
)
def test_what_is_wrong_with_these_flags_is_a_message(goldens, tmp_path, capsys, flags, says):
    assert validated(goldens, tmp_path, [{"idx": 1, "question": "?"}], *flags) == 2
    assert says in capsys.readouterr().err


def test_a_report_needs_no_template(tmp_path, capsys):
    """Its file may be gone, or lie elsewhere, when the report is written again."""
    world = make_world(tmp_path / "world", num_questions=8)
    work_dir = tmp_path / "work"
    world.publish(work_dir)
    world.pair(work_dir)
    config = RunConfig(
        instruct_model_path="a", reward_model_path="b", dataset_path=str(world.dataset_path), work_dir=str(work_dir)
    )
    kept = dataclasses.asdict(config) | {"chat_template": "gone.jinja"}
    bound = {"dataset": world.questions().fingerprint(hash_files)}
    run_file = {"layout": 2, "config": kept, "bound": bound, "frozen": {}, "versions": {}}
    (work_dir / "run.json").write_text(json.dumps(run_file))
    assert main.main(["report", str(work_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(work_dir / "report/index.html")


@pytest.mark.parametrize("has_images", [True, False])
@pytest.mark.parametrize("of_files", [[], ["one of two files"]])
def test_a_run_without_a_column_of_images_or_a_part_of_its_files_is_warned_of(has_images, of_files):
    plan = SimpleNamespace(
        checkpoints={}, stages=RunStages(), target=Target(torch.device("cpu"), torch.float32),
        placement=SimpleNamespace(memory_bytes=1), given=None,
        questions=SimpleNamespace(has_images=has_images, warnings=of_files),
        config=RunConfig(instruct_model_path="a", reward_model_path="b", dataset_path="c", work_dir="d"),
        unit_rows=[range(1)],
    )  # fmt: skip
    assert Plan.warnings(plan) == of_files + [NO_IMAGES] * (not has_images)


def test_a_run_on_columns_of_other_names_gives_the_same_dataset(run):
    other = run.copy(run.folder.parent / "other")
    shutil.rmtree(other.work)
    path = other.folder / "questions.parquet"
    pq.write_table(pq.read_table(path).rename_columns({"idx": "id", "question": "prompt", "image": "picture"}), path)
    assert other.start(columns="idx=id,question=prompt,image=picture") == 0
    assert dataset_rows(other.work) == dataset_rows(run.work)
    bound = json.loads((other.work / "run.json").read_text())["bound"]
    assert bound["columns"] == "idx=id,image=picture,question=prompt"
