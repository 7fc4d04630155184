"""The rows that a selection chooses from, as its strategies ask for them: read here, or by tasks on a cluster.

Each task reads some of the parts with a threshold of its own; what comes back is merged as a tree, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import pyarrow as pa

from distributed.selection.exclusion import IdSet, read_ids
from distributed.selection.guards import Guard, Screen
from distributed.selection.heads import CANDIDATES, collect
from distributed.selection.parts import Part, fetch, in_threads, num_threads, scan
from distributed.selection.topk import TopK, merge_top_k, random_k

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """What a task is asked for; one class, since both questions may be put to a cluster."""

    guard: Guard
    num_threads: int = 1
    k: int = 0
    max_per_group: int | None = None
    seed: int | None = None  # None: the best, else a draw
    taken: pa.ChunkedArray | None = None  # groups of rows that were selected before


class Candidates:
    """All scored rows of some parts that pass a guard.

    Args:
        parts: files of one or more scores tables, numbered from 0.
        guard: what must hold of a row.
        num_scored: rows of the parts that have a score.
        workers: how many tasks read, on the cluster that is connected; 0: threads of this process do.
    """

    def __init__(self, parts: Sequence[Part], guard: Guard, *, num_scored: int, workers: int = 0) -> None:
        self._parts = parts
        self._guard = guard
        self._num_scored = num_scored
        self._num_tasks = min(workers, len(parts))
        self._num_threads = num_threads([part.location for part in parts])

    def best(self, *, k: int, max_per_group: int | None = None) -> pa.Table:
        """The first `k` rows in selection order (`heads.CANDIDATES`); see `top_k`."""
        return self._rows(_Ask(guard=self._guard, k=k, max_per_group=max_per_group))

    def draw(self, *, k: int, seed: int, max_per_group: int | None = None) -> pa.Table:
        """A uniform draw, in its order; see `random_k`."""
        return self._rows(_Ask(guard=self._guard, k=k, max_per_group=max_per_group, seed=seed))

    def draw_besides(self, taken: pa.Table, *, k: int, seed: int, max_per_group: int | None = None) -> pa.Table:
        """A uniform draw from the rows that were not taken, whatever their loss; those taken count against the cap."""
        guard = replace(self._guard, min_loss=None, max_loss=None, taken=taken["sample_id"])
        ask = _Ask(guard=guard, k=k, max_per_group=max_per_group, seed=seed, taken=taken["group"])
        return self._rows(ask)

    def count(self) -> int:
        """How many rows there are, one of each table that a sample is in.

        Costs nothing where the guard lets all pass; else the columns that decide are read in full.
        """
        if self._guard == Guard():
            return self._num_scored
        return sum(self._run(_count, _Ask(guard=self._guard)))

    def tables(self, *, columns: Sequence[str]) -> list[pa.Table]:
        """All rows with these columns, `part` and `part_row`: a table for each part that has any. All are in memory."""
        return self._scan(_screen(_Ask(guard=self._guard), self._parts, self._excluded), columns)

    def excluded(self, *, columns: Sequence[str]) -> pa.Table:
        """The rows of these parts that the guard's tables exclude, with these columns."""
        screen = _screen(_Ask(guard=Guard()), self._parts, IdSet([]))
        if not len(self._excluded):
            return pa.schema([self._parts[0].schema.field(name) for name in columns]).empty_table()
        found = [
            table.filter(pa.array(self._excluded.contains(table["sample_id"])))
            for table in self._scan(screen, [*columns, "sample_id"])
        ]
        return pa.concat_tables(found).select(columns)

    def _scan(self, screen: Screen, columns: Sequence[str]) -> list[pa.Table]:
        def read(part: Part) -> pa.Table:
            return pa.concat_tables(scan(part, screen=screen, columns=columns))

        with_groups = [part for part in self._parts if len(part.group_rows)]
        return [table for table in in_threads(read, with_groups, num_threads=self._num_threads) if len(table)]

    def fetch(self, rows: pa.Table, *, columns: Sequence[str]) -> pa.Table:
        """Further columns of some candidates, in their order."""
        return fetch(self._parts, rows, columns=columns, num_threads=self._num_threads)

    def _rows(self, ask: _Ask) -> pa.Table:
        lists = self._run(_collect, ask) if ask.k else [CANDIDATES.empty_table()]
        while len(lists) > 1:
            lists = [_merge(lists[start : start + 2], ask) for start in range(0, len(lists), 2)]
        return lists[0]

    def _run(self, function: Callable[[_Ask, Sequence[Part], IdSet | None], Result], ask: _Ask) -> list[Result]:
        """The function's results for shares of the parts; for all at once in this process."""
        if not self._num_tasks:
            return [function(replace(ask, num_threads=self._num_threads), self._parts, self._excluded)]
        from distributed.cluster import run_tasks

        def call(item: tuple[_Ask, Sequence[Part]]) -> Result:
            return function(*item, None)

        return run_tasks(call, [(ask, self._parts[start :: self._num_tasks]) for start in range(self._num_tasks)])

    @cached_property
    def _excluded(self) -> IdSet:
        return read_ids(self._guard.excluded)


def _collect(ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> pa.Table:
    top = TopK(k=ask.k, max_per_group=ask.max_per_group, seed=ask.seed, taken=ask.taken)
    collect(parts, top, screen=_screen(ask, parts, excluded), num_threads=ask.num_threads)
    return top.result()


def _count(ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> int:
    screen = _screen(ask, parts, excluded)

    def count(part: Part) -> int:
        return sum(len(rows) for rows in scan(part, screen=screen, columns=[]))

    return sum(in_threads(count, parts, num_threads=ask.num_threads))


def _screen(ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> Screen:
    return Screen(ask.guard, schema=parts[0].schema, excluded=excluded)


def _merge(lists: Sequence[pa.Table], ask: _Ask) -> pa.Table:
    if ask.seed is None:
        return merge_top_k(lists, k=ask.k, max_per_group=ask.max_per_group)
    together = pa.concat_tables(lists)
    return random_k(together, k=ask.k, seed=ask.seed, max_per_group=ask.max_per_group, taken=ask.taken)
