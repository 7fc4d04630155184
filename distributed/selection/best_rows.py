"""Reading of the best rows of score files: no more of each file than decides a selection.

Files are read from their first row group on, that of the best losses first, until nothing can enter the top k. All of
ours are sorted by loss: only their first rows are read. Others would be read to the end, and give the same answer.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed.schema import SCORES
from distributed.selection.filters import RowFilter
from distributed.selection.topk import FIRST_ROWS_FACTOR, TopK
from distributed.storage.threads import in_threads
from distributed.tables.scores_reader import ReadablePart, open_part, read_group
from model.errors import InputError

# What is kept of a row: enough to order, to cap, to write a selection, and to find the row again.
CANDIDATES = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("group", pa.string()),
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
        pa.field("predicted_loss", pa.float32()),
        pa.field("expected_pck", pa.float32()),
        pa.field("pool_file", pa.string()),
        pa.field("pool_row", pa.int64()),
        pa.field("part", pa.int32()),  # its number
        pa.field("part_row", pa.int64()),
    ]
)
STORED = [name for name in CANDIDATES.names if name in SCORES.names]


class _Place(NamedTuple):
    """A row of a part, by its row group."""

    group: int
    row: int


_START = _Place(0, 0)
_FEWEST_ROWS = 1024  # that are read at a time: a page has no fewer


def push_best_rows(parts: Sequence[ReadablePart], top: TopK, *, row_filter: RowFilter, num_threads: int) -> None:
    """Pushes all rows of the parts that pass the filter and can enter.

    A thread keeps a part while its next rows are the most promising of all. One column decides on a row group first;
    where no row of it can enter, the others are not read. The first row group of a part is always looked at. Of a
    sorted one a few rows are read at first, so that the best of other parts soon rule out the rest.

    Raises:
        InputError: a part is damaged, or its statistics are wrong.
        RunFailedError: the store failed.
    """
    queue = _RowGroups([part for part in parts if len(part.group_rows)], top, row_filter)
    top.push(CANDIDATES.empty_table())
    with ThreadPoolExecutor(max(1, num_threads), thread_name_prefix="best-rows") as threads:
        try:
            for future in [threads.submit(queue.read_all) for _ in range(max(1, num_threads))]:
                future.result()
        finally:
            queue.is_stopped = True


class _RowGroups:
    """The row groups of some parts by what they promise, for several threads; each part is with one at a time."""

    def __init__(self, parts: Sequence[ReadablePart], top: TopK, row_filter: RowFilter) -> None:
        self._parts = parts
        self._top = top
        self._filter = row_filter
        self._lock = threading.Lock()
        self.is_stopped = False  # every thread finishes its row group and begins no other
        self._num_first = max(_FEWEST_ROWS, FIRST_ROWS_FACTOR * top.k // max(1, len(parts)))
        # In a draw a row group promises nothing: all are read, in their order.
        self._bounds = [
            -part.loss_bounds if top.is_by_loss else np.zeros(len(part.group_rows), np.uint64) for part in parts
        ]
        self._queue = [(bounds[0], index, _START) for index, bounds in enumerate(self._bounds)]
        heapq.heapify(self._queue)

    def read_all(self) -> None:
        """Reads until nothing is left that can enter, or another thread failed."""
        try:
            while (found := self._take()) is not None:
                self._read_part(*found)
        except BaseException:
            self.is_stopped = True
            raise

    def _take(self) -> tuple[int, _Place] | None:
        """Number of the part that promises most, and the place in it from which on it does."""
        with self._lock:
            while self._queue and not self.is_stopped:
                bound, index, place = heapq.heappop(self._queue)
                if place == _START or self._can_enter(bound):
                    return index, place
        return None

    def _can_enter(self, bound: Any) -> bool:
        if self._top.is_by_loss and -bound < self._filter.min_loss:
            return False
        return bool(self._top.may_enter(np.array([bound]))[0])

    def _read_part(self, index: int, place: _Place) -> None:
        """Reads on from a place, while the next one promises more than other parts do."""
        part = self._parts[index]
        with open_part(part) as reader:
            while True:
                rest = self._read(reader, part, place)
                left = [rest] if rest else []
                if place.group + 1 < len(part.group_rows):
                    left.append((self._bounds[index][place.group + 1], _Place(place.group + 1, 0)))
                if not left:
                    return
                # Of a part that is not sorted, the next row group may promise more than the rest of this one.
                bound, place = min(bound for bound, _ in left), left[0][1]
                if not self._can_enter(bound):
                    return
                with self._lock:
                    if self.is_stopped or (self._queue and self._queue[0][0] < bound):
                        heapq.heappush(self._queue, (bound, index, place))
                        return

    def _read(self, reader: pq.ParquetFile, part: ReadablePart, place: _Place) -> tuple[Any, _Place] | None:
        """Pushes rows of a row group; gives the bound and the place of those that are left for later, if any are."""
        group = place.group
        first = read_group(reader, part, group, self._top.first_columns)
        penalty = self._top.penalty(first)
        is_wanted = self._top.may_enter(penalty)
        if self._top.is_by_loss:
            if (-penalty > part.greatest[group]).any():
                raise InputError(
                    f"{part.location.uri}: damaged: a loss is greater than the footer says of row group {group}"
                )
            is_wanted &= self._filter.passes_loss(-penalty)
        chosen = np.flatnonzero(is_wanted)
        chosen = chosen[np.searchsorted(chosen, place.row) :]
        if not len(chosen):
            return None
        rest = None
        num_first = max(self._num_first, place.row)  # twice as many each time: what was read before is read again
        if num_first < len(chosen) and (np.diff(penalty[chosen]) >= 0).all():
            row = int(chosen[num_first])
            chosen, rest = chosen[:num_first], (penalty[row], _Place(group, row))
        end = int(chosen[-1]) + 1  # in a sorted part not far from the start
        names = dict.fromkeys([*STORED, *self._filter.columns])
        rows = read_group(reader, part, group, list(names), end=end)
        if len(chosen) < end:
            rows = rows.take(pa.array(chosen))
        start = int(part.group_rows[:group].sum())
        rows = self._filter.keep(_with_place(rows, part, start + chosen))
        with self._lock:
            self._top.push(rows.select(CANDIDATES.names).cast(CANDIDATES))
        return rest


def scan_part(
    part: ReadablePart, *, row_filter: RowFilter, columns: Sequence[str], groups: Collection[int] | None = None
) -> Iterator[pa.Table]:
    """The rows of a part that pass the filter, a row group at a time: these columns, and `part`, `part_row`.

    Args:
        part: the file.
        row_filter: conditions that a row must meet.
        columns: their names.
        groups: numbers of the row groups to read; None: all.

    Raises:
        InputError: the part is damaged.
        RunFailedError: the store failed.
    """
    names = list(dict.fromkeys([*columns, *row_filter.columns]))
    with open_part(part) as reader:
        start = 0
        for group, num_rows in enumerate(part.group_rows.tolist()):
            if groups is None or group in groups:
                rows = _with_place(read_group(reader, part, group, names), part, np.arange(start, start + num_rows))
                yield row_filter.keep(rows).select([*columns, "part", "part_row"])
            start += num_rows


def fetch_columns(
    parts: Sequence[ReadablePart], rows: pa.Table, *, columns: Sequence[str], num_threads: int
) -> pa.Table:
    """Further columns of some rows, in their order; only row groups that hold one of them are read.

    Args:
        parts: all parts, by number.
        rows: with `part` and `part_row`.
        columns: their names.
        num_threads: number of threads that read.
    """
    if not len(rows):
        return pa.schema([parts[0].schema.field(name) for name in columns]).empty_table()
    numbers, part_rows = rows["part"].to_numpy(), rows["part_row"].to_numpy()
    order = np.lexsort((part_rows, numbers))
    owners, starts = np.unique(numbers[order], return_index=True)
    reads = [
        partial(_fetch_of, parts[number], own, columns)
        for number, own in zip(owners, np.split(part_rows[order], starts[1:]), strict=True)
    ]
    found = in_threads(lambda read: read(), reads, num_threads=num_threads)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return pa.concat_tables(found).combine_chunks().take(pa.array(place))


def _fetch_of(part: ReadablePart, part_rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """The rows of these ascending numbers."""
    ends = np.cumsum(part.group_rows)
    groups = np.searchsorted(ends, part_rows, side="right")
    tables = []
    with open_part(part) as reader:
        for group in np.unique(groups).tolist():
            own = part_rows[groups == group] - (ends[group] - part.group_rows[group])
            tables.append(read_group(reader, part, group, columns).take(pa.array(own)))
    return pa.concat_tables(tables)


def _with_place(rows: pa.Table, part: ReadablePart, part_rows: NDArray[Any]) -> pa.Table:
    """The rows with the columns `part` and `part_row`, by which they are found again."""
    rows = rows.append_column("part", pa.array(np.full(len(rows), part.number, np.int32)))
    return rows.append_column("part_row", pa.array(part_rows))
