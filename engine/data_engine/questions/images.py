"""Encoded bytes in, an RGB image out, safely: a format allow-list, a pixel limit before decoding, one exception.

Pixels are what Pillow's convert("RGB") gives (alpha dropped, palettes expanded, EXIF orientation not applied, the
first frame of an animation), except that 16-bit gray is scaled to 8 bits, which Pillow would clip.
"""

import contextlib
import errno
import io
import json
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_FILE_BYTES = 1 << 29
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
    """An image that could not be read for what is missing around it: a file, a mount, a setting."""


Decode = Callable[[bytes | None, float], Image.Image]
"""`decode`, or the same in another process"""


def decode(data: bytes | None, max_megapixels: float) -> Image.Image:
    """The first frame of an encoded image as RGB; raises BadImage, and nothing else, where it cannot be used."""
    if not data:
        raise BadImage("image is empty (0 bytes)")
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _bad_image("file", max_megapixels):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_megapixels(*image.size, max_megapixels, "source image")
        with _bad_image(f"{image.format} data", max_megapixels):
            return to_rgb(image)


def open_image(image: Image.Image | bytes, max_megapixels: float) -> Image.Image:
    """What the public API takes as an image, as RGB. Raises BadImage."""
    if isinstance(image, Image.Image):
        check_megapixels(*image.size, max_megapixels, "source image")
        return to_rgb(image)
    return decode(image, max_megapixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as RGB; 16-bit gray loses its low byte, as Pillow's 16-bit colour does. Raises BadImage for a
    32-bit or floating-point image, whose range of values is not defined.
    """
    # Pillow gives 16-bit PGM, and its older versions 16-bit PNG, as 32-bit integers.
    if image.mode in _SIXTEEN_BIT_GRAY or (image.mode == "I" and image.format in ("PNG", "PPM")):
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


def read_under(root: Path, path: str) -> bytes:
    """The content of the file `path` of a dataset. Raises BadImage unless it lies, with links followed, below `root`.

    MissingImage where another folder, or a mount, could have it. An OSError of the disk, which is no fault of the row,
    is raised unchanged.
    """
    shown = json.dumps(path if len(path) <= 200 else f"{path[:200]}...", ensure_ascii=False)
    if "://" in path:
        raise BadImage(f"image path {shown} is an address; only files under image_root are opened")
    try:
        real = Path(os.path.realpath(root / path))
        inside = real.is_relative_to(os.path.realpath(root))
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW) if inside else None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _ROW_ERRORS:
            raise
        raise MissingImage(f"image path {shown} is not a readable file under image_root") from None
    if descriptor is None:
        raise MissingImage(f"image path {shown} leads outside image_root")
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
