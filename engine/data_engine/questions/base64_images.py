"""Images that stand in a text: as a data address, `data:image/png;base64,...`, or as plain base64."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from data_engine.questions.images import BadImage

# The smallest images have more bytes; what is shorter is the name of a file.
_SHORTEST = 40
_DATA_ADDRESS = re.compile(rb"\s*data:([^,]{0,200}),", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]+={0,2}")
# How the data of JPEG, PNG, GIF, WEBP, TIFF, BMP, PPM and, so that they are told by name, HEIF and AVIF begin.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|P[1-6]\s|....ftyp", re.DOTALL
)
_HEAD = 24
_SPACE = b" \t\r\n"


def is_image_text(text: bytes) -> bool:
    """Whether a text is an image itself and not the path of one: a data address, or base64 that begins as images do."""
    if _DATA_ADDRESS.match(text):
        return True
    head = text[: 4 * _HEAD].translate(None, _SPACE)[:_HEAD]
    if len(text) < _SHORTEST or len(head) < _HEAD or not _BASE64.fullmatch(head):
        return False
    begins = _SIGNATURE.match(base64.b64decode(head, b"-_" if b"-" in head or b"_" in head else None))
    # A path has a dot before its ending, which is not in base64's alphabet.
    return begins is not None and _BASE64.fullmatch(text.translate(None, _SPACE)) is not None


def image_bytes(text: bytes) -> bytes:
    """The bytes that a text holds in base64. Raises BadImage where it is not base64."""
    address = _DATA_ADDRESS.match(text)
    if address and not address[1].lower().endswith(b";base64"):
        raise BadImage("image is a data address without base64; expected data:image/...;base64,...")
    coded = text[address.end() :] if address else text
    coded = (unquote_to_bytes(coded) if address and b"%" in coded else coded).translate(None, _SPACE)
    if not _BASE64.fullmatch(coded):
        raise BadImage("image is text, but not base64")
    coded = coded.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
    try:
        return base64.b64decode(coded + b"=" * (-len(coded) % 4), validate=True)
    except binascii.Error:
        raise BadImage("image is base64 text that is cut off") from None
