"""Writing pool and labelled tables so that they keep the contract: row-group sizes, page checksums, unique ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distributed.storage import Location, open_atomic
from model.errors import InputError

ROW_GROUP_BYTES = 64 * 2**20  # of images: the unit that is read at once
FILE_BYTES = 1 * 2**30
_ROW_GROUP_ROWS = 100_000  # tiny images: a row group stays readable in one go

Row = dict[str, Any]


def write_rows(out: Location, rows: Iterable[Row], schema: pa.Schema, *, row_group_bytes: int = ROW_GROUP_BYTES) -> int:
    """Writes rows as Parquet files below a location and returns how many.

    Raises:
        InputError: a sample_id occurs twice, or there is no row.
    """
    return write_groups(out, _row_groups(rows, schema, row_group_bytes=row_group_bytes), schema)


def write_groups(out: Location, groups: Iterable[pa.Table], schema: pa.Schema, *, file_bytes: int = FILE_BYTES) -> int:
    """Writes each table as one row group, in files of about `file_bytes`; returns the number of rows.

    Raises:
        InputError: there is no row.
    """
    waiting = iter(groups)
    group = next(waiting, None)
    num_rows = num_files = 0
    while group is not None:
        written = 0
        with (
            open_atomic(out.join(f"part-{num_files:05d}.parquet")) as stream,
            pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            while group is not None and written < file_bytes:
                writer.write_table(group, row_group_size=len(group))
                written += group.nbytes
                num_rows += len(group)
                group = next(waiting, None)
        num_files += 1
    if not num_rows:
        raise InputError(f"{out.uri}: expected at least one row to write, found none")
    return num_rows


def _row_groups(rows: Iterable[Row], schema: pa.Schema, *, row_group_bytes: int) -> Iterator[pa.Table]:
    seen: set[str] = set()
    group: list[Row] = []
    size = 0
    for row in rows:
        if row["sample_id"] in seen:
            raise InputError(f"column 'sample_id': expected unique values, found {row['sample_id']!r} twice")
        seen.add(row["sample_id"])
        if group and (size + len(row["image"]) > row_group_bytes or len(group) >= _ROW_GROUP_ROWS):
            yield pa.Table.from_pylist(group, schema)
            group, size = [], 0
        group.append(row)
        size += len(row["image"])
    if group:
        yield pa.Table.from_pylist(group, schema)
