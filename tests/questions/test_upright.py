"""Pictures stand upright where models see them: in every stage, the API and the report, unless told otherwise."""

import base64
import io
import struct

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from report_page import Page
from stage2_world import make_world, pairs_rows
from turned_pictures import (
    CONTAINERS,
    EIGHT,
    ORIENTATION,
    UPRIGHT,
    as_datasets_decodes,
    exif_of,
    pixels_of,
    plain,
    same,
    save,
    stored,
    turned,
    with_exif,
)

from data_engine import sample_answers, score_answers
from data_engine.errors import UserError
from data_engine.job import worker
from data_engine.models.native.llava import Llava
from data_engine.pipeline import sample, score
from data_engine.pipeline.public_arguments import read_question
from data_engine.questions import dataset, images
from data_engine.questions.images import BadImage, as_seen, decode, was_turned
from data_engine.reporting.page import report_text

NONSENSE = (0, 9, 65535, b"six\0")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("orientation", EIGHT)
def test_a_picture_in_any_orientation_and_container_is_decoded_upright(orientation, container):
    image = decode(turned(orientation, container), 64)
    assert same(image, plain(UPRIGHT, container))
    assert was_turned(image) == (orientation != 1)


@pytest.mark.parametrize("container", [name for name in CONTAINERS if "TIFF" not in name])
@pytest.mark.parametrize("orientation", EIGHT)
def test_with_exif_ignore_the_pixels_are_those_that_are_stored(orientation, container):
    image = decode(turned(orientation, container), 64, "ignore")
    assert same(image, plain(stored(orientation), container))
    assert not was_turned(image)


@pytest.mark.parametrize("orientation", EIGHT)
def test_with_exif_ignore_a_tiff_is_what_pillow_makes_of_it_as_in_the_reference(orientation):
    """Pillow turns a TIFF as it reads it."""
    data = turned(orientation, "TIFF")
    assert same(decode(data, 64, "ignore"), pixels_of(data))


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", NONSENSE)
def test_an_orientation_that_says_nothing_is_as_none(value, container):
    data = with_exif(UPRIGHT, container, exif_of(value))
    image = decode(data, 64)
    assert same(image, plain(UPRIGHT, container))
    assert not was_turned(image)
    assert as_seen(data, "apply") is as_seen(data, "ignore") is data


BROKEN = {
    "no TIFF": b"Exif\0\0this is no TIFF structure",
    "nothing": b"Exif\0\0",
    "a directory behind the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "more entries than there are": exif_of(6)[:14] + b"\xff\xff" + exif_of(6)[16:],
    "cut": exif_of(6)[:40],
    "a fraction without its value": b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", ORIENTATION, 5, 1, 10**9),
}


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", BROKEN.values(), ids=BROKEN)
def test_broken_exif_costs_no_picture_and_the_dataset_can_be_read_with_pillow(exif, container):
    data = with_exif(UPRIGHT, container, exif)
    image = decode(data, 64)
    # Pillow may still read the orientation of what is cut behind it.
    upright = plain(UPRIGHT, container)
    assert any(same(image, expected) for expected in (upright, np.rot90(upright, -1)))
    assert same(as_datasets_decodes(as_seen(data, "apply")), np.asarray(image))


