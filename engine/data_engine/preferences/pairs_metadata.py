"""What a file of pairs says of its pairing: the entries of its metadata, each of them JSON."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from data_engine.of_pairing import OWN, pairs_file
from data_engine.preferences.funnel import Funnel


def metadata_of(path: Path, *names: str) -> dict:
    """The entries of these names, as far as the file has them: one of an earlier version has fewer."""
    found = pq.read_schema(path).metadata or {}
    return {name: json.loads(found[name.encode()]) for name in names if name.encode() in found}


def read_funnel(work_dir: Path, name: str = OWN) -> Funnel:
    """The funnel of a pairing that is written."""
    return Funnel.from_json(pq.read_schema(pairs_file(work_dir, name)).metadata[b"funnel"].decode())
