"""Pictures as files that are named by their content, each written once."""

import hashlib
import io
import logging
from pathlib import Path

from PIL import Image

from data_engine.questions.images import FORMATS

# Of a file's name, in hex: 128 bits.
NAME_LENGTH = 32
_ENDINGS = {"JPEG": "jpg", "TIFF": "tif", "PPM": "ppm"}

log = logging.getLogger(__name__)


class PictureFiles:
    """The folder `images` of an export."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, picture: bytes) -> str:
        """Where an encoded picture lies, relative to the export's folder; it is written if it is not there yet.

        Folders of 256 keep the number of files in each below what file systems and the hub take.
        """
        name = hashlib.sha256(picture).hexdigest()[:NAME_LENGTH]
        relative = f"images/{name[:2]}/{name}.{_ending(picture)}"
        path = self._folder / relative
        if not path.exists():
            for folder in (path.parent.parent, path.parent):
                folder.mkdir(exist_ok=True)
            path.write_bytes(picture)
        return relative


def _ending(picture: bytes) -> str:
    """By the format of the content: trainers open a file by its content, people and the hub by its name."""
    try:
        found = Image.open(io.BytesIO(picture), formats=FORMATS).format
    # On hostile bytes Pillow's readers raise SyntaxError, struct.error, IndexError, KeyError, and more.
    except Exception as error:
        log.debug("a picture is written without an ending, since Pillow cannot read its header: %r", error)
        return "bin"
    return _ENDINGS.get(found, found.lower())