def test_xmp_that_pillow_stumbles_over_costs_no_picture():
    """A text by the name under which Pillow keeps XMP as bytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("xmp", "tiff:Orientation>6")
    data = save(UPRIGHT, "PNG", pnginfo=text)
    with pytest.raises(TypeError):
        Image.open(io.BytesIO(data)).getexif()
    assert same(decode(data, 64), UPRIGHT)
    assert same(as_datasets_decodes(as_seen(data, "apply")), UPRIGHT)


def test_text_in_a_file_cannot_mark_it_as_turned():
    text = PngImagePlugin.PngInfo()
    text.add_text("turned", "yes")
    image = decode(save(UPRIGHT, "PNG", pnginfo=text), 64)
    assert image.info == {}


# The public API


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_image_objects_are_turned_as_their_bytes_are(orientation, container):
    data = turned(orientation, container)
    for exif in ("apply", "ignore"):
        image = images.open_image(Image.open(io.BytesIO(data)), 64, exif)
        expected = decode(data, 64, exif)
        assert same(image, np.asarray(expected))
        assert was_turned(image) == was_turned(expected)


def test_an_image_object_is_left_as_it_was():
    data = turned(6, "JPEG, Intel")
    mine = Image.open(io.BytesIO(data))
    images.open_image(mine, 64)
    assert mine.getexif()[ORIENTATION] == 6
    assert same(mine.convert("RGB"), plain(stored(6), "JPEG"))


@pytest.mark.parametrize("container", ["PNG", "JPEG", "BMP"])
def test_an_image_object_of_a_file_that_was_cut_off_is_no_image(container):
    """Pillow opens it by its header, and reads the pixels when the engine asks for them."""
    data = save(np.tile(UPRIGHT, (20, 20, 1)), container)
    with pytest.raises(BadImage, match=f"image {container} data is broken: "):
        images.open_image(Image.open(io.BytesIO(data[: len(data) // 2])), 64)
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(BadImage, match=f"image {container} data is broken: "):
        images.open_image(closed, 64)


def test_the_functions_of_the_api_see_the_upright_picture_unless_told(instruct):
    lying, upright = turned(6, "PNG"), save(UPRIGHT, "PNG")
    as_stored = save(stored(6), "PNG")
    settings = {"k": 2, "max_new_tokens": 8, "temperature": 1.0}
    answers = sample_answers(instruct, lying, "What is it?", **settings)
    assert answers == sample_answers(instruct, upright, "What is it?", **settings)
    assert answers == sample_answers(instruct, Image.open(io.BytesIO(lying)), "What is it?", **settings)
    ignored = sample_answers(instruct, lying, "What is it?", exif="ignore", **settings)
    assert ignored == sample_answers(instruct, as_stored, "What is it?", **settings)
    text = [answers[0].token_ids]
    [right], [found] = (score_answers(instruct, data, "What is it?", text) for data in (upright, lying))
    [other], [wrong] = (
        score_answers(instruct, data, "What is it?", text, exif="ignore") for data in (as_stored, lying)
    )
    assert right.equal(found)
    assert other.equal(wrong)
    assert not right.equal(other)


def test_an_unknown_way_with_exif_is_refused():
    with pytest.raises(UserError, match="got 'aply'"):
        read_question(save(UPRIGHT, "PNG"), "What is it?", 64, "aply")


def camera_pictures() -> list[dict]:
    """One in each orientation; JPEG and PNG by turns."""
    return [
        {"bytes": turned(orientation, ("JPEG, Motorola", "PNG")[orientation % 2]), "path": f"{orientation}.any"}
        for orientation in EIGHT
    ]


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_datasets_shows_the_pixels_that_the_models_saw(config, tmp_path, monkeypatch, exif):
    """A whole run; the pixels are taken where both models get them, and the exported dataset is read by `datasets`."""
    world = make_world(tmp_path / "world", num_questions=8, num_answers=1, image=camera_pictures())
    shown = {}
    read_images, pixels = dataset.read_images, Llava.pixels

    def read(question, *rest):
        [image] = read_images(question, *rest)
        image.info["idx"] = question.idx
        return [image]

    def seen_by(model, image, *rest):
        shown.setdefault(image.info["idx"], []).append(np.asarray(image))
        return pixels(model, image, *rest)

    for module in (sample, score):
        monkeypatch.setattr(module, "read_images", read)
    monkeypatch.setattr(Llava, "pixels", seen_by)
    assert worker.run(config(world.dataset_path, exif=exif, sample_k=6, temperature=2.0, rank=3)) == 0
    loaded = datasets.load_dataset(
        str(tmp_path / "work/dataset"), split="train", cache_dir=str(tmp_path / "cache")
    ).cast_column("image", datasets.Image(mode="RGB"))
    raw = pq.read_table(tmp_path / "work/dataset").to_pylist()
    assert loaded.num_rows == len(raw) >= 4
    assert len({row["idx"] for row in raw}) >= 3
    for decoded, row in zip(loaded, raw, strict=True):
        number = int(row["idx"][1:]) + 1
        seen, *others = shown[row["idx"]]
        # By the sampling model, and twice for log-probs.
        assert [same(other, seen) for other in others] == [True, True]
        assert same(seen, plain(UPRIGHT if exif == "apply" else stored(number), "PNG" if number % 2 else "JPEG"))
        assert same(decoded["image"], seen)
        assert same(pixels_of(row["image"]["bytes"]), seen)
        assert row["image"]["path"] == f"{number}.any"


def test_a_run_that_saw_pictures_one_way_is_not_continued_the_other(config, tmp_path):
    world = make_world(tmp_path / "world", num_questions=1, num_answers=1, image=camera_pictures()[5:6])
    assert worker.run(config(world.dataset_path, stop_after_stage=0)) == 0
    with pytest.raises(UserError, match="exif was 'apply', now 'ignore'"):
        worker.run(config(world.dataset_path, exif="ignore"))


@pytest.mark.parametrize(("exif", "size"), [("apply", (64, 48)), ("ignore", (48, 64))])
def test_the_report_shows_pictures_as_the_models_saw_them(tmp_path, exif, size):
    lying = [{"bytes": turned(6, "JPEG, Intel"), "path": None}] * 3
    world = make_world(tmp_path, num_questions=3, image=lying)
    world.publish(tmp_path / "work")
    funnel = world.pair(tmp_path / "work")
    page = report_text(tmp_path / "work", world.questions(), funnel, 64, exif)
    pictures = Page(page).data["images"]
    assert pairs_rows(tmp_path / "work")
    assert pictures
    assert {Image.open(io.BytesIO(base64.b64decode(text))).size for text in pictures} == {size}
