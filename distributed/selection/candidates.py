"""The rows that a selection chooses from, as its strategies ask for them: read here, or by tasks on a cluster.

Each task reads some of the parts with a limit of its own; what comes back is merged, exactly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.best_rows import CANDIDATES, STORED, fetch_columns, push_best_rows, scan_part
from distributed.selection.filters import Excluded, FilterSpec, RowFilter, read_excluded
from distributed.selection.topk import TopK, hash_order
from distributed.storage.threads import in_threads
from distributed.tables.scores_reader import ReadablePart, num_threads, plain_schema

Result = TypeVar("Result")
RowGroups: TypeAlias = list[tuple[ReadablePart, list[int]]]  # parts, and numbers of row groups of each
Repeats: TypeAlias = dict[int, NDArray[np.int64]]  # number of a part -> its rows that are left out, ascending

_SUSPECTS = pa.schema([CANDIDATES.field(name) for name in ("sample_id", "predicted_loss", "part", "part_row")])


class Ranked(NamedTuple):
    """Rows in the order of a strategy (`CANDIDATES`)."""

    rows: pa.Table
    num_passed_over: int | None  # rows that lack the gap to one that was taken before; None: not counted


class Candidates:
    """All scored rows of some parts that pass a filter.

    Args:
        parts: files of one or more scores tables, at least one, numbered from 0.
        spec: what a row must meet.
        num_scored: rows of the parts that have a score.
        workers: number of tasks that read, on the cluster that is connected; 0: threads of this process do.
    """

    def __init__(self, parts: Sequence[ReadablePart], spec: FilterSpec, *, num_scored: int, workers: int = 0) -> None:
        self.workers = workers
        self._parts = parts
        self._spec = spec
        self._num_scored = num_scored
        self._num_threads = num_threads([part.location for part in parts])

    def best(self, *, k: int, max_per_group: int | None = None, min_gap: float = 0.0) -> Ranked:
        """The first `k` rows in selection order; see `top_k`."""
        return self._ranked(partial(TopK, k=k, max_per_group=max_per_group, min_gap=min_gap), self._spec)

    def draw(self, *, k: int, seed: int, max_per_group: int | None = None, min_gap: float = 0.0) -> Ranked:
        """A uniform draw, in its order; see `top_k`."""
        return self._ranked(partial(TopK, k=k, max_per_group=max_per_group, min_gap=min_gap, seed=seed), self._spec)

    def draw_besides(
        self, taken: pa.Table, *, k: int, seed: int, max_per_group: int | None = None, min_gap: float = 0.0
    ) -> Ranked:
        """A uniform draw from the rows that were not taken, whatever their loss.

        Those taken count against the cap, and rows within the gap of one are left out.
        """
        moments = taken.select(["sample_id", "group", "captured_at"])
        spec = replace(self._spec, min_loss=None, max_loss=None, taken=moments, min_gap=min_gap)
        make_top = partial(TopK, k=k, max_per_group=max_per_group, min_gap=min_gap, seed=seed, taken=taken["group"])
        return self._ranked(make_top, spec)

    def count(self) -> int:
        """Number of rows, one for each table that a sample is in.

        Costs nothing where the filter lets all pass; else the columns that decide are read in full.
        """
        return self._num_scored if self._spec.lets_all_pass else sum(self._scan(len, columns=[]))

    def loaders(self, *, columns: Sequence[str]) -> list[Callable[[], pa.Table]]:
        """All rows, of each sample that of the highest loss: functions that read a share each, here or in an actor.

        The shares are of about as many rows: as many as workers, or as CPUs of this machine without.
        """
        shares = _shares(self._parts, count=self.workers or os.cpu_count() or 1)
        excluded = None if self.workers else self._excluded
        return [partial(_load, self._spec, list(columns), self._repeats, excluded, share) for share in shares]

    def find(self, sample_ids: pa.Array) -> pa.Table:
        """The rows of these samples (`CANDIDATES`), of each that of the highest loss, in the order of the ids."""
        found = self._scan(partial(_rows_of, sample_ids), columns=STORED)
        rows = _without(pa.concat_tables([CANDIDATES.empty_table(), *found]), self._repeats)
        return rows.take(pc.index_in(sample_ids, value_set=rows["sample_id"].combine_chunks()))

    def excluded(self, *, columns: Sequence[str]) -> pa.Table:
        """The scored rows whose ids are excluded, with these columns."""
        nothing = pa.schema([self._parts[0].schema.field(name) for name in columns]).empty_table()
        if not self._spec.excluded:
            return nothing
        spec = FilterSpec(excluded=self._spec.excluded, only_excluded=True)
        return pa.concat_tables([nothing, *self._scan(lambda rows: rows.select(columns), columns=columns, spec=spec)])

    def fetch(self, rows: pa.Table, *, columns: Sequence[str]) -> pa.Table:
        """Further columns of some candidates, in their order."""
        return fetch_columns(self._parts, rows, columns=columns, num_threads=self._num_threads)

    def _ranked(self, make_top: Callable[[], TopK], spec: FilterSpec) -> Ranked:
        def rank(parts: Sequence[ReadablePart], row_filter: RowFilter, num_threads: int) -> pa.Table:
            own = make_top()
            push_best_rows(parts, own, row_filter=row_filter, num_threads=num_threads)
            return own.kept()

        top = make_top()
        for rows in self._run(rank, spec):
            top.push(rows)
        return Ranked(top.result(), top.num_passed_over())

    def _scan(
        self, function: Callable[[pa.Table], Result], *, columns: Sequence[str], spec: FilterSpec | None = None
    ) -> list[Result]:
        """The function's results for the rows of each row group, with these columns, that pass."""

        def scan(parts: Sequence[ReadablePart], row_filter: RowFilter, num_threads: int) -> list[Result]:
            def scan_one(part: ReadablePart) -> list[Result]:
                return [function(rows) for rows in scan_part(part, row_filter=row_filter, columns=columns)]

            return [each for own in in_threads(scan_one, parts, num_threads=num_threads) for each in own]

        return [each for found in self._run(scan, spec or self._spec) for each in found]

    def _run(self, task: Callable[[Sequence[ReadablePart], RowFilter, int], Result], spec: FilterSpec) -> list[Result]:
        """The task's results for shares of the parts, one a worker; for all at once in this process."""
        num_tasks = min(self.workers, len(self._parts))
        if not num_tasks:
            row_filter = RowFilter(spec, schema=self._parts[0].schema, excluded=self._excluded)
            return [task(self._parts, row_filter, self._num_threads)]
        from distributed.cluster.work import run_tasks

        def call(parts: Sequence[ReadablePart]) -> Result:
            return task(parts, RowFilter(spec, schema=parts[0].schema), 1)

        return run_tasks(call, [self._parts[start::num_tasks] for start in range(num_tasks)])

    @cached_property
    def _excluded(self) -> Excluded:
        return read_excluded(self._spec)

    @cached_property
    def _repeats(self) -> Repeats:
        """The rows that a higher loss of the same sample in another table hides.

        Ids are compared by 64-bit hashes, eight bytes a row; texts decide where two hashes agree.
        """
        tables = {part.location.parent.path for part in self._parts}
        if len(tables) == 1 and len({part.location.path for part in self._parts}) == len(self._parts):
            return {}  # within one table ids are unique
        hashes = np.sort(np.concatenate([np.empty(0, np.uint64), *self._scan(_hash_ids, columns=["sample_id"])]))
        repeated = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        suspects = self._scan(partial(_rows_with_hashes, repeated), columns=["sample_id", "predicted_loss"])
        return _all_but_the_highest(pa.concat_tables([_SUSPECTS.empty_table(), *suspects]))


