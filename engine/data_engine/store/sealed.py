"""Parquet files that carry facts about themselves, and a checksum of all their bytes, in their footer."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Key of a file's metadata that holds the sha256 of the file, taken with BLANK in its place.
SEAL, BLANK = "data_engine_sha256", b"0" * 64
# Keys of the facts, which are JSON, and of their own sha256: whoever reads the footer alone relies on it.
FACTS, FACTS_SEAL = "data_engine_facts", "data_engine_facts_sha256"


@dataclass(frozen=True)
class Sealed:
    """What a sealed file holds. The seal names the content: two files with the same seal are the same."""

    table: pa.Table
    facts: dict = field(default_factory=dict)
    seal: str = ""


def write_sealed(table: pa.Table, path: Path, facts: dict | None = None) -> None:
    """Write a parquet file with its facts and its own checksum; the same input gives the same bytes."""
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        told = json.dumps(facts or {}, sort_keys=True)
        writer.add_key_value_metadata({FACTS: told, FACTS_SEAL: _sha256(told.encode()), SEAL: BLANK.decode()})
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(content.rindex(BLANK))
        file.write(hashlib.sha256(content).hexdigest().encode())


def read_sealed(path: Path) -> Sealed:
    """A file by write_sealed. Raises ValueError where a byte of it has changed since."""
    content = path.read_bytes()
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        facts, seal = _parsed(file.metadata)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole unit: {error}") from None
    if hashlib.sha256(content.replace(seal.encode(), BLANK)).hexdigest() != seal:
        raise ValueError(f"{path} has changed since it was published: its checksum does not fit")
    return Sealed(file.read().replace_schema_metadata(None), facts, seal)


def read_facts(path: Path) -> tuple[dict, str]:
    """Facts and seal of a file by write_sealed, from its footer alone: of its bytes, those of the facts are checked.

    Raises ValueError where it is no such file.
    """
    try:
        return _parsed(pq.read_metadata(path))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no whole unit: {error}") from None


def _parsed(footer: pq.FileMetaData) -> tuple[dict, str]:
    told, seal, facts_seal = (footer.metadata[name.encode()] for name in (FACTS, SEAL, FACTS_SEAL))
    if _sha256(told) != facts_seal.decode():
        raise ValueError("its facts have changed")
    return json.loads(told), seal.decode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
