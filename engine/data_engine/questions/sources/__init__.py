"""Where questions come from: parquet files, files of JSON or CSV rows, pictures, or what the `datasets` library reads.

`open_source` chooses by the path; each kind of source is a file here, a class with the methods of base.Source. A source
puts cells into columns and interprets no more of them; questions/dataset.py does.
"""

import shlex
from pathlib import Path

from data_engine.errors import UserError, first_line, python_command
from data_engine.flag_files import is_hub_id, look_up, nearest_path
from data_engine.questions.sources.added import with_added
from data_engine.questions.sources.base import LFS_POINTER, Source, is_lfs_pointer, refuse
from data_engine.questions.sources.column_names import SAME_NAMES, ColumnNames
from data_engine.questions.sources.folders import files_of, has_rows, told_of_missing_shards
from data_engine.questions.sources.hub import DatasetsSource, is_saved_dataset, load_arrow, load_folder, load_hub
from data_engine.questions.sources.parquet import ParquetSource
from data_engine.questions.sources.pictures import PicturesSource, pictures_below
from data_engine.questions.sources.text_rows import JSON_ENDINGS, TEXT_ENDINGS, TextSource

# An Arrow file is a stream, as `datasets` writes it, or what Feather is: that begins so.
_FEATHER_BEGINS = b"ARROW1"
_FROM_FEATHER = "import sys, pandas; pandas.read_feather(sys.argv[1]).to_parquet(sys.argv[2])"
# Files of other kinds, by their ending, and how to make one of them that can be read.
_TO_PARQUET = {
    ".arrow": _FROM_FEATHER,
    ".feather": _FROM_FEATHER,
}
_OTHER_WAYS = {
    ".xlsx": "save {file} as .csv in UTF-8",
    ".gz": "gunzip {file}",
    ".zst": "unzstd {file}",
    ".bz2": "bunzip2 {file}",
    ".xz": "unxz {file}",
    ".zip": "unzip {file}",
    ".tar": "tar -xf {file} unpacks it; docs/datasets.md shows how the pictures of one of WebDataset are asked about",
}
_FILE_ENDINGS = (".parquet", *TEXT_ENDINGS, *_TO_PARQUET, *_OTHER_WAYS)
_PARQUET_BEGINS = b"PAR1"


def open_source(
    path: str,
    split: str | None = None,
    revision: str | None = None,
    names: ColumnNames = SAME_NAMES,
    question: str | None = None,
) -> Source:
    """The source that `path` names: parquet file, file of rows, folder of such files, `datasets` folder, or hub id;
    with `question`, which is asked in each row, also a folder of pictures.

    Without `split`, it is the only one that there is. Raises UserError where there is none, where it cannot be read, or
    where split, revision or question do not apply to it.
    """
    return with_added(_source(path, split, revision, names, question is not None), question, f'dataset "{path}"')


def _source(path: str, split: str | None, revision: str | None, names: ColumnNames, may_be_pictures: bool) -> Source:
    local = Path(path)
    look_up("dataset_path", path)
    if is_hub_id(path, _FILE_ENDINGS):
        return DatasetsSource(load_hub(path, split, revision), f'dataset "{path}"', names)
    refuse(not local.exists(), f'no file or folder at dataset_path "{path}"{nearest_path(path)}')
    refuse(revision is not None, f'dataset_revision "{revision}" is for a hub dataset; "{path}" is none')
    try:
        if is_saved_dataset(local):
            return DatasetsSource(load_folder(path, split), f'dataset "{path}"', names)
        if local.is_dir() and may_be_pictures and not has_rows(local) and any(pictures_below(local, [])):
            refuse(split is not None, f'dataset_split "{split}": "{path}" is a folder of pictures; name a folder in it')
            return PicturesSource(local, names)
        if local.is_dir():
            files = files_of(local, split)
            source = _source_of(files, names)
            if may_be_pictures:
                _refuse_for_pictures(path, files[0], source)
            source.warnings = told_of_missing_shards(files)
            return source
        return _file_source(local, split, names)
    except OSError as error:
        raise UserError(f'dataset_path "{path}" cannot be read: {first_line(error)}') from None


def _refuse_for_pictures(folder: str, file: Path, source: Source) -> None:
    """Raise UserError where rows without a picture would be asked in the place of pictures that lie beside their file.

    Not where rows have questions, for which with_added refuses --question, nor where --columns leaves pictures unread.
    """
    columns, names = source.columns, source.names
    is_unread = "" in (names.in_dataset("image"), names.in_dataset("images"))
    has_own = bool({"image", "images", "question", "messages"} & columns.keys())
    if columns and not is_unread and not has_own and any(pictures_below(Path(folder), [])):
        names.require_there(columns, f'dataset "{folder}"')
        raise UserError(
            f'dataset_path "{folder}" has pictures, and the file {file.name}, which is read in their place, and which '
            'has no column "image" or "images". To ask about the pictures, move it out of the folder; to ask about its '
            "rows, name it as --dataset_path, or the column of their pictures by --columns image=NAME"
        )


def _file_source(file: Path, split: str | None, names: ColumnNames) -> Source:
    refuse(
        # `datasets` calls a file's only split so.
        split not in (None, "train"),
        f'dataset_split "{split}" is for a folder or a hub dataset; "{file}" is a file: leave --dataset_split out',
    )
    refuse(not file.is_file(), f'dataset_path "{file}" is neither a file nor a folder')
    name = file.name.lower()
    if name.endswith(JSON_ENDINGS):
        return _text_source([file], names)
    refuse(is_lfs_pointer(file), f'dataset_path "{file}" {LFS_POINTER}')
    with open(file, "rb") as stream:
        begins = stream.read(len(_FEATHER_BEGINS))
    if begins.startswith(_PARQUET_BEGINS):
        return ParquetSource([file], names)
    if name.endswith(TEXT_ENDINGS) or (name.endswith(".arrow") and begins != _FEATHER_BEGINS):
        return _source_of([file], names)
    if way := _way_to_read(file):
        raise UserError(
            f'dataset_path "{file}" is a {file.suffix} file; it can be parquet, .jsonl, .json, .csv, .tsv, or one of '
            f"the last four with .gz: {way}"
        )
    refuse(
        not name.endswith((".parquet", ".pq")),
        f'dataset_path "{file}" is no parquet file, and only one whose name ends with .jsonl, .json, .csv or .tsv, or '
        "one of these with .gz, is read as rows of text: rename it if it has such",
    )
    return ParquetSource([file], names)


def _way_to_read(file: Path) -> str:
    """How to make a file that can be read of one of another kind; "" where it is of no kind that is known."""
    kind = file.suffix.lower()
    if code := _TO_PARQUET.get(kind):
        return python_command(code, file, f"{file.stem}.parquet")
    return _OTHER_WAYS.get(kind, "").format(file=shlex.quote(str(file)))


def _source_of(files: list[Path], names: ColumnNames) -> Source:
    """The source of files of one kind, which the ending of their names tells."""
    name = files[0].name.lower()
    if name.endswith(".arrow"):
        return DatasetsSource(load_arrow(files), f'dataset "{files[0].parent}"', names)
    return _text_source(files, names) if name.endswith(TEXT_ENDINGS) else ParquetSource(files, names)


def _text_source(files: list[Path], names: ColumnNames) -> TextSource:
    for file in files:
        refuse(is_lfs_pointer(file), f'dataset_path "{file}" {LFS_POINTER}')
    return TextSource(files, names)
