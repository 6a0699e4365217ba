"""What a picture's file says beside its pixels, as bytes: the orientation tag of a JPEG, the chunks of a PNG.

Encoded bytes in, the same bytes with less metadata out; pixels are neither decoded nor changed.
"""

import re
import struct
import zlib
from collections.abc import Iterator

ORIENTATION = 0x0112
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# Chunks beside the critical ones that say how pixels are meant.
_KEPT_CHUNKS = (b"tRNS", b"eXIf")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
# Keywords of text in which Pillow looks for an orientation.
_KEYWORDS = (b"exif", b"xmp", b"Raw profile type exif", b"XML:com.adobe.xmp")
# More text than so much may lie beyond a limit of Pillow.
_MUCH_TEXT = 1 << 20
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_APP1, _START_OF_SCAN, _END = 0xE1, 0xDA, 0xD9
_XMP_ORIENTATION = re.compile(
    rb"""tiff:Orientation\s*=\s*(?:"[^"<]*"|'[^'<]*')|<tiff:Orientation>[^<]*</tiff:Orientation>"""
)


def without_jpeg_orientation(data: bytes) -> bytes | None:
    """A JPEG of the same size without the orientation tag in EXIF and XMP; None where its layout is unknown.

    The caller has to check the result: a file may hold the tag in a way that is not looked for.
    """
    out = bytearray(data)
    try:
        for start, end in _app1_segments(data):
            if data.startswith(_EXIF, start, end):
                _cut_entry(out, start + len(_EXIF), end)
            elif data.startswith(_XMP, start, end):
                # XMP is text in which spaces may stand between attributes and between elements.
                out[start:end] = _XMP_ORIENTATION.sub(lambda found: b" " * len(found[0]), out[start:end])
    except (struct.error, LookupError):
        return None
    return bytes(out)


def png_without_metadata(data: bytes) -> bytes | None:
    """A PNG with the chunks that its pixels and its orientation need; None for what is no PNG, or has no others."""
    if not data.startswith(_PNG_HEAD):
        return None
    kept = b"".join([_PNG_HEAD, *(whole for kind, body, whole in _chunks(data) if _is_needed(kind, body, whole))])
    return kept if len(kept) < len(data) else None


def png_needs_loading(data: bytes) -> bool:
    """Whether a PNG may hold an orientation, or text beyond Pillow's limits, of which its header says nothing."""
    text_bytes = 0
    for kind, body, _ in _chunks(data):
        if kind in (b"eXIf", b"zTXt", b"iTXt") or (kind == b"tEXt" and _keyword(body) in _KEYWORDS):
            return True
        text_bytes += len(body) * (kind in _TEXT_CHUNKS)
    return text_bytes > _MUCH_TEXT


def _app1_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of the content of each APP1 segment before the pixels. Raises IndexError, struct.error."""
    at = 2
    while True:
        if data[at] != 0xFF:
            raise IndexError
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        if marker in (_START_OF_SCAN, _END):
            return
        [size] = struct.unpack_from(">H", data, at + 1)
        if marker == _APP1:
            yield at + 3, at + 1 + size
        at += 1 + size


def _cut_entry(out: bytearray, start: int, end: int) -> None:
    """Remove the orientation from the first directory of the TIFF structure in out[start:end], and move no value.

    Entries of 12 bytes that follow, and the address of the next directory, move up; values lie at their own addresses.
    """
    order = {b"II": "<", b"MM": ">"}[bytes(out[start : start + 2])]
    at = start + struct.unpack_from(f"{order}I", out, start + 4)[0]
    [count] = struct.unpack_from(f"{order}H", out, at)
    entries = [bytes(out[first : first + 12]) for first in range(at + 2, at + 2 + 12 * count, 12)]
    after = at + 2 + 12 * count
    if after > end:
        raise IndexError
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] != ORIENTATION]
    # Some writers leave out the address of the next directory.
    next_directory = bytes(out[after : min(after + 4, end)])
    new = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + next_directory
    out[at : at + len(new)] = new
    freed = 12 * (count - len(kept))
    out[at + len(new) : at + len(new) + freed] = bytes(freed)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Kind, content and the whole of each chunk of a PNG, up to its end or to where it breaks off."""
    view, at = memoryview(data), len(_PNG_HEAD)
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, view[at + 8 : at + 8 + size], view[at : at + 12 + size]
        if kind == b"IEND":
            return
        at += 12 + size


def _is_needed(kind: bytes, body: memoryview, whole: memoryview) -> bool:
    """Critical chunks begin with a capital letter. Others of a wrong checksum would not be read."""
    if kind[:1].isupper():
        return True
    return kind in _KEPT_CHUNKS and whole[-4:] == struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _keyword(body: memoryview) -> bytes:
    return bytes(body[:80]).partition(b"\0")[0]
