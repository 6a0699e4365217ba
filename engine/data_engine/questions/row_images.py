"""The encoded images of a row, from the cells of its columns: bytes, base64 text, or files under the image root."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_engine.questions.base64_images import image_bytes, is_image_text
from data_engine.questions.images import (
    MAX_FILE_BYTES,
    BadImage,
    MissingImage,
    read_under,
    refuse_address,
)
from data_engine.questions.sources.cells import images_in
from data_engine.questions.sources.column_types import as_bytes, is_list, is_text, list_offsets

_LISTS = pa.list_(pa.struct([("bytes", pa.large_binary()), ("path", pa.large_binary())]))
NO_IMAGE = "row has no image: neither bytes nor a path"


@dataclass(frozen=True)
class ImageCell:
    """One image as it stands in a row."""

    data: pa.Scalar
    path: pa.Scalar

    @property
    def is_empty(self) -> bool:
        """Whether there is neither data nor a path."""
        return not any(cell.is_valid and cell.as_buffer().size for cell in (self.data, self.path))

    @property
    def name(self) -> str | None:
        """The path that it comes with; None where that text is the image itself."""
        path = self.path.as_py()
        return None if path is None or is_image_text(path) else path.decode(errors="replace")

    def read(self, image_root: Path | None) -> bytes:
        """The encoded image. Raises BadImage, and MissingImage where it may be there another time."""
        name, path = self.name, self.path.as_py()
        data = limited(self.data, MAX_FILE_BYTES, "image") or (path if name is None else None)
        return (image_bytes(data) if data and is_image_text(data) else data) or _read_file(name, image_root)


class ImageCells:
    """The images of each row of a batch, from a column of them or from one of lists of them."""

    def __init__(self, column: pa.Array):
        listed = is_list(column.type)
        self._offsets = list_offsets(column) if listed else range(len(column) + 1)
        self._valid = column.is_valid().to_pylist()
        self._data, self._paths = _parts(column.flatten() if listed else column)

    def of_row(self, row: int) -> list[ImageCell] | None:
        """None where the cell is null."""
        places = range(self._offsets[row], self._offsets[row + 1])
        return [ImageCell(self._data[i], self._paths[i]) for i in places] if self._valid[row] else None


def text_as_lists(column: pa.Array) -> pa.Array:
    """A column of text in which a cell has an image, or a list of them in JSON, as one of lists; others as they are."""
    if not is_text(column.type):
        return column
    return pa.array(map(_listed, as_bytes(column).to_pylist()), _LISTS)


def chosen_cells(image: list[ImageCell] | None, images: list[ImageCell] | None, columns: Sequence[str]) -> list:
    """The images of a row of a dataset that has these columns of them. Raises BadImage where they are not clear."""
    one = image is not None and not image[0].is_empty
    if one and images:
        raise BadImage("row has both an image and images; leave one of the two null, or unread by --columns images=")
    if one:
        return image
    if images is not None:
        return images
    if "image" in columns:
        raise BadImage(NO_IMAGE)
    if "images" in columns:
        raise BadImage("row has no images: the cell is null; an empty list is a row without images")
    return []


def limited(cell: pa.Scalar, most_bytes: int, what: str) -> bytes | None:
    """A cell's bytes; raises BadImage, before they are copied, where there are too many."""
    buffer = cell.as_buffer()
    if buffer is not None and buffer.size > most_bytes:
        raise BadImage(f"{what} has {buffer.size} bytes, more than {most_bytes}")
    return cell.as_py()


def _read_file(path: str | None, image_root: Path | None) -> bytes:
    if not path:
        raise BadImage(NO_IMAGE)
    # Another image_root would not help.
    refuse_address(path)
    if image_root is None:
        raise MissingImage("image has no bytes, and its path is not opened without image_root")
    return read_under(image_root, path)


def _listed(cell: bytes | None) -> list | None:
    if cell is None:
        return None
    try:
        return images_in(cell.decode())
    except ValueError:
        # That no file is called so will be told.
        return [{"bytes": None, "path": cell}]


def _parts(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(bytes, paths) of an image column."""
    if pa.types.is_struct(column.type):
        # flatten, unlike field(), keeps the struct's own nulls.
        parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    else:
        parts = {"path" if is_text(column.type) else "bytes": column}
    empty = pa.nulls(len(column), pa.large_binary())
    return tuple(as_bytes(parts[name]) if name in parts else empty for name in ("bytes", "path"))
