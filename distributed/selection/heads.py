"""Reads of score files no more than decides a selection: row groups in the order of their best losses, heads first.

Files that are sorted by loss cost their heads. Others give the same answer and cost more. Knows nothing of Ray.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distributed.schema import SCORES
from distributed.selection.guards import Screen
from distributed.selection.parts import Part, check_unchanged, read_group, with_place
from distributed.selection.topk import TopK
from distributed.tables.parquet import open_table
from model.errors import InputError

# What is kept of a row: enough to order, to cap, to write a selection, and to find the row again.
CANDIDATES = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("group", pa.string()),
        pa.field("predicted_loss", pa.float32()),
        pa.field("expected_pck", pa.float32()),
        pa.field("pool_file", pa.string()),
        pa.field("pool_row", pa.int64()),
        pa.field("part", pa.int32()),  # its number
        pa.field("part_row", pa.int64()),
    ]
)
STORED = [name for name in CANDIDATES.names if name in SCORES.names]


def collect(parts: Sequence[Part], top: TopK, *, screen: Screen, num_threads: int) -> int:
    """Pushes all rows of the parts that pass the screen and can enter; returns how many row groups it read of.

    A thread keeps a part while its next row group is the most promising of all. One column decides on a row group
    first; where no row of it can enter, the others are not read. The first row group of a part is always looked at.

    Raises:
        InputError: a part is damaged, or its statistics are wrong.
        RunFailedError: the store failed.
    """
    walk = _Walk([part for part in parts if len(part.group_rows)], top, screen)
    top.push(CANDIDATES.empty_table())
    if num_threads <= 1:
        walk.run()
        return walk.num_read
    with ThreadPoolExecutor(num_threads, thread_name_prefix="heads") as threads:
        try:
            for future in [threads.submit(walk.run) for _ in range(num_threads)]:
                future.result()
        except BaseException:
            walk.stop()
            raise
    return walk.num_read


class _Walk:
    """The row groups of some parts by what they promise, for several threads; each part is with one at a time."""

    def __init__(self, parts: Sequence[Part], top: TopK, screen: Screen) -> None:
        self._parts = parts
        self._top = top
        self._screen = screen
        self._lock = threading.Lock()
        self._is_stopped = False
        self.num_read = 0
        # In a draw a row group promises nothing: all are read, in their order.
        bounds = [part.nearest if top.is_by_loss else np.zeros(len(part.group_rows), np.uint64) for part in parts]
        self._order = [np.argsort(bound, kind="stable") for bound in bounds]
        self._bounds = [bound[order] for bound, order in zip(bounds, self._order, strict=True)]
        self._queue = [(bound[0], index, 0) for index, bound in enumerate(self._bounds)]
        heapq.heapify(self._queue)

    def stop(self) -> None:
        """Lets every thread finish its row group and begin no other."""
        self._is_stopped = True

    def run(self) -> None:
        """Reads until nothing is left that can enter."""
        try:
            while (place := self._take()) is not None:
                self._visit(*place)
        except BaseException:
            self.stop()
            raise

    def _take(self) -> tuple[int, int] | None:
        """Part and place in its order, of what promises most."""
        with self._lock:
            while self._queue and not self._is_stopped:
                _, index, place = heapq.heappop(self._queue)
                if self._can_enter(index, place):
                    return index, place
        return None

    def _can_enter(self, index: int, place: int) -> bool:
        bound = self._bounds[index][place : place + 1]
        return place == 0 or bool(self._top.may_enter(bound)[0] and not self._is_under_bound(bound))

    def _is_under_bound(self, bound: NDArray[Any]) -> bool:
        return self._top.is_by_loss and bool(-bound[0] < self._screen.min_loss)

    def _visit(self, index: int, place: int) -> None:
        part, order, bounds = self._parts[index], self._order[index], self._bounds[index]
        with open_table(part.location) as reader:
            check_unchanged(reader, part)
            while True:
                self._read(reader, part, int(order[place]))
                place += 1
                if place == len(order) or not self._can_enter(index, place):
                    return
                with self._lock:
                    if self._is_stopped or (self._queue and self._queue[0][0] < bounds[place]):
                        heapq.heappush(self._queue, (bounds[place], index, place))
                        return

    def _read(self, reader: pq.ParquetFile, part: Part, group: int) -> None:
        first = read_group(reader, part, group, self._top.first_columns)
        penalty = self._top.penalty(first)
        is_wanted = self._top.may_enter(penalty)
        if self._top.is_by_loss:
            if (penalty < part.penalties[group]).any():
                raise InputError(
                    f"{part.location.uri}: damaged: a loss is greater than the footer says of row group {group}"
                )
            is_wanted &= self._screen.passes_loss(-penalty)
        if not is_wanted.any():
            return
        chosen = np.flatnonzero(is_wanted)
        end = int(chosen[-1]) + 1  # in a sorted part not far from the start
        names = dict.fromkeys([*STORED, *self._screen.columns])
        others = read_group(reader, part, group, [name for name in names if name not in first.column_names], end=end)
        rows = others if len(chosen) == end else others.take(pa.array(chosen))
        for name in first.column_names:
            rows = rows.append_column(name, first[name].take(pa.array(chosen)))
        start = int(part.group_rows[:group].sum())
        rows = self._screen.keep(with_place(rows, part, start + chosen))
        with self._lock:
            self.num_read += 1
            self._top.push(rows.select(CANDIDATES.names).cast(CANDIDATES))
