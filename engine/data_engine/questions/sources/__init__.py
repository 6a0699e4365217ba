"""Where questions come from: parquet files, a jsonl file, or what the `datasets` library reads.

`open_source` chooses by the path; each kind of source is a file here, a class with the methods of base.Source. A source
interprets no cell; questions/dataset.py does.
"""

import re
from pathlib import Path

from data_engine.questions.sources.base import Source, refuse
from data_engine.questions.sources.hub import DatasetsSource, is_saved_dataset, load_folder, load_hub
from data_engine.questions.sources.jsonl import JsonlSource
from data_engine.questions.sources.parquet import ParquetSource

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_FILE_ENDINGS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".arrow")


def open_source(path: str, split: str = "train", revision: str | None = None) -> Source:
    """The source that `path` names: parquet file or folder, jsonl file, `datasets` folder, or hub id.

    Raises UserError where there is none, where it cannot be read, or where split or revision do not apply to it.
    """
    local = Path(path)
    if is_saved_dataset(local):
        refuse(revision is not None, f'dataset_revision "{revision}" is for a hub dataset; "{path}" is a local folder')
        return DatasetsSource(load_folder(path, split))
    if _is_hub_id(path):
        return DatasetsSource(load_hub(path, split, revision))
    refuse(not local.exists(), f'no file or folder at dataset_path "{path}"')
    for flag, value, default in (("dataset_split", split, "train"), ("dataset_revision", revision, None)):
        refuse(value != default, f'{flag} "{value}" is for a `datasets` folder or a hub dataset; "{path}" is neither')
    return JsonlSource(local) if local.suffix in (".jsonl", ".ndjson") else ParquetSource(local)


def _is_hub_id(path: str) -> bool:
    """Whether `path` has the form of a hub id, and neither it nor its folder exists here."""
    local = Path(path)
    has_form = _HUB_ID.fullmatch(path) is not None and not path.endswith(_FILE_ENDINGS)
    return has_form and not local.exists() and not local.parent.exists()