def _hash_ids(rows: pa.Table) -> NDArray[np.uint64]:
    return hash_order(rows["sample_id"], seed=0)


def _rows_with_hashes(hashes: NDArray[np.uint64], rows: pa.Table) -> pa.Table:
    return rows.filter(pa.array(np.isin(_hash_ids(rows), hashes))).cast(_SUSPECTS)


def _rows_of(sample_ids: pa.Array, rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_in(rows["sample_id"].cast(pa.string()), value_set=sample_ids)).cast(CANDIDATES)


def _all_but_the_highest(rows: pa.Table) -> Repeats:
    """All rows of each id but the one of the highest loss, or the first by part and row of equals."""
    order = np.lexsort([rows["part_row"].to_numpy(), rows["part"].to_numpy(), -rows["predicted_loss"].to_numpy()])
    ordered = rows.take(pa.array(order))
    codes = ordered["sample_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    is_left_out = np.ones(len(codes), np.bool_)
    is_left_out[np.unique(codes, return_index=True)[1]] = False
    parts, part_rows = ordered["part"].to_numpy()[is_left_out], ordered["part_row"].to_numpy()[is_left_out]
    return {int(number): np.sort(part_rows[parts == number]) for number in np.unique(parts)}


def _without(rows: pa.Table, repeats: Repeats) -> pa.Table:
    """The rows (of any parts, with `part` and `part_row`) that are not left out."""
    parts, part_rows = rows["part"].to_numpy(), rows["part_row"].to_numpy()
    is_kept = np.ones(len(rows), np.bool_)
    for number in set(np.unique(parts).tolist()) & repeats.keys():
        is_kept &= ~((parts == number) & np.isin(part_rows, repeats[number]))
    return rows.filter(pa.array(is_kept))


def _shares(parts: Sequence[ReadablePart], *, count: int) -> list[RowGroups]:
    """All row groups in their order, cut into at most so many runs of about as many rows."""
    pieces = [(part, group) for part in parts for group in range(len(part.group_rows))]
    ends = np.cumsum([part.group_rows[group] for part, group in pieces])
    shares: dict[int, dict[int, list[int]]] = {}
    for (part, group), end in zip(pieces, ends.tolist(), strict=True):
        share = shares.setdefault((end - 1) * count // int(ends[-1]), {})
        share.setdefault(part.number, []).append(group)
    return [[(parts[number], groups) for number, groups in share.items()] for share in shares.values()]


def _load(
    spec: FilterSpec, columns: list[str], repeats: Repeats, excluded: Excluded | None, share: RowGroups
) -> pa.Table:
    """The rows of a share, with these columns as they are in its first part, dictionaries as their values."""
    row_filter = RowFilter(spec, schema=share[0][0].schema, excluded=excluded)
    schema = pa.schema([plain_schema(share[0][0].schema).field(name) for name in columns])
    tables = [
        _without(rows, repeats).select(columns).cast(schema)
        for part, groups in share
        for rows in scan_part(part, row_filter=row_filter, columns=columns, groups=groups)
    ]
    return pa.concat_tables([schema.empty_table(), *tables])
