"""Encoded bytes in, an RGB image out, safely: a format allow-list, a pixel limit before decoding, one exception.

Pixels are what Pillow's convert("RGB") gives (alpha dropped, palettes expanded, the first frame of an animation),
except that the EXIF orientation is applied, and that 16-bit gray is scaled to 8 bits, which Pillow would clip.
"""

import contextlib
import errno
import io
import json
import logging
import math
import os
import re
import stat
import threading
import typing
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import unquote

from PIL import Image

from data_engine.questions import image_metadata

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_FILE_BYTES = 1 << 29
Exif = Literal["apply", "ignore"]
Item, Result = typing.TypeVar("Item"), typing.TypeVar("Result")
# How a stored picture becomes upright, by its orientation; 1 is upright, and other values say nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = "turned"
_SIXTEEN_BIT_GRAY = ("I;16", "I;16L", "I;16B", "I;16N")
# Errors of open that are about the path, not about the disk.
_ROW_ERRORS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.ESTALE,
)  # fmt: skip
# Memory addresses and paths are cut out of reasons, which must be the same on every machine.
_MACHINE_TEXT = re.compile(r"<[^<>]*>|\b0x[0-9a-fA-F]+|/[^\s'\"]+")
# catch_warnings replaces process-wide state: two threads that decode at once would undo each other's filter.
_WARNINGS = threading.Lock()


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason that the quarantine records."""


class MissingImage(BadImage):
    """An image that could not be read for what is missing around it: a file, a mount, a setting, memory."""


def read_each(images: Sequence[Item], read: Callable[[Item], Result]) -> list[Result]:
    """`read` of each image of a row. Where it raises BadImage, the reason says which of several images is wrong."""
    found = []
    for number, image in enumerate(images, 1):
        try:
            found.append(read(image))
        except BadImage as error:
            if len(images) == 1:
                raise
            raise type(error)(f"image {number} of {len(images)}: {error}") from None
    return found


class Decode(Protocol):
    """`decode`, or the same in another process; `exif` may be bound."""

    def __call__(self, data: bytes | None, max_megapixels: float) -> Image.Image: ...


def decode(data: bytes | None, max_megapixels: float, exif: Exif = "apply") -> Image.Image:
    """The first frame of an encoded image as RGB; raises BadImage, and nothing else, where it cannot be used.

    With exif "ignore" the orientation is not applied, except for TIFF, which Pillow turns by itself.
    """
    if not data:
        raise BadImage("image is empty (0 bytes)")
    try:
        return _decoded(data, max_megapixels, exif)
    except BadImage:
        # Metadata that is broken, or beyond Pillow's limits, costs no picture.
        bare = image_metadata.png_without_metadata(data)
        if bare is None:
            raise
    return _decoded(bare, max_megapixels, exif)


def open_image(image: Image.Image | bytes, max_megapixels: float, exif: Exif = "apply") -> Image.Image:
    """What the public API takes as an image, as RGB. Raises BadImage, and nothing else, where it cannot be used."""
    if isinstance(image, Image.Image):
        check_megapixels(*image.size, max_megapixels, "source image")
        # Pillow reads a file's pixels when they are first asked for.
        with _no_warnings(), _bad_image(f"{image.format} data" if image.format else "object", max_megapixels):
            return _oriented(image, exif)
    return decode(image, max_megapixels, exif)


def marked(image: Image.Image, turned: bool) -> Image.Image:
    """`image`, of whose info the mark of was_turned alone is kept: any file can bring text under that name."""
    image.info = {_TURNED: True} if turned else {}
    return image


def was_turned(image: Image.Image) -> bool:
    """Whether an image that `decode` or `open_image` gave is not as it was stored."""
    return image.info.get(_TURNED, False)


def as_seen(data: bytes, exif: Exif) -> bytes:
    """`data`, which `decode` can use, in bytes that show any reader the pixels that `decode` gives.

    A picture that is turned or has 16 bits is PNG, and so is one that Pillow can open only without its metadata. With
    exif "ignore" the orientation tag is cut, out of a JPEG without touching its pixels. All others are returned as
    they are, of which Pillow reads the header alone.
    """
    try:
        with _no_warnings():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            # Not by _orientation: whoever reads the dataset with Pillow would fail where this fails.
            tagged = (image.format != "PNG" or image_metadata.png_needs_loading(data)) and _tag(image) in _TURNS
            if not tagged and not _is_deep(image):
                return data
        if tagged and exif == "ignore" and data.startswith(b"\xff\xd8"):
            cut = image_metadata.without_jpeg_orientation(data)
            if cut is not None and _shows_the_same(cut, data):
                return cut
    # On hostile bytes Pillow's readers raise SyntaxError, struct.error, IndexError, KeyError, and more.
    except Exception as error:
        log.debug("a picture is encoded anew, since Pillow cannot read its file as it is: %r", error)
    try:
        file = io.BytesIO()
        # Pillow's own level, 6, takes twice the time for a file that is no smaller by a hundredth.
        decode(data, math.inf, exif).save(file, "PNG", compress_level=3)
        return file.getvalue()
    except BadImage:
        return data


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB; 16-bit gray loses its low byte, as Pillow's 16-bit colour does. Raises BadImage for a
    32-bit or floating-point image, whose range of values is not defined.
    """
    if _is_deep(image):
        # A third of the time that a worker takes to start, for the one kind of picture that needs it.
        import numpy as np

        gray = np.clip(np.asarray(image), 0, 65535) >> 8
        image = Image.fromarray(gray.astype(np.uint8))
    if image.mode == "I":
        raise BadImage("32-bit integer pixels (mode I) have no agreed range; convert to 8 or 16 bits")
    if image.mode == "F":
        raise BadImage("floating-point pixels (mode F) have no agreed range; convert to 8 or 16 bits")
    return image.convert("RGB")


