"""Questions from the `datasets` library: a folder that save_to_disk wrote, Arrow files, or a dataset of the hub."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from data_engine.errors import UserError, first_line
from data_engine.flag_files import nearest_path
from data_engine.processes.counting import waiting
from data_engine.questions.sources.base import BATCH_ROWS, choose_split, refuse
from data_engine.questions.sources.column_names import SAME_NAMES, ColumnNames
from data_engine.questions.sources.column_types import as_type, columns_of, plain_values
from data_engine.store.file_hashes import HashFiles

_AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
# How an Arrow stream ends. One that is cut off between two batches can be read, with fewer rows.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
# What the library says of a hub dataset that is several, without a default.
_NO_CONFIG = "Config name is missing"


class DatasetsSource:
    """A `datasets.Dataset`, memory-mapped; its Arrow format never opens a file that an image column names."""

    image_root, warnings = None, ()

    def __init__(self, dataset, name: str = "dataset", names: ColumnNames = SAME_NAMES):
        self._name, self.names = name, names
        self.columns = columns_of(dataset.features.arrow_schema, name, names)
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._dataset)

    def file_sizes(self) -> list[tuple[str, int]]:
        return []

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        if len(self._dataset) == 0:
            # The library cannot cut rows from nothing.
            return pa.chunked_array([], self.columns["idx"])
        with _library_reads(f"{self._name} is broken"):
            found = self._dataset.select_columns([self.names.in_dataset("idx")])[:limit].column(0)
            return pa.chunked_array([self._checked(chunk, "idx") for chunk in found.chunks], self.columns["idx"])

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        theirs = [self.names.in_dataset(name) for name in columns]
        # One may stand for two.
        selected = self._dataset.select_columns([*dict.fromkeys(theirs)])
        for start in range(rows.start, rows.stop, BATCH_ROWS):
            with _library_reads(f"{self._name} is broken"):
                found = selected[start : min(start + BATCH_ROWS, rows.stop)].select(theirs).to_batches()
                cells = [list(map(self._checked, batch.columns, columns)) for batch in found]
            yield from (pa.RecordBatch.from_arrays(batch, columns) for batch in cells)

    def _checked(self, column: pa.Array, name: str) -> pa.Array:
        """A column in its type; an offset that points out of the file would end the process when it is followed."""
        _check_offsets(column)
        return as_type(column, self.columns[name])

    def values(self, column: pa.Array) -> list:
        return plain_values(column)

    def fingerprint(self, hash_files: HashFiles) -> str:
        files = [Path(file["filename"]) for file in self._dataset.cache_files]
        if files:
            return " ".join(hash_files(files))
        # In memory: there is no file whose hash could be remembered.
        content = hashlib.sha256()
        for batch in self.batches(range(len(self._dataset)), list(self.columns)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as writer:
                writer.write_batch(batch)
            content.update(sink.getvalue())
        return content.hexdigest()


def is_saved_dataset(folder: Path) -> bool:
    """Whether datasets.save_to_disk wrote this folder; LLaMA-Factory has a dataset_info.json, too."""
    one = all((folder / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (folder / "dataset_dict.json").is_file()


def load_folder(path: str, split: str | None):
    """A split of what datasets.save_to_disk wrote. Raises UserError where it is none, or has no such split."""
    import datasets

    with _library_reads(f'dataset_path "{path}" is not a whole folder of datasets.save_to_disk'):
        folder = Path(path)
        if (folder / "dataset_dict.json").is_file() and not (folder / "state.json").is_file():
            # The other splits are not looked at: the library cannot load one that is empty.
            folder /= choose_split(path, json.loads((folder / "dataset_dict.json").read_bytes())["splits"], split)
            split = None
        refuse(not json.loads((folder / "state.json").read_bytes())["_data_files"], f'dataset "{folder}" has no rows')
        found = datasets.load_from_disk(str(folder))
        choose_split(path, [str(found.split or "train")], split)
        for file in found.cache_files:
            _check_whole(Path(file["filename"]))
    return found


def load_arrow(files: Sequence[Path]):
    """Files of Arrow streams, one behind the other, as load_dataset keeps them in its cache. Raises UserError where one
    is none, or has other columns.
    """
    import datasets

    found = []
    for file in files:
        with _library_reads(f'dataset file "{file}" is no whole file of an Arrow stream'):
            _check_whole(file)
            found.append(datasets.Dataset.from_file(str(file)))
    with _library_reads(f'dataset files "{files[0]}" to "{files[-1]}" have other columns than each other'):
        return datasets.concatenate_datasets(found)


def load_hub(path: str, split: str | None, revision: str | None):
    """A split of a hub dataset. Raises UserError where it cannot be loaded, or has no such split."""
    import datasets

    if split is None:
        with waiting(f"{path} is no file or folder here: asking the hub"):
            split = _only_split(path, revision)
    what = f'(split "{split}", revision {revision or "newest"})' if split else f"(revision {revision or 'newest'})"
    wrong = f'dataset_path "{path}" is no file or folder here, and as a hub dataset {what} it cannot be loaded'
    with _library_reads(wrong + nearest_path(path)):
        try:
            found = datasets.load_dataset(path, split=split, revision=revision)
        except ValueError as error:
            if _NO_CONFIG in str(error):
                _refuse_several(path, revision)
            raise
        return found[choose_split(path, list(found), split)] if isinstance(found, datasets.DatasetDict) else found


def _refuse_several(path: str, revision: str | None) -> None:
    """Raise UserError for a hub dataset that is several, which the library calls configurations, without a default."""
    import datasets

    names = datasets.get_dataset_config_names(path, revision=revision)
    more = ", ..." if len(names) > 20 else ""
    raise UserError(
        f'dataset_path "{path}" is several datasets: {", ".join(names[:20])}{more}; download the files of one and name '
        f'their folder: hf download {path} --repo-type dataset --include "{names[0]}/*" --local-dir data, then '
        f"--dataset_path data/{names[0]}"
    )


def _only_split(path: str, revision: str | None) -> str | None:
    """The split of a hub dataset that has one, looked up before anything is downloaded; None where it is not known."""
    import datasets

    try:
        names = datasets.get_dataset_split_names(path, revision=revision)
    except Exception:
        # Without the hub, the dataset may still be in the cache; load_dataset says what is wrong.
        return None
    return choose_split(path, names, None)


@contextlib.contextmanager
def _library_reads(wrong: str) -> Iterator[None]:
    """Raise UserError, `wrong` and the reason, whatever the library raises about files: it promises no exceptions."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reasons = [error, error.__cause__] if error.__cause__ else [error]
        raise UserError(f"{wrong}: {': '.join(map(first_line, reasons))}") from None


def _check_whole(file: Path) -> None:
    with open(file, "rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - len(_END_OF_STREAM)))
        refuse(stream.read() != _END_OF_STREAM, f'dataset file "{file}" is cut off; copy or save it again')


def _check_offsets(column: pa.Array) -> None:
    """Raise ArrowInvalid where a cell would lie outside of its buffer; text need not be valid UTF-8."""
    if pa.types.is_struct(column.type):
        column.validate()
        for part in column.flatten():
            _check_offsets(part)
    elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        # The same lists of nothing: text in the values need not be valid UTF-8.
        lists = pa.ListArray if pa.types.is_list(column.type) else pa.LargeListArray
        lists.from_arrays(column.offsets, pa.nulls(len(column.values))).validate(full=True)
        _check_offsets(column.values)
    elif pa.types.is_fixed_size_list(column.type):
        _check_offsets(column.values)
    elif column.type in _AS_BYTES:
        column.view(_AS_BYTES[column.type]).validate(full=True)
    else:
        column.validate(full=True)
