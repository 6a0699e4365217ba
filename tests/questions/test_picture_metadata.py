"""Metadata beyond the limits of Pillow costs no picture, and no memory."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from hostile_images import png_chunk, png_header
from PIL import Image
from turned_pictures import (
    JPEG,
    UPRIGHT,
    as_datasets_decodes,
    exif_of,
    plain,
    same,
    save,
    stored,
)

from data_engine.questions import images
from data_engine.questions.images import as_seen, decode, was_turned


def png_with(*chunks: bytes, behind: bool = False) -> bytes:
    png = save(UPRIGHT, "PNG")
    at = len(png) - 12 if behind else 33
    return png[:at] + b"".join(chunks) + png[at:]


LARGE, HALF = zlib.compress(bytes(2 << 20)), zlib.compress(bytes(1 << 20))
BEYOND = {
    "zTXt": [png_chunk(b"zTXt", b"Comment\0\0" + LARGE)],
    "iTXt": [png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE)],
    "iCCP": [png_chunk(b"iCCP", b"Profile\0\0" + LARGE)],
    "many texts": [png_chunk(b"zTXt", b"C%d\0\0" % number + HALF) for number in range(70)],
    "a wrong checksum": [png_chunk(b"tEXt", b"Comment\0text")[:-1] + b"?"],
    "an unknown compression": [png_chunk(b"zTXt", b"Comment\0\7text")],
    "a short pHYs": [png_chunk(b"pHYs", b"\0")],
}


@pytest.mark.parametrize("chunks", BEYOND.values(), ids=BEYOND)
def test_metadata_of_a_png_that_pillow_refuses_costs_no_picture(chunks):
    data = png_with(*chunks)
    with pytest.raises((ValueError, SyntaxError, Image.UnidentifiedImageError)):
        Image.open(io.BytesIO(data)).load()
    assert same(decode(data, 64), UPRIGHT)
    for exif in ("apply", "ignore"):
        assert same(as_datasets_decodes(as_seen(data, exif)), UPRIGHT)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "many texts"])
def test_so_does_text_behind_the_pixels(kind):
    data = png_with(*BEYOND[kind], behind=True)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(io.BytesIO(data)).load()
    assert same(decode(data, 64), UPRIGHT)
    assert same(as_datasets_decodes(as_seen(data, "apply")), UPRIGHT)


def test_without_its_text_a_picture_is_still_turned_and_keeps_its_transparent_colour_out():
    text, exif = BEYOND["zTXt"][0], png_chunk(b"eXIf", exif_of(6)[6:])
    png = save(stored(6), "PNG")
    data = png[:33] + text + exif + png[33:]
    image = decode(data, 64)
    assert same(image, UPRIGHT)
    assert was_turned(image)
    broken = png[:33] + text + exif[:-1] + b"?" + png[33:]
    assert same(decode(broken, 64), stored(6))


def test_metadata_beyond_the_limits_does_not_hide_that_a_picture_is_broken():
    data = png_with(*BEYOND["zTXt"])[:-60]
    with pytest.raises(images.BadImage, match="image PNG data is broken: image file is truncated"):
        decode(data, 64)
    large = png_header(10_000, 10_000)
    with pytest.raises(images.BadImage, match="has 100"):
        decode(large[:33] + BEYOND["zTXt"][0] + large[33:], 64)


def test_text_that_unpacks_to_gigabytes_takes_no_memory():
    """64 texts of 64 MB, each packed a thousand to one; the limit of the worker is not what holds it."""
    from data_engine.questions.image_workers import ImageWorkers

    bomb = zlib.compress(bytes(64 << 20))
    data = png_with(*(png_chunk(b"zTXt", b"C%d\0\0" % number + bomb) for number in range(64)))
    with ImageWorkers() as workers:
        assert same(workers.decode(data, 1), UPRIGHT)
        [worker] = workers._free
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) * 1024 < 150e6


@pytest.mark.parametrize("kind", ["EXIF", "profile"])
def test_large_metadata_of_a_jpeg_costs_no_picture(kind):
    """250 segments of 65,000 bytes."""
    jpeg = save(stored(6), "JPEG", **JPEG)
    exif, filling = exif_of(6), bytes(65_000)
    if kind == "EXIF":
        parts = [b"\xff\xe1", *[exif + filling] + [b"Exif\0\0" + filling] * 249]
    else:
        profile = [b"ICC_PROFILE\0" + bytes([number, 250]) + filling for number in range(1, 251)]
        parts = [b"\xff\xe2", *profile]
    segments = b"".join(parts[0] + struct.pack(">H", len(part) + 2) + part for part in parts[1:])
    upright = kind == "EXIF"
    assert same(decode(jpeg[:2] + segments + jpeg[2:], 64), plain(UPRIGHT if upright else stored(6), "JPEG"))