def check_megapixels(width: int, height: int, limit: float, what: str) -> None:
    """Raise BadImage where an image, as decoded or as a model's preprocessing would resize it, exceeds the limit."""
    if width < 1 or height < 1:
        raise BadImage(f"{what} has no pixels: {width} x {height}")
    megapixels = width * height / 1e6
    if megapixels > limit:
        raise BadImage(f"{what} {width} x {height} has {megapixels:.1f} megapixels, max_megapixels is {limit:g}")


def resized_size(width: int, height: int, shortest_edge: int) -> tuple[int, int]:
    """(width, height) after CLIP's resize: the short side becomes `shortest_edge`, the long one is rounded down."""
    if width <= height:
        return shortest_edge, int(shortest_edge * height / width)
    return int(shortest_edge * width / height), shortest_edge


def refuse_address(path: str) -> None:
    """Raise BadImage where a path is an address on the net."""
    if "://" in path:
        told = "is an address; only files under image_root are opened: download it, and write its path"
        raise BadImage(f"image path {_shown(path)} {told}")


def read_under(root: Path, path: str) -> bytes:
    """The content of the file `path` of a dataset. Raises BadImage unless it lies, with links followed, below `root`.

    MissingImage where another folder, or a mount, could have it. An OSError of the disk, which is no fault of the row,
    is raised unchanged.
    """
    shown = _shown(path)
    refuse_address(path)
    try:
        real = Path(os.path.realpath(root / path))
        inside = real.is_relative_to(os.path.realpath(root))
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW) if inside else None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _ROW_ERRORS:
            raise
        hint = _what_is_there(root, path)
        raise MissingImage(f"image path {shown} is not a readable file under image_root{hint}") from None
    if descriptor is None:
        # As in the hub's cache, where all files are links.
        told = " by a link: copy the files themselves there, as cp -rL does" if _is_written_under(root, path) else ""
        raise MissingImage(f"image path {shown} leads outside image_root{told}")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(f"image path {shown} is not a readable file under image_root")
        if status.st_size > MAX_FILE_BYTES:
            raise BadImage(f"image path {shown} is a file of {status.st_size} bytes, more than {MAX_FILE_BYTES}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _is_written_under(root: Path, path: str) -> bool:
    """Whether a path would be one under `root` if there were no links."""
    return Path(os.path.abspath(root / path)).is_relative_to(os.path.abspath(root))


def _what_is_there(root: Path, path: str) -> str:
    """A hint where a path that is no file under `root` is one under a folder above, or in another spelling."""
    absolute = Path(os.path.abspath(root))
    first = Path(path).parts[:-1]
    for number in range(1, len(first) + 1):
        above = os.path.join(absolute, *[".."] * number)
        if absolute.parts[-number:] == first[:number] and os.path.isfile(os.path.join(above, path)):
            above = json.dumps(os.path.normpath(above))
            return f"; it is one under the folder above: give {above} as image_root"
    stem, ending = os.path.splitext(path)
    spellings = {
        "with / for \\": path.replace("\\", "/"),
        "with its %-codes decoded": unquote(path),
        "in the Unicode form NFC": unicodedata.normalize("NFC", path),
        "in the Unicode form NFD": unicodedata.normalize("NFD", path),
        "with its ending in small letters": stem + ending.lower(),
        "with its ending in capitals": stem + ending.upper(),
    }
    for how, other in spellings.items():
        if other != path and _is_written_under(root, other) and os.path.isfile(root / other):
            return f"; written {how} it is one: write the path so, or rename the file"
    return ""


def _shown(path: str) -> str:
    return json.dumps(path if len(path) <= 200 else f"{path[:200]}...", ensure_ascii=False)


def _decoded(data: bytes, max_megapixels: float, exif: Exif) -> Image.Image:
    with _no_warnings():
        with _bad_image("file", max_megapixels):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_megapixels(*image.size, max_megapixels, "source image")
        with _bad_image(f"{image.format} data", max_megapixels):
            return _oriented(image, exif)


def _oriented(image: Image.Image, exif: Exif) -> Image.Image:
    """`image` as RGB, turned if its orientation says so, and marked if it was."""
    if image.format == "TIFF":
        # Pillow turns a TIFF as it loads the pixels, and forgets the tag.
        turned = _orientation(image) in _TURNS
        rgb = to_rgb(image)
    else:
        # What stands behind the pixels of a PNG is read with them.
        image.load()
        turn = _TURNS.get(_orientation(image)) if exif == "apply" else None
        turned = turn is not None
        rgb = to_rgb(image)
        rgb = rgb.transpose(turn) if turned else rgb
    return marked(rgb, turned)


def _orientation(image: Image.Image) -> object:
    """The orientation as Pillow finds it in EXIF or XMP, and None where these are broken."""
    try:
        return _tag(image)
    # EXIF may hold anything: Pillow raises SyntaxError, struct.error, TypeError, and more.
    except Exception as error:
        log.debug("EXIF that cannot be read is as none: %r", error)
        return None


def _tag(image: Image.Image) -> object:
    return image.getexif().get(image_metadata.ORIENTATION)


def _is_deep(image: Image.Image) -> bool:
    """Whether it is 16-bit gray; Pillow gives 16-bit PGM, and older versions 16-bit PNG, as 32-bit integers."""
    return image.mode in _SIXTEEN_BIT_GRAY or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _shows_the_same(cut: bytes, data: bytes) -> bool:
    """Whether a file has the pixels of another, as it stores them, and no orientation."""
    with _no_warnings():
        if _tag(Image.open(io.BytesIO(cut), formats=FORMATS)) in _TURNS:
            return False
    stored, found = (decode(file, math.inf, "ignore") for file in (data, cut))
    return (stored.size, stored.tobytes()) == (found.size, found.tobytes())


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _bad_image(what: str, max_megapixels: float) -> Iterator[None]:
    """Raise BadImage, with a short reason, for any exception of Pillow about broken data."""
    try:
        yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(f"not an image in a known format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        limit = min(max_megapixels, 2 * Image.MAX_IMAGE_PIXELS / 1e6)
        raise BadImage(f"source image has more than {limit:.4g} megapixels") from None
    except MemoryError:
        raise BadImage(f"image {what} needs more memory than there is") from None
    # On hostile bytes Pillow's readers raise SyntaxError, struct.error, IndexError, KeyError, and more.
    except Exception as error:
        text = " ".join(_MACHINE_TEXT.sub("", str(error)).split())[:160]
        raise BadImage(f"image {what} is broken: {text or type(error).__name__}") from None
