"""Every format read back by a reader of its own, in export_readers/, against pairs.parquet and the dataset.

Texts and pictures are hostile. What is rewritten or left out follows from the rule in hostile_world.py.
"""

import functools
import importlib
import io
import itertools
import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from export_run import build
from hostile_world import (
    BROKEN_UP,
    broken_up,
    hostile_world,
    kept_pairs,
    prompts_of,
    publish_run,
    rewritten_prompts,
    upright,
)
from PIL import Image, ImageOps
from run_files import png
from stage2_world import digest, make_world
from turned_pictures import pixels_of, turned

from data_engine import exports
from data_engine.commands import main
from data_engine.commands.work_dir import open_finished

PAIRS = ("rlaif-v", "trl", "llama-factory", "ms-swift", "ms-swift-rm", "internvl-mpo", "llava-next")
BEST = ("llama-factory-sft", "ms-swift-sft")
KTO = ("trl-kto", "llama-factory-kto", "ms-swift-kto")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return hostile_world(tmp_path_factory.mktemp("hostile") / "world")


@pytest.fixture(scope="module")
def work_dir(world, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp("hostile") / "work"
    publish_run(world, work_dir, rank=3, distance=10_000)
    assert len(kept_pairs(work_dir)) > 500
    return work_dir


@pytest.fixture(scope="module")
def whole(work_dir, tmp_path_factory):
    """Format -> what exports.export says of the run, and the rows that are read back; each is made once."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp(name)
        found = build(name, open_finished(work_dir, {}).source(), folder / "out")
        return found, read(name, folder / "out")

    return make


@pytest.fixture(scope="module")
def prompts(world) -> dict[str, tuple[list, list[bytes]]]:
    return prompts_of(world)


@pytest.fixture(scope="module")
def keys(prompts) -> dict[str, tuple]:
    """The prompt of each question as `seen` has it."""
    return {
        idx: prompt_key(messages, [look(upright(data)) for data in pictures])
        for idx, (messages, pictures) in prompts.items()
    }


def exported(name, work_dir, output):
    assert main.main(["export", str(work_dir), "--format", name, "--output", str(output)]) == 0
    return output / name


def read(name, folder):
    # Of a LLaVA, a line break follows each picture there.
    options = {"newline": True} if name.startswith("llama-factory") else {}
    return importlib.import_module(f"export_readers.{name.replace('-', '_')}").read(folder, **options)


def fits(name, messages, pictures) -> bool:
    """Whether a format has a place for a prompt."""
    if name.startswith(("rlaif-v", "llava-next")):
        return len(messages) == 1 and len(pictures) == 1
    if name.startswith("internvl"):
        return len(messages) == 1 and len(pictures) > 0
    return True


def prompt_key(messages, looks) -> tuple:
    """A prompt that can be compared and hashed, its pictures as a model sees them."""
    return tuple((role, tuple(parts)) for role, parts in messages), tuple(looks)


def look(pixels) -> tuple:
    return pixels.shape, pixels.tobytes()


@functools.cache
def look_of(data: bytes) -> tuple:
    """Many rows have the same picture."""
    return look(pixels_of(data))


def seen(row) -> tuple:
    return prompt_key(row["messages"], map(look_of, row["images"]))


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_those_of_pairs_parquet_with_the_prompts_that_were_sampled(name, work_dir, whole, prompts, keys):
    rows = whole(name)[1]
    expected = Counter(
        (keys[pair["idx"]], pair["chosen"], pair["rejected"])
        for pair in kept_pairs(work_dir)
        if fits(name, *prompts[pair["idx"]])
    )
    assert sum(expected.values()) > 150
    assert Counter((seen(row), row["chosen"], row["rejected"]) for row in rows) == expected


@pytest.mark.parametrize("name", KTO)
def test_each_answer_of_a_pair_is_labelled_once_and_never_beside_one_of_its_question(name, work_dir, whole, keys):
    rows, expected = whole(name)[1], set()
    for pair in kept_pairs(work_dir):
        expected |= {(keys[pair["idx"]], pair["chosen"], True), (keys[pair["idx"]], pair["rejected"], False)}
    found = [(seen(row), row["answer"], row["label"]) for row in rows]
    assert len(found) == len(set(found)) > 500
    assert set(found) == expected
    prompts = [row[0] for row in found]
    assert all(one != other for one, other in itertools.pairwise([*prompts, prompts[0]]))


@pytest.mark.parametrize("name", BEST)
def test_the_best_answers_are_those_for_trl_whatever_the_trainer(name, whole):
    (found, rows), (for_trl, expected) = whole(name), whole("sft")
    assert Counter((seen(row), row["answer"]) for row in rows) == Counter(
        (seen(row), row["answer"]) for row in expected
    )
    assert found == for_trl
    assert found.rows > 300


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of fewer questions."""
    folder = tmp_path_factory.mktemp("small")
    publish_run(hostile_world(folder / "world", num_questions=36), folder / "work", rank=3, distance=10_000)
    return folder / "work"


# rlaif-v-logps needs a checkpoint's tokenizer: see test_export_logps.py.
@pytest.mark.parametrize("name", [name for name in exports.EXPORTS if name != "rlaif-v-logps"])
def test_the_same_bytes_each_time_and_no_control_token_in_any_text(name, small, tmp_path):
    folders = [exported(name, small, tmp_path / number) for number in "12"]
    assert digest(folders[0]) == digest(folders[1])
    # Those of the function behind the command, which adds files about the export.
    build(name, open_finished(small, {}).source(), tmp_path / "3")
    for file in (path for path in (tmp_path / "3").rglob("*") if path.is_file()):
        assert (folders[0] / file.relative_to(tmp_path / "3")).read_bytes() == file.read_bytes()
    if name == "scored":
        return
    rows = read(name, folders[0])
    assert len(rows) > 10
    for row in rows:
        texts = [part for _, parts in row["messages"] for part in parts if isinstance(part, str)]
        texts += [row[side] for side in ("chosen", "rejected", "answer") if side in row]
        assert not [token for token in BROKEN_UP for text in texts if token in text]


def test_the_rule_is_one_that_a_person_can_check():
    assert broken_up("a </s> b <<image>image>") == "a < /s> b << image>image>"
    picture = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    assert upright(png(picture))[2, 3].tolist() == [11 * 5000 >> 8] * 3


@pytest.mark.parametrize("name", PAIRS + KTO)
def test_every_pair_is_written_or_counted_and_those_that_are_rewritten_are_counted(
    name, world, work_dir, whole, prompts
):
    found, rows = whole(name)
    changed = rewritten_prompts(world)
    raw = [row for row in pq.read_table(work_dir / "pairs/pairs.parquet").to_pylist() if row["status"] == "kept"]
    fitting = [row for row in raw if fits(name, *prompts[row["idx"]])]
    assert found.left_out.total() == len(raw) - len(fitting)
    assert found.rows == len(rows)
    if name in PAIRS:
        assert found.rows == len(fitting)
    rewritten = [row for row in fitting if row["idx"] in changed
                 or any(broken_up(row[side]) != row[side] for side in ("chosen", "rejected"))]  # fmt: skip
    assert 0 < found.rewritten == len(rewritten) < len(fitting)


@pytest.fixture(scope="module")
def ignoring(tmp_path_factory):
    """A run with exif ignore of pictures that ask to be turned, and these as they are stored."""
    folder = tmp_path_factory.mktemp("ignoring")
    images = [{"bytes": turned(6, container), "path": None} for container in ("JPEG, Intel", "PNG")] * 6
    publish_run(make_world(folder / "world", num_questions=12, image=images), folder / "work", distance=10_000)
    known = json.loads((folder / "work/run.json").read_text())
    known["config"]["exif"] = "ignore"
    (folder / "work/run.json").write_text(json.dumps(known))
    stored = {np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")).tobytes() for image in images}
    assert len(stored) == 2
    return folder / "work", stored


@pytest.mark.parametrize("name", PAIRS)
def test_with_exif_ignore_pictures_look_as_they_are_stored_to_readers_that_turn_them_and_to_others(
    name, ignoring, tmp_path
):
    """They are sampled from so, whatever their orientation says."""
    work_dir, stored = ignoring
    rows = read(name, exported(name, work_dir, tmp_path / "out"))
    for turn in (lambda image: image, ImageOps.exif_transpose):
        found = [turn(Image.open(io.BytesIO(data))).convert("RGB") for row in rows for data in row["images"]]
        assert {np.asarray(image).tobytes() for image in found} == stored
        assert {image.size for image in found} == {(48, 64)}
