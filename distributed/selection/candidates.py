"""The rows that a selection chooses from, as its strategies ask for them: read here, or by tasks on a cluster.

Each task reads some of the parts with a threshold of its own; what comes back is merged as a tree, exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection import repeats
from distributed.selection.exclusion import IdSet, read_ids
from distributed.selection.guards import Guard, Screen
from distributed.selection.heads import CANDIDATES, STORED, collect
from distributed.selection.parts import Part, fetch, in_threads, num_threads, plain_schema, scan
from distributed.selection.topk import TopK, merge_top_k, random_k

Result = TypeVar("Result")
Share = list[tuple[Part, list[int]]]  # parts, and row groups of each


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """What a task is asked for; one class, since all questions may be put to a cluster."""

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
        self._num_workers = workers
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

    def loaders(self, *, columns: Sequence[str]) -> list[Callable[[], pa.Table]]:
        """All rows, of each sample that of the highest loss: functions that read a share each, here or in an actor.

        The shares are of about as many rows: as many as workers, or as CPUs of this machine without.
        """
        shares = _shares(self._parts, count=self._num_workers or os.cpu_count() or 1)
        excluded = None if self._num_workers else self._excluded
        return [partial(_load, self._guard, list(columns), self._repeats, excluded, share) for share in shares]

    def find(self, sample_ids: pa.Array) -> pa.Table:
        """The rows of these samples (`heads.CANDIDATES`), of each that of the highest loss, in the order of the ids."""
        found = pa.concat_tables(self._run(partial(_find, sample_ids), _Ask(guard=self._guard)))
        rows = repeats.without(found, self._repeats)
        return rows.take(pc.index_in(sample_ids, value_set=rows["sample_id"].combine_chunks()))

    def excluded(self, *, columns: Sequence[str]) -> pa.Table:
        """The rows of these parts that the guard's tables exclude, with these columns."""
        if not self._guard.excluded:
            return pa.schema([self._parts[0].schema.field(name) for name in columns]).empty_table()
        ask = _Ask(guard=replace(Guard(), excluded=self._guard.excluded))
        return pa.concat_tables(self._run(partial(_excluded_rows, list(columns)), ask))

    @cached_property
    def _repeats(self) -> repeats.Repeats:
        """The rows that a higher loss of the same sample in another table hides."""
        if not repeats.may_repeat(self._parts):
            return {}
        hashes = repeats.repeated(self._run(_hash_ids, _Ask(guard=self._guard)))
        return repeats.all_but_the_highest(
            pa.concat_tables(self._run(partial(_suspects, hashes), _Ask(guard=self._guard)))
        )

    @property
    def workers(self) -> int:
        """How many actors may hold shares of the rows; 0: they are held here."""
        return self._num_workers

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
        from distributed.cluster.work import run_tasks

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


def _find(sample_ids: pa.Array, ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> pa.Table:
    screen = _screen(ask, parts, excluded)

    def find(part: Part) -> pa.Table:
        rows = [
            table.filter(pc.is_in(table["sample_id"].cast(pa.string()), value_set=sample_ids)).cast(CANDIDATES)
            for table in scan(part, screen=screen, columns=STORED)
        ]
        return pa.concat_tables([CANDIDATES.empty_table(), *rows])

    return pa.concat_tables(in_threads(find, parts, num_threads=ask.num_threads))


def _excluded_rows(columns: list[str], ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> pa.Table:
    ids = read_ids(ask.guard.excluded) if excluded is None else excluded
    screen = Screen(Guard(), schema=parts[0].schema)

    def find(part: Part) -> pa.Table:
        nothing = pa.schema([part.schema.field(name) for name in columns]).empty_table()
        rows = [
            table.filter(pa.array(ids.contains(table["sample_id"]))).select(columns)
            for table in scan(part, screen=screen, columns=[*columns, "sample_id"])
        ]
        return pa.concat_tables([nothing, *rows])

    return pa.concat_tables(in_threads(find, parts, num_threads=ask.num_threads))


def _hash_ids(ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> NDArray[np.uint64]:
    hash_of = partial(repeats.id_hashes, screen=_screen(ask, parts, excluded))
    return np.concatenate(in_threads(hash_of, parts, num_threads=ask.num_threads))


def _suspects(hashes: NDArray[np.uint64], ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> pa.Table:
    find = partial(repeats.suspects, hashes=hashes, screen=_screen(ask, parts, excluded))
    return pa.concat_tables(in_threads(find, parts, num_threads=ask.num_threads))


def _shares(parts: Sequence[Part], *, count: int) -> list[Share]:
    """All row groups in their order, cut into at most so many runs of about as many rows."""
    pieces = [(part, group) for part in parts for group in range(len(part.group_rows))]
    ends = np.cumsum([part.group_rows[group] for part, group in pieces])
    owners = (ends - 1) * count // max(1, ends[-1]) if pieces else ends
    shares = [[pieces[index] for index in np.flatnonzero(owners == owner)] for owner in np.unique(owners)]
    return [
        [(own[0][0], [group for _, group in own]) for own in (list(run) for _, run in groupby(share, _number_of))]
        for share in shares
    ]


def _number_of(piece: tuple[Part, int]) -> int:
    return piece[0].number


def _load(
    guard: Guard, columns: list[str], left_out: repeats.Repeats, excluded: IdSet | None, share: Share
) -> pa.Table:
    """The rows of a share, with these columns as they are in its first part, dictionaries as their values."""
    screen = Screen(guard, schema=share[0][0].schema, excluded=excluded)
    schema = pa.schema([plain_schema(share[0][0].schema).field(name) for name in columns])
    tables = [
        repeats.without(rows, left_out).select(columns).cast(schema)
        for part, groups in share
        for rows in scan(part, screen=screen, columns=columns, groups=groups)
    ]
    return pa.concat_tables([schema.empty_table(), *tables])


def _screen(ask: _Ask, parts: Sequence[Part], excluded: IdSet | None) -> Screen:
    return Screen(ask.guard, schema=parts[0].schema, excluded=excluded)


def _merge(lists: Sequence[pa.Table], ask: _Ask) -> pa.Table:
    if ask.seed is None:
        return merge_top_k(lists, k=ask.k, max_per_group=ask.max_per_group)
    together = pa.concat_tables(lists)
    return random_k(together, k=ask.k, seed=ask.seed, max_per_group=ask.max_per_group, taken=ask.taken)
