"""Questions from the `datasets` library: a folder that save_to_disk wrote, or a dataset of the hub."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_engine.errors import UserError
from data_engine.questions.sources.base import BATCH_ROWS, refuse
from data_engine.store.file_hashes import HashFiles


class DatasetsSource:
    """A `datasets.Dataset`, memory-mapped; its Arrow format never opens a file that an image column names."""

    def __init__(self, dataset):
        self._dataset = dataset.with_format("arrow")
        self.columns = {field.name: field.type for field in dataset.features.arrow_schema}

    def ids(self, limit: int | None) -> pa.ChunkedArray:
        return self._dataset.select_columns(["idx"])[:limit].column(0)

    def batches(self, rows: range, columns: list[str]) -> Iterator[pa.RecordBatch]:
        selected = self._dataset.select_columns(columns)
        for start in range(rows.start, rows.stop, BATCH_ROWS):
            yield from selected[start : min(start + BATCH_ROWS, rows.stop)].select(columns).to_batches()

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
    """Whether datasets.save_to_disk wrote this folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def load_folder(path: str, split: str):
    """A split of what datasets.save_to_disk wrote. Raises UserError where it is none, or has no such split."""
    import datasets

    try:
        found = datasets.load_from_disk(path)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f'"{path}" is not a folder that datasets.save_to_disk wrote: {error}') from None
    if isinstance(found, datasets.DatasetDict):
        refuse(split not in found, f'"{path}" has no split "{split}"; dataset_split can be: {", ".join(found)}')
        return found[split]
    own = str(found.split or "train")
    refuse(split not in ("train", own), f'"{path}" holds the split "{own}" alone; dataset_split is "{split}"')
    return found


def load_hub(path: str, split: str, revision: str | None):
    """A split of a hub dataset. Raises UserError where it cannot be loaded."""
    import datasets

    try:
        return datasets.load_dataset(path, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f'dataset_path "{path}" is no file or folder here, and as a hub dataset '
            f'(split "{split}", revision {revision or "newest"}) it cannot be loaded: {error}'
        ) from None
