"""Reading of the best rows of score files: no more of each file than decides a selection.

Row groups are read in the order of their best losses, until none can enter the top k. Of files that are sorted by loss
only the first row groups are read; others give the same answer and cost more.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed.schema import SCORES
from distributed.selection.filters import RowFilter
from distributed.selection.topk import TopK
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


def push_best_rows(parts: Sequence[ReadablePart], top: TopK, *, row_filter: RowFilter, num_threads: int) -> None:
    """Pushes all rows of the parts that pass the filter and can enter.

    A thread keeps a part while its next row group is the most promising of all. One column decides on a row group
    first; where no row of it can enter, the others are not read. The first row group of a part is always looked at.

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
        # In a draw a row group promises nothing: all are read, in their order.
        bounds = [-part.loss_bounds if top.is_by_loss else np.zeros(len(part.group_rows), np.uint64) for part in parts]
        self._order = [np.argsort(bound, kind="stable") for bound in bounds]
        self._bounds = [bound[order] for bound, order in zip(bounds, self._order, strict=True)]
        self._queue = [(bound[0], index, 0) for index, bound in enumerate(self._bounds)]
        heapq.heapify(self._queue)

    def read_all(self) -> None:
        """Reads until nothing is left that can enter, or another thread failed."""
        try:
            while (next_place := self._take()) is not None:
                self._read_part(*next_place)
        except BaseException:
            self.is_stopped = True
            raise

    def _take(self) -> tuple[int, int] | None:
        """Part and place in its order, of the row group that promises most."""
        with self._lock:
            while self._queue and not self.is_stopped:
                _, index, place = heapq.heappop(self._queue)
                if self._can_enter(index, place):
                    return index, place
        return None

    def _can_enter(self, index: int, place: int) -> bool:
        if place == 0:
            return True
        bound = self._bounds[index][place : place + 1]
        if self._top.is_by_loss and -bound[0] < self._filter.min_loss:
            return False
        return bool(self._top.may_enter(bound)[0])

    def _read_part(self, index: int, place: int) -> None:
        """Reads on from a row group, while the next one promises more than other parts do."""
        part, order, bounds = self._parts[index], self._order[index], self._bounds[index]
        with open_part(part) as reader:
            while True:
                self._read(reader, part, int(order[place]))
                place += 1
                if place == len(order) or not self._can_enter(index, place):
                    return
                with self._lock:
                    if self.is_stopped or (self._queue and self._queue[0][0] < bounds[place]):
                        heapq.heappush(self._queue, (bounds[place], index, place))
                        return

    def _read(self, reader: pq.ParquetFile, part: ReadablePart, group: int) -> None:
        first = read_group(reader, part, group, self._top.first_columns)
        penalty = self._top.penalty(first)
        is_wanted = self._top.may_enter(penalty)
        if self._top.is_by_loss:
            if (-penalty > part.greatest[group]).any():
                raise InputError(
                    f"{part.location.uri}: damaged: a loss is greater than the footer says of row group {group}"
                )
            is_wanted &= self._filter.passes_loss(-penalty)
        if not is_wanted.any():
            return
        chosen = np.flatnonzero(is_wanted)
        end = int(chosen[-1]) + 1  # in a sorted part not far from the start
        names = dict.fromkeys([*STORED, *self._filter.columns])
        others = read_group(reader, part, group, [name for name in names if name not in first.column_names], end=end)
        rows = others if len(chosen) == end else others.take(pa.array(chosen))
        for name in first.column_names:
            rows = rows.append_column(name, first[name].take(pa.array(chosen)))
        start = int(part.group_rows[:group].sum())
        rows = self._filter.keep(_with_place(rows, part, start + chosen))
        with self._lock:
            self._top.push(rows.select(CANDIDATES.names).cast(CANDIDATES))


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
