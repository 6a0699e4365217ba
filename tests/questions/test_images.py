import io
import os
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile_images import encode, gradient, mutations, png_header
from PIL import Image

from data_engine.questions import images
from data_engine.questions.images import BadImage, check_megapixels, decode, read_under, resized_size, to_rgb

PHOTOS = Path(__file__).parents[3] / "shared/photos/questions.parquet"


def reason(data: bytes | None, max_megapixels: float = 64) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, max_megapixels)
    return str(caught.value)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_colour_image_comes_back_unchanged(format):
    assert np.array_equal(np.asarray(decode(encode(gradient(), format), 64)), np.asarray(gradient()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_gray_palette_and_alpha_images_are_converted_as_pillow_does(mode):
    data = encode(gradient(mode), "PNG")
    image = decode(data, 64)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_alpha_is_dropped_not_blended():
    clear = Image.new("RGBA", (2, 2), (200, 100, 50, 0))
    assert decode(encode(clear, "PNG"), 64).getpixel((0, 0)) == (200, 100, 50)


def test_a_palette_with_a_transparency_table_warns_nobody():
    palette = gradient("P")
    data = encode(palette, "PNG", transparency=bytes(range(256)))
    assert decode(data, 64).size == (23, 17)


def test_a_cmyk_jpeg_is_converted():
    image = decode(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), 64)
    assert (image.mode, image.getpixel((3, 3))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(format):
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = decode(encode(Image.fromarray(values), format), 64)
    # The high byte of each.
    assert [image.getpixel((x, 0)) for x in range(5)] == [(v, v, v) for v in (0, 0, 1, 128, 255)]


@pytest.mark.parametrize(("mode", "says"), [("I", "32-bit integer"), ("F", "floating-point")])
def test_pixels_without_an_agreed_range_are_refused(mode, says):
    assert says in reason(encode(Image.new(mode, (4, 4), 7), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format):
    red, blue = (Image.new("RGB", (9, 9), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    options = {} if format in ("PNG", "TIFF") else {"duration": 50}
    data = encode(red, format, save_all=True, append_images=[blue], **options)
    r, _, b = decode(data, 64).getpixel((4, 4))
    assert (r > 240, b < 15) == (True, True)


def test_a_folder_whose_name_begins_as_image_root_does_is_outside(tmp_path):
    for name in ("root", "root-private", "rooted"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(name.encode())
    assert read_under(tmp_path / "root", "x.png") == b"root"
    assert read_under(tmp_path / "root", "../root/x.png") == b"root"
    for path in ("../root-private/x.png", "../rooted/x.png", str(tmp_path / "root-private/x.png")):
        with pytest.raises(BadImage, match="leads outside image_root"):
            read_under(tmp_path / "root", path)


def test_a_file_above_the_limit_of_size_is_refused_by_its_size_and_not_read(tmp_path):
    # Half a gigabyte and a byte; the file is sparse.
    (tmp_path / "x.png").touch()
    os.truncate(tmp_path / "x.png", 512 * 1024 * 1024 + 1)
    with pytest.raises(BadImage, match="is a file of 536870913 bytes, more than 536870912"):
        read_under(tmp_path, "x.png")


def test_a_file_of_just_the_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    (tmp_path / "x.png").write_bytes(bytes(10))
    assert read_under(tmp_path, "x.png") == bytes(10)


@pytest.mark.parametrize("data", [None, b""])
def test_no_bytes_are_refused(data):
    assert reason(data) == "image is empty (0 bytes)"


@pytest.mark.parametrize(
    "data", [b"no picture", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\xff\xd8\xff"]
)
def test_junk_and_formats_outside_the_list_are_refused_without_an_address(data):
    assert reason(data) == "not an image in a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM)"


@pytest.mark.parametrize("format", ["JPEG2000", "PCX", "TGA", "ICO"])
def test_a_whole_image_in_a_format_outside_the_list_is_refused(format):
    assert reason(encode(gradient(), format)).startswith("not an image in a known format")


def test_a_reason_names_no_address_and_no_path(monkeypatch):
    def fail(*_, **__):
        raise OSError("cannot read <_io.BytesIO object at 0x7f00> of /home/me/x.jpg\nat 0x7f01")

    monkeypatch.setattr(Image, "open", fail)
    assert reason(b"x") == "image file is broken: cannot read of at"


def test_defect_22_a_truncated_image_is_refused_with_a_reason():
    data = encode(gradient(size=(200, 200)), "JPEG")
    assert reason(data[: len(data) // 2]).startswith("image JPEG data is broken: image file is truncated")


def test_an_image_of_one_pixel_passes():
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), 64).getpixel((0, 0)) == (1, 2, 3)


def test_a_height_of_three_stays_the_height():
    # Defect 21 begins where an image of 3 rows is mistaken for 3 channels.
    assert decode(encode(gradient(size=(40, 3)), "PNG"), 64).size == (40, 3)


def test_the_pixel_limit_is_checked_before_decoding():
    # 10,000 x 10,000 is over the limit and below Pillow's own; the data would be too short to decode.
    assert reason(png_header(10_000, 10_000)) == "source image 10000 x 10000 has 100.0 megapixels, max_megapixels is 64"


def test_a_bomb_past_pillows_own_limit_reads_like_any_other():
    assert reason(png_header(60_000, 60_000)) == "source image has more than 64 megapixels"
    # Pillow's own limit, where that is the lower one: twice 1024 ** 3 / 12 pixels.
    assert reason(png_header(60_000, 60_000), 1000) == "source image has more than 179 megapixels"


def test_an_image_that_pillow_only_warns_about_passes_a_higher_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    # 23 x 17 = 391 pixels: over Pillow's limit, under its error at twice that.
    assert decode(encode(gradient(), "PNG"), 64).size == (23, 17)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size):
    assert reason(png_header(*size))


def test_a_limit_is_named_with_what_exceeds_it():
    width, height = resized_size(1, 5000, 336)
    assert (width, height) == (336, 1_680_000)
    with pytest.raises(BadImage, match=r"resized image 336 x 1680000 has 564\.5 megapixels, max_megapixels is 64"):
        check_megapixels(width, height, 64, "resized image")


def test_the_limit_itself_is_allowed():
    check_megapixels(8000, 8000, 64, "padded image")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (448, 336)), ((480, 640), (336, 448)), ((500, 333), (504, 336)), ((7, 7), (336, 336))],
)
def test_the_long_side_is_rounded_down_as_clip_does(size, expected):
    assert resized_size(*size, 336) == expected


def test_an_image_object_is_converted_by_the_same_rules():
    sixteen = Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16))
    assert to_rgb(sixteen).getpixel((0, 0)) == (128, 128, 128)


def test_four_hundred_mutated_images_are_converted_or_refused(capfd):
    converted, reasons = 0, []
    for data in mutations(random.Random(0), 400):
        try:
            image = decode(data, 1)
        except BadImage as error:
            reasons.append(str(error))
        else:
            converted += 1
            assert image.mode == "RGB"
            assert image.width * image.height <= 1e6
    assert min(converted, len(reasons)) >= 50
    assert all(text and len(text) < 250 and "0x" not in text and "<" not in text for text in reasons)
    # libtiff's own complaints go to stderr, below Python.
    assert capfd.readouterr().out == ""


def test_a_reason_is_the_same_every_time():
    for data in mutations(random.Random(1), 60):
        first, second = outcome(data), outcome(data)
        assert first == second


def outcome(data: bytes) -> str | bytes:
    try:
        return decode(data, 1).tobytes()
    except BadImage as error:
        return str(error)


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"real photographs are not there: {PHOTOS.name}")
def test_real_photographs_are_decoded_as_pillow_does():
    for row in pq.read_table(PHOTOS, columns=["image"]).column("image").to_pylist()[:6]:
        plain = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
        assert decode(row["bytes"], 64).tobytes() == plain.tobytes()
