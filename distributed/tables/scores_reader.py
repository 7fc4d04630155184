"""Published parts of scores tables as selections and reports read them: footers first, then columns of row groups.

All reads verify the checksums of pages. What a part holds of the pool is told by its ledger; see `scores`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed.schema import SCORES, check_schema, with_captured_at
from distributed.storage.location import Location, read_again
from distributed.storage.threads import in_threads
from distributed.tables.parquet import hash_footer, hash_stored_footer, open_stream, read_footer, read_of
from model.errors import DamagedError, InputError

_FOOTERS_PER_THREAD = 256  # from a disk
_REMOTE_THREADS = 16  # a store answers late, and many at once


@dataclass(frozen=True, kw_only=True)
class ReadablePart:
    """A file of scores and its footer."""

    number: int  # among all parts that are read together
    location: Location
    footer: str  # its hash, as it is stored
    schema: pa.Schema
    has_captured_at: bool  # else an earlier version wrote it: the column reads as nulls
    group_rows: NDArray[np.int64]  # rows of each row group
    greatest: NDArray[np.float32]  # loss of each row group, as the footer states it; inf: unknown
    least: NDArray[np.float32]  # likewise; −inf: unknown

    @property
    def loss_bounds(self) -> NDArray[np.float32]:
        """Upper bound on the losses of each row group and all after it; safe even if one statistic is corrupt.

        Footers of older records have no hash, and a flipped bit in a statistic must not hide a row. In a sorted file
        the least loss of a row group bounds the next one's too: the higher of the two bounds counts.
        """
        bounds = np.maximum(self.greatest, np.concatenate([self.greatest[:1], self.least[:-1]]))
        return np.maximum.accumulate(bounds[::-1])[::-1]


def read_parts(tables: Sequence[tuple[Location, dict[str, Any]]]) -> list[ReadablePart]:
    """Reads the footers of the parts of some scores tables, numbered in their order.

    Args:
        tables: the location and the record (run.json) of each. Footers are compared with the record's hashes of them.

    Raises:
        InputError: a part is damaged, or lacks a column of a scores table.
        RunFailedError: the store failed.
    """
    files = [
        (location.join(*path.split("/")), footer)
        for location, record in tables
        for path, footer in zip(
            record["parts"], record.get("part_footers") or [None] * len(record["parts"]), strict=True
        )
    ]

    def read(numbered: tuple[int, tuple[Location, str | None]]) -> ReadablePart:
        number, (location, footer) = numbered
        return read_again(partial(_open_first, number=number, expected=footer), location)

    locations = [location for location, _ in files]
    # From a disk a footer comes at once: threads for few would only wait for each other.
    most = 1 + len(files) // _FOOTERS_PER_THREAD if _are_local(locations) else len(files)
    return in_threads(read, [*enumerate(files)], num_threads=min(most, num_threads(locations)))


def num_threads(locations: Sequence[Location]) -> int:
    """Number of threads to read some locations with: as many as CPUs from a disk, more from a store."""
    return min(len(locations), (os.cpu_count() or 1) if _are_local(locations) else _REMOTE_THREADS)


def _are_local(locations: Sequence[Location]) -> bool:
    return all(location.is_local for location in locations)


@contextmanager
def open_part(part: ReadablePart) -> Iterator[pq.ParquetFile]:
    """Opens a part for the block, to be read with `read_group`.

    Raises:
        InputError: the file is damaged, or has another footer than before.
        RunFailedError: the store failed.
    """
    with ExitStack() as opened:

        def open_again(location: Location) -> tuple[pa.NativeFile, bytes]:
            stream = opened.enter_context(open_stream(location))
            footer = read_footer(stream)
            if hash_stored_footer(footer) != part.footer:
                raise DamagedError(f"{location.uri}: expected the file as it was when the run began, found another")
            return stream, footer

        try:
            stream, footer = read_again(open_again, part.location)
        except DamagedError as error:
            raise InputError(str(error)) from error
        yield pq.ParquetFile(stream, metadata=_parse(footer), page_checksum_verification=True)


def read_group(
    reader: pq.ParquetFile, part: ReadablePart, group: int, columns: Sequence[str], *, end: int | None = None
) -> pa.Table:
    """Columns of the first `end` rows of a row group, or of all.

    Raises:
        InputError: the part is damaged, or has fewer rows there than its footer says.
    """
    wanted = int(part.group_rows[group]) if end is None else end
    stored = columns if part.has_captured_at else [name for name in columns if name != "captured_at"]
    rows = read_of(reader, part.location, partial(_first_rows, group=group, columns=stored, count=wanted))
    if len(rows) != wanted:  # a damaged footer may hide rows of a column chunk and read well
        raise InputError(
            f"{part.location.uri}: damaged: expected {wanted} rows of row group {group}, found {len(rows)}"
        )
    return rows if stored is columns else with_captured_at(rows).select(columns)


def _first_rows(reader: pq.ParquetFile, *, group: int, columns: Sequence[str], count: int) -> pa.Table:
    """The first `count` rows of a row group: pages after them are neither decompressed nor decoded."""
    if count == reader.metadata.row_group(group).num_rows:
        return reader.read_row_group(group, columns=list(columns), use_threads=False)
    batches, num_rows = [], 0
    for batch in reader.iter_batches(count, row_groups=[group], columns=list(columns), use_threads=False):
        batches.append(batch)
        num_rows += len(batch)
        if num_rows >= count:
            break
    return pa.Table.from_batches(batches).slice(0, count) if batches else pa.table({})


def _open_first(location: Location, *, number: int, expected: str | None) -> ReadablePart:
    with open_stream(location) as stream:
        stored = read_footer(stream)
        footer, found = _parse(stored), hash_stored_footer(stored)
        # First of all: of damaged statistics a few make Arrow end the process. By either hash: they may differ where
        # another version of Arrow has stored it.
        if expected not in (None, found) and expected != hash_footer(footer):
            raise DamagedError(f"{location.uri}: damaged: its footer is not the one that was published")
        schema = footer.schema.to_arrow_schema().remove_metadata()
        has_captured_at = "captured_at" in schema.names
        if not has_captured_at:
            schema = with_captured_at(schema.empty_table()).schema
        check_schema(plain_schema(schema), plain_schema(SCORES), where=location.uri)
        groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
        group_rows = np.array([group.num_rows for group in groups], np.int64)
        if footer.num_rows != group_rows.sum():
            raise DamagedError(f"{location.uri}: damaged: the footer's row count is not that of its row groups")
        paths = [footer.schema.column(index).path for index in range(footer.num_columns)]
        ranges = [_loss_range(group, paths.index("predicted_loss")) for group in groups]
        if any(low > high for low, high in ranges):
            raise DamagedError(f"{location.uri}: damaged: the footer names a least loss that is over the greatest")
        return ReadablePart(
            number=number,
            location=location,
            footer=found,
            schema=schema,
            has_captured_at=has_captured_at,
            group_rows=group_rows,
            greatest=np.array([high for _, high in ranges], np.float32),
            least=np.array([low for low, _ in ranges], np.float32),
        )


@lru_cache(maxsize=64)
def _parse(footer: bytes) -> pq.FileMetaData:
    """A stored footer's content. Each is asked for twice; of many parts it would be too much to keep, 500 KB each."""
    return pq.read_metadata(pa.BufferReader(footer))


def _loss_range(group: pq.RowGroupMetaData, column: int) -> tuple[float, float]:
    """Least and greatest loss as the footer states them; −inf and inf where it does not, or states NaN."""
    statistics = group.column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return -math.inf, math.inf
    low, high = statistics.min, statistics.max
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with the types of their values for dictionaries, which another writer may do without."""
    kinds = [column.type.value_type if pa.types.is_dictionary(column.type) else column.type for column in schema]
    return pa.schema([column.with_type(kind) for column, kind in zip(schema, kinds, strict=True)])
