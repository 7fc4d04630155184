"""Files of scores as selection reads them: footers first, then columns of row groups, checksums verified."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed.schema import SCORES, check_schema
from distributed.selection.guards import Screen
from distributed.storage.location import Location, read_again
from distributed.tables.parquet import hash_footer, open_table, read_of
from model.errors import DamagedError, InputError

_REMOTE_THREADS = 16  # a store answers late, and many at once

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of scores and what its footer says."""

    number: int  # among all parts
    location: Location
    schema: pa.Schema
    group_rows: NDArray[np.int64]
    penalties: NDArray[np.float32]  # of each row group: minus its greatest loss, as stated; −inf: unknown
    least: NDArray[np.float32]  # minus its least loss; inf: unknown

    @property
    def nearest(self) -> NDArray[np.float32]:
        """What nothing in a row group comes before, even if one of the statistics is wrong.

        Pages have checksums, footers have not, and a bit that flips in a statistic must not hide a row. In a sorted
        file the least loss of a row group bounds the next one's: so the bound is whichever of the two promises less.
        """
        return np.minimum(self.penalties, np.concatenate([self.penalties[:1], self.least[:-1]]))


def read_footers(locations: Sequence[Location], *, footers: Sequence[str] = ()) -> list[Part]:
    """The parts at some locations, numbered in their order.

    Args:
        locations: of the files.
        footers: what the hashes of their footers must be, if it is known.

    Raises:
        InputError: one is damaged, or lacks a column of a scores table.
        RunFailedError: the store failed.
    """
    expected: Sequence[str | None] = footers or [None] * len(locations)
    reads = [
        partial(read_again, partial(_read_footer, number=number, expected=footer), location)
        for number, (location, footer) in enumerate(zip(locations, expected, strict=True))
    ]
    return in_threads(lambda read: read(), reads, num_threads=num_threads(locations))


