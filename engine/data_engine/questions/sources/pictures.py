"""Questions about a folder of pictures: each picture, in whatever folder below it, is a row with its path as idx."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.questions.sources.base import BATCH_ROWS, refuse
from data_engine.questions.sources.column_names import SAME_NAMES, ColumnNames
from data_engine.store.file_hashes import HashFiles

# One that Pillow cannot read here leaves its row out with that reason.
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".avif", ".heic", ".heif",
)  # fmt: skip
_COLUMNS = ("idx", "image")


class PicturesSource:
    """The pictures of a folder by the order of their paths; those in files and folders that begin with a dot are left
    out.

    Columns are idx and image, both the path below the folder. What a picture shows is bound row by row, as that of any
    path is.
    """

    def __init__(self, folder: Path, names: ColumnNames = SAME_NAMES):
        for ours, theirs in names.theirs.items():
            refuse(
                theirs not in ("", *_COLUMNS),
                f'columns {ours}={theirs}: "{folder}" is a folder of pictures, whose columns are idx and image',
            )
        self.image_root, self.names = folder, names
        closed: list[Path] = []
        self._paths = sorted(path.relative_to(folder).as_posix() for path in pictures_below(folder, closed))
        self.warnings = [_told_of_closed(folder, closed)] if closed else []
        for path in self._paths:
            refuse(not _is_utf8(path), f'dataset_path "{folder}": the name of {path!r} is not valid UTF-8; rename it')
        self.columns = {name: pa.string() for theirs in _COLUMNS for name in names.ours(theirs)}

    def __len__(self) -> int:
        return len(self._paths)

    def file_sizes(self) -> list[tuple[str, int]]:
        return []

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(self._paths[:limit], pa.string())])

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for start in range(rows.start, min(rows.stop, len(self)), BATCH_ROWS):
            paths = pa.array(self._paths[start : min(start + BATCH_ROWS, rows.stop)], pa.string())
            yield pa.RecordBatch.from_arrays([paths] * len(columns), columns)

    def values(self, column: pa.Array) -> list:
        return column.to_pylist()

    def fingerprint(self, hash_files: HashFiles) -> str:
        return hashlib.sha256("\n".join(self._paths).encode()).hexdigest()


def pictures_below(folder: Path, closed: list[Path]) -> Iterator[Path]:
    """The files that are called as pictures are, in no order.

    `closed` gets the folders that are not looked into: links, which may lead in circles, and those that cannot be read.
    """
    for parent, folders, files in os.walk(folder, onerror=lambda error: closed.append(Path(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        closed.extend(path for name in folders if (path := Path(parent, name)).is_symlink())
        found = (name for name in files if name.lower().endswith(ENDINGS) and not name.startswith("."))
        yield from (Path(parent, name) for name in found)


def _told_of_closed(folder: Path, closed: list[Path]) -> str:
    """What to say of folders that are not looked into."""
    names = sorted(path.relative_to(folder).as_posix() for path in closed)
    more = ", ..." if len(names) > 5 else ""
    return (
        f'folders in "{folder}" that are links or cannot be read are left out, with their pictures: '
        f"{', '.join(names[:5])}{more}"
    )


def _is_utf8(text: str) -> bool:
    return text == text.encode("utf-8", "ignore").decode()
