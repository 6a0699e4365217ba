"""Record batches in; parquet files of bounded size out, in row groups that a reader can hold."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 100
ROW_GROUP_BYTES = 64 * 2**20
FILE_BYTES = 500 * 10**6


def write_files(folder: Path, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write folder/NAME.parquet, or several numbered files of about 500 MB; without a batch, a file of 0 rows."""
    parts, writer, part_bytes = [], None, 0
    for group in itertools.chain([schema.empty_table()], row_groups(batches, schema)):
        if writer is None or (part_bytes and part_bytes + group.nbytes > FILE_BYTES):
            if writer is not None:
                writer.close()
            parts.append(folder / f"part-{len(parts)}")
            # Images hardly repeat within a row group: a dictionary would only cost memory.
            writer, part_bytes = pq.ParquetWriter(parts[-1], schema, use_dictionary=False, write_page_index=True), 0
        if len(group):
            writer.write_table(group)
        part_bytes += group.nbytes
    writer.close()
    for number, part in enumerate(parts):
        several = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
        part.rename(folder / f"{name}{several}.parquet")


def row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Tables of 100 rows, or of fewer heavy ones: readers hold a row group at a time.

    A table keeps the batches as its chunks: combining them would copy rows that are memory-mapped.
    """
    group, group_bytes = [], 0
    for batch in batches:
        if group and (len(group) == ROW_GROUP_ROWS or group_bytes + batch.nbytes > ROW_GROUP_BYTES):
            yield pa.Table.from_batches(group, schema)
            group, group_bytes = [], 0
        group.append(batch)
        group_bytes += batch.nbytes
    if group:
        yield pa.Table.from_batches(group, schema)