def num_threads(locations: Sequence[Location]) -> int:
    """How many threads read from some locations: as many as CPUs from a disk, more from a store."""
    is_local = all(location.is_local for location in locations)
    return min(len(locations), (os.cpu_count() or 1) if is_local else _REMOTE_THREADS)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int) -> list[Result]:
    """The function's results for all items, in order; after an error no further item is begun."""
    if num_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="parts") as threads:
        futures = [threads.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def with_place(rows: pa.Table, part: Part, part_rows: NDArray[np.int64]) -> pa.Table:
    """The rows with the columns `part` and `part_row`: whose rows they are, and which."""
    rows = rows.append_column("part", pa.array(np.full(len(rows), part.number, np.int32)))
    return rows.append_column("part_row", pa.array(part_rows))


def scan(
    part: Part, *, screen: Screen, columns: Sequence[str], groups: Collection[int] | None = None
) -> Iterator[pa.Table]:
    """The rows of a part that pass the screen, a row group at a time: these columns, and `part`, `part_row`.

    Args:
        part: which.
        screen: what must hold of a row.
        columns: which.
        groups: numbers of the row groups; None: all.

    Raises:
        InputError: the part is damaged.
        RunFailedError: the store failed.
    """
    names = list(dict.fromkeys([*columns, *screen.columns]))
    with open_table(part.location) as reader:
        check_unchanged(reader, part)
        start = 0
        for group, num_rows in enumerate(part.group_rows.tolist()):
            if groups is None or group in groups:
                rows = with_place(read_group(reader, part, group, names), part, np.arange(start, start + num_rows))
                yield screen.keep(rows).select([*columns, "part", "part_row"])
            start += num_rows


def fetch(parts: Sequence[Part], rows: pa.Table, *, columns: Sequence[str], num_threads: int) -> pa.Table:
    """Further columns of some candidates, in their order; of each part the row groups that they are in are read.

    Args:
        parts: all parts, by number.
        rows: with `part` and `part_row`.
        columns: which.
        num_threads: that read.
    """
    numbers, part_rows = rows["part"].to_numpy(), rows["part_row"].to_numpy()
    order = np.lexsort((part_rows, numbers))
    owners, starts = np.unique(numbers[order], return_index=True)
    wanted = zip(owners, np.split(part_rows[order], starts[1:]), strict=True) if len(order) else ()
    read = [partial(_fetch_of, parts[number], own, columns) for number, own in wanted]
    found = in_threads(lambda call: call(), read, num_threads=num_threads)
    if not found:
        return pa.schema([parts[0].schema.field(name) for name in columns]).empty_table()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return pa.concat_tables(found).combine_chunks().take(pa.array(place))


def _fetch_of(part: Part, part_rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """The rows of these ascending numbers."""
    ends = np.cumsum(part.group_rows)
    groups = np.searchsorted(ends, part_rows, side="right")
    tables = []
    with open_table(part.location) as reader:
        check_unchanged(reader, part)
        for group in np.unique(groups).tolist():
            own = part_rows[groups == group] - (ends[group] - part.group_rows[group])
            tables.append(read_group(reader, part, group, columns).take(pa.array(own)))
    return pa.concat_tables(tables)


def read_group(
    reader: pq.ParquetFile, part: Part, group: int, columns: Sequence[str], *, end: int | None = None
) -> pa.Table:
    """Columns of the first rows of a row group, or of all; the checksums of their pages are verified.

    Raises:
        InputError: there are not as many rows as the footer says.
    """
    wanted = int(part.group_rows[group]) if end is None else end
    rows = read_of(reader, part.location, partial(_first_rows, group=group, columns=columns, count=wanted))
    if len(rows) != wanted:  # a damaged footer may hide rows of a column chunk and read well
        raise InputError(
            f"{part.location.uri}: damaged: expected {wanted} rows of row group {group}, found {len(rows)}"
        )
    return rows


def _first_rows(reader: pq.ParquetFile, *, group: int, columns: Sequence[str], count: int) -> pa.Table:
    """At most so many rows: pages after them are neither decompressed nor decoded."""
    if count == reader.metadata.row_group(group).num_rows:
        return reader.read_row_group(group, columns=list(columns), use_threads=False)
    batches, num_rows = [], 0
    for batch in reader.iter_batches(count, row_groups=[group], columns=list(columns), use_threads=False):
        batches.append(batch)
        num_rows += len(batch)
        if num_rows >= count:
            break
    return pa.Table.from_batches(batches).slice(0, count) if batches else pa.table({})


def check_unchanged(reader: pq.ParquetFile, part: Part) -> None:
    """Passes if the footer has the row groups that it had.

    Raises:
        InputError: it has others.
    """
    footer = reader.metadata
    found = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    if found != part.group_rows.tolist():
        raise InputError(f"{part.location.uri}: expected the file as it was when the run began, found another")


def _read_footer(location: Location, *, number: int, expected: str | None) -> Part:
    with open_table(location) as reader:
        # First of all: of damaged statistics a few make Arrow end the process.
        if expected is not None and hash_footer(reader.metadata) != expected:
            raise DamagedError(f"{location.uri}: damaged: its footer is not the one that was published")
        schema, footer = reader.schema_arrow.remove_metadata(), reader.metadata
        check_schema(plain_schema(schema), plain_schema(SCORES), where=location.uri)
        groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
        group_rows = np.array([group.num_rows for group in groups], np.int64)
        if footer.num_rows != group_rows.sum():
            raise DamagedError(f"{location.uri}: damaged: the footer's row count is not that of its row groups")
        paths = [reader.schema.column(index).path for index in range(len(reader.schema))]
        ranges = [_range(group, paths.index("predicted_loss")) for group in groups]
        if any(low > high for low, high in ranges):
            raise DamagedError(f"{location.uri}: damaged: the footer names a least loss that is over the greatest")
        return Part(
            number=number,
            location=location,
            schema=schema,
            group_rows=group_rows,
            penalties=np.array([-high for _, high in ranges], np.float32),
            least=np.array([-low for low, _ in ranges], np.float32),
        )


def _range(group: pq.RowGroupMetaData, column: int) -> tuple[float, float]:
    """Least and greatest loss as the footer states them; −inf and inf, where it does not or they are no numbers."""
    statistics = group.column(column).statistics
    if statistics is None or not statistics.has_min_max:
        return -math.inf, math.inf
    low, high = statistics.min, statistics.max
    return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with the values' types for dictionaries, which another writer may do without."""
    kinds = [column.type.value_type if pa.types.is_dictionary(column.type) else column.type for column in schema]
    return pa.schema([column.with_type(kind) for column, kind in zip(schema, kinds, strict=True)])
