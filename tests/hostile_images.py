"""Images as nobody would send them by mistake: whole ones of every kind, and what is left of them when bytes change."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from data_engine.questions.images import BadImage


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> Image.Image:
    width, height = size
    values = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    return Image.fromarray(values.astype(np.uint8), "RGB").convert(mode)


def png_header(width: int, height: int, content: bytes = b"\0" * 64) -> bytes:
    """A PNG that claims a size and brings what it likes."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(content)) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def whole_images() -> list[bytes]:
    """Every format and mode, one pixel, one pixel wide, animated, of 16 bits, with a profile that is none."""
    modes = {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "P", "RGBA", "1", "LA"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("P",),
        "BMP": ("RGB", "P"),
        "TIFF": ("RGB", "RGBA", "CMYK"),
        "PPM": ("RGB", "L"),
    }
    sizes = ((23, 17), (1, 500), (1, 1), (1, 5000))
    whole = [encode(gradient(mode, size), name) for name in modes for mode in modes[name] for size in sizes]
    whole += [encode(gradient(), "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")]
    sixteen = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    whole += [encode(sixteen, name) for name in ("PNG", "TIFF", "PPM")]
    turned = [gradient().rotate(angle) for angle in (90, 180)]
    whole += [encode(gradient(), name, save_all=True, append_images=turned) for name in ("GIF", "WEBP", "PNG", "TIFF")]
    whole += [encode(gradient(), name, icc_profile=bytes(range(256)) * 2) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    return [*whole, encode(gradient(), "JPEG", progressive=True)]


def bombs() -> list[bytes]:
    """Small files of huge images, of none at all, and of other formats."""
    sizes = [(0, 0), (0, 5), (5, 0), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (10_000, 10_000), (1, 2**31 - 1)]
    found = [png_header(*size) for size in sizes]
    # The pixels of 16 megapixels and of a megapixel more than they should be, all there and packed a thousand to one.
    found += [png_header(4000, 4000, bytes(4000 * (1 + 3 * 4000))), png_header(9, 9, bytes(3_000_000))]
    # A comment that unpacks to 64 MB.
    packed = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64 << 20)))
    found.append(png_header(5, 5, bytes(80))[:33] + packed + png_header(5, 5, bytes(80))[33:])
    found += [encode(gradient(), name) for name in ("JPEG2000", "PCX", "TGA", "ICO")]
    return [*found, b"", b"no picture", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"\0" * 5000]


def outcome(decode, data: bytes, max_megapixels: float = 1) -> tuple | str:
    """Size, pixels and mark, or the reason."""
    try:
        image = decode(data, max_megapixels)
    except BadImage as problem:
        return str(problem)
    return image.mode, image.size, image.tobytes(), image.info


def mutations(rng: random.Random, count: int) -> Iterator[bytes]:
    """`count` files: one in eight as it is, the others cut, with flipped bytes, a hole, or another format's head."""
    whole = whole_images()
    strange = [*whole, *bombs()]
    for _ in range(count):
        data = bytearray(rng.choice(whole))
        kind = rng.randrange(8)
        if kind == 0:
            data = rng.choice(strange)
        elif kind < 3:
            del data[rng.randrange(len(data)) :]
        elif kind < 5:
            for _ in range(rng.randint(1, 12)):
                data[rng.randrange(min(len(data), rng.choice((64, 10**9))))] = rng.randrange(256)
        elif kind < 7:
            start = rng.randrange(len(data))
            del data[start : start + rng.randint(1, 40)]
        else:
            head = rng.choice(whole)[: rng.randint(4, 30)]
            data[: len(head)] = head
        yield bytes(data)
