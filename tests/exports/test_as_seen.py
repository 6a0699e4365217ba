"""The dataset holds what the models saw, for readers that apply the orientation and for those that do not."""

import io
import struct

import numpy as np
import pytest
from hostile_images import encode, gradient
from PIL import ExifTags, Image, PngImagePlugin
from turned_pictures import (
    CONTAINERS,
    EIGHT,
    JPEG,
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
    xmp_of,
)

from data_engine.questions import image_metadata, images
from data_engine.questions.images import as_seen, decode


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("orientation", EIGHT)
def test_readers_that_apply_the_tag_and_readers_that_do_not_see_what_the_model_saw(orientation, container, exif):
    data = turned(orientation, container)
    kept, seen = as_seen(data, exif), np.asarray(decode(data, 64, exif))
    assert same(as_datasets_decodes(kept), seen)
    assert same(pixels_of(kept), seen)
    assert (kept is data) == (orientation == 1)
    assert as_seen(bytes(bytearray(data)), exif) == kept


def test_a_turned_picture_is_a_png_without_metadata():
    kept = as_seen(with_exif(stored(6), "JPEG", exif_of(6)), "apply")
    kinds = [bytes(kind) for kind, _, _ in image_metadata._chunks(kept)]
    assert kept.startswith(b"\x89PNG")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


SIXTEEN = Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16))


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_a_picture_of_sixteen_bits_is_a_png_of_what_the_model_saw(format, exif):
    kept = as_seen(encode(SIXTEEN, format), exif)
    assert kept.startswith(b"\x89PNG")
    assert pixels_of(kept)[0].tolist() == [[v, v, v] for v in (0, 0, 1, 128, 255)]


ORDINARY = {
    "JPEG": encode(gradient(), "JPEG"),
    "JPEG with a profile": encode(gradient(), "JPEG", icc_profile=bytes(500)),
    "JPEG of a camera, upright": with_exif(UPRIGHT, "JPEG", exif_of(1)),
    "CMYK": encode(gradient("CMYK"), "JPEG"),
    "PNG": encode(gradient(), "PNG"),
    "palette": encode(gradient("P"), "PNG"),
    "alpha": encode(gradient("RGBA"), "PNG"),
    "animation": encode(gradient(), "GIF", save_all=True, append_images=[gradient().rotate(90)]),
    "BMP": encode(gradient(), "BMP"),
    "WebP": encode(gradient(), "WEBP"),
    "TIFF": encode(gradient(), "TIFF"),
    "PPM": encode(gradient(), "PPM"),
    "no picture": b"no picture",
    "cut": encode(gradient(size=(90, 90)), "JPEG")[:400],
}


@pytest.mark.parametrize("exif", ["apply", "ignore"])
@pytest.mark.parametrize("data", ORDINARY.values(), ids=ORDINARY)
def test_all_other_bytes_are_kept_and_not_even_decoded(data, exif, monkeypatch):
    monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded") if data in readable else decode(*_))
    monkeypatch.setattr(Image.Image, "save", lambda *_: pytest.fail("encoded"))
    readable = [whole for name, whole in ORDINARY.items() if name not in ("no picture", "cut")]
    assert as_seen(data, exif) is data


def test_a_png_with_a_short_text_is_not_decoded(monkeypatch):
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "a plotting library")
    data = save(UPRIGHT, "PNG", pnginfo=text)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda *_: pytest.fail("decoded"))
    assert as_seen(data, "apply") is data


# The tag is cut out of a JPEG


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_with_exif_ignore_the_tag_is_cut_out_of_a_jpeg_and_all_else_stays(orientation, order):
    data = with_exif(stored(orientation), "JPEG", exif_of(orientation, order))
    kept = as_seen(data, "ignore")
    assert kept[:2] == b"\xff\xd8"
    assert len(kept) == len(data)
    # The compressed pixels, byte for byte.
    scan = data.index(b"\xff\xdb")
    assert kept[scan:] == data[scan:]
    before, after = (Image.open(io.BytesIO(file)).getexif() for file in (data, kept))
    assert dict(after) == {tag: value for tag, value in before.items() if tag != ORIENTATION}
    assert dict(after) == {0x010F: "Maker", 0x011A: 72, 0x0131: "Soft"}
    # The directory of the thumbnail is still found.
    thumbnails = (Image.open(io.BytesIO(file)).getexif().get_ifd(ExifTags.IFD.IFD1) for file in (data, kept))
    assert [dict(found) for found in thumbnails] == [{0x0103: 6}] * 2


def test_the_cut_is_this_by_hand():
    """One entry before, one behind; count and entries move, and values do not."""
    entry = "<HHII"
    make, orientation, software = (0x010F, 2, 4, 1), (ORIENTATION, 3, 1, 6), (0x0131, 2, 4, 2)
    before = struct.pack("<H", 3) + b"".join(struct.pack(entry, *one) for one in (make, orientation, software))
    after = struct.pack("<H", 2) + b"".join(struct.pack(entry, *one) for one in (make, software))
    tail = struct.pack("<I", 77)
    head, rest = b"Exif\0\0II*\0" + struct.pack("<I", 8), b"values"

    def jpeg(directory: bytes) -> bytes:
        segment = head + directory + rest
        return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + b"\xff\xda pixels"

    assert image_metadata.without_jpeg_orientation(jpeg(before + tail)) == jpeg(after + tail + bytes(12))


def test_a_tag_in_exif_and_in_xmp_is_cut_out_of_both():
    data = save(stored(8), "JPEG", exif=exif_of(8), xmp=xmp_of(8), **JPEG)
    kept = as_seen(data, "ignore")
    assert len(kept) == len(data)
    assert b"Orientation" not in kept
    assert b'tiff:Make="M"' in kept
    assert same(as_datasets_decodes(kept), plain(stored(8), "JPEG"))


def test_a_tag_that_stands_twice_is_cut_twice():
    whole, software = exif_of(6), struct.pack("<HHI", 0x0131, 2, 5)
    at = whole.index(software)
    # Of two, Pillow reads the first from 13 on, and the last before.
    twice = whole[:at] + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0) + whole[at + 12 :]
    data = with_exif(stored(6), "JPEG", twice)
    kept = as_seen(data, "ignore")
    assert kept[:2] == b"\xff\xd8"
    assert ORIENTATION not in Image.open(io.BytesIO(kept)).getexif()


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_tag_that_cannot_be_cut_makes_the_picture_a_png(exif):
    """Two EXIF segments, which Pillow reads as one, and of which the first ends within the directory."""
    whole = exif_of(6)
    parts = [whole[:40], b"Exif\0\0" + whole[40:]]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    jpeg = save(stored(6), "JPEG", **JPEG)
    data = jpeg[:2] + segments + jpeg[2:]
    assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == 6
    kept = as_seen(data, exif)
    assert kept.startswith(b"\x89PNG")
    assert same(pixels_of(kept), plain(UPRIGHT if exif == "apply" else stored(6), "JPEG"))


UNUSUAL = {
    "two heads": {"exif": b"Exif\0\0" + exif_of(6)},
    "a comment in XMP": {"xmp": b"<a><tiff:Orientation>6<!-- --></tiff:Orientation></a>"},
}


@pytest.mark.parametrize("options", UNUSUAL.values(), ids=UNUSUAL)
def test_a_tag_that_is_still_read_after_the_cut_makes_the_picture_a_png(options):
    data = save(stored(6), "JPEG", **options, **JPEG)
    assert Image.open(io.BytesIO(data)).getexif()[ORIENTATION] == 6
    kept = as_seen(data, "ignore")
    assert kept.startswith(b"\x89PNG")
    assert same(pixels_of(kept), plain(stored(6), "JPEG"))


def test_random_damage_to_exif_never_makes_readers_and_model_differ():
    draw = np.random.default_rng(0)
    whole = exif_of(6, ">")
    for _ in range(150):
        exif = bytearray(whole)
        for at in draw.integers(6, len(exif), draw.integers(1, 5)):
            exif[at] = draw.integers(0, 256)
        data = with_exif(stored(6), "JPEG", bytes(exif))
        for way in ("apply", "ignore"):
            seen = np.asarray(decode(data, 64, way))
            kept = as_seen(data, way)
            assert same(as_datasets_decodes(kept), seen)
            assert same(pixels_of(kept), seen)
