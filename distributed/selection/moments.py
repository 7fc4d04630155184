"""Moments: rows of one group that were captured within a gap of each other show the same scene again.

Knows groups and times alone: no tables of scores, no losses. A row without a group, or without a time, is a moment of
its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Group = str | None
Time = int | None  # µs


class Moments:
    """Moments that are taken.

    Args:
        gap: µs, at least 0; a time exactly so far away is within it. 0: nothing is.
    """

    def __init__(self, gap: int) -> None:
        self._gap = gap
        self._cells: dict[tuple[Group, int], tuple[int, int]] = {}  # first and last time of a cell of gap + 1 µs

    def __len__(self) -> int:
        """0 if nothing can be near."""
        return len(self._cells)

    def is_near(self, group: Group, time: Time) -> bool:
        """True if a moment of the group lies within the gap."""
        if not self._cells or group is None or time is None:
            return False
        gap, cells = self._gap, self._cells
        cell = time // (gap + 1)
        if (group, cell) in cells:  # two times of one cell are within the gap
            return True
        before, after = cells.get((group, cell - 1)), cells.get((group, cell + 1))
        return (before is not None and time - before[1] <= gap) or (after is not None and after[0] - time <= gap)

    def add(self, group: Group, time: Time) -> None:
        """The moment is taken."""
        if not self._gap or group is None or time is None:
            return
        key = group, time // (self._gap + 1)
        first, last = self._cells.get(key, (time, time))
        self._cells[key] = min(first, time), max(last, time)

    def add_rows(self, rows: pa.Table) -> None:
        """The moments of rows with `group` and `captured_at` are taken."""
        for group, time in zip(*moments_of(rows), strict=True):
            self.add(group, time)

    def are_near(self, rows: pa.Table) -> NDArray[np.bool_]:
        """True for each row (with `group` and `captured_at`) that a moment is near to."""
        known = pa.array({group for group, _ in self._cells}, pa.string())
        is_near = pc.is_in(rows["group"].cast(pa.string()), value_set=known).to_numpy()
        found: NDArray[np.bool_] = np.array(is_near)
        hits = rows.select(["group", "captured_at"]).filter(pa.array(found))
        found[found] = [self.is_near(group, time) for group, time in zip(*moments_of(hits), strict=True)]
        return found


class MomentIndex:
    """Rows by their moments, sorted once: those near to a moment are two look-ups.

    Args:
        groups: n strings or nulls.
        times: n int64 or nulls, µs.
    """

    def __init__(self, groups: pa.Array, times: pa.Array) -> None:
        is_moment = pc.and_(groups.is_valid(), times.is_valid())
        known = groups.filter(is_moment).dictionary_encode()
        codes, at = known.indices.to_numpy(), times.filter(is_moment).to_numpy()
        order = np.lexsort((at, codes))
        self._rows, self._times = np.flatnonzero(is_moment)[order], at[order]
        self._starts = np.searchsorted(codes[order], np.arange(len(known.dictionary) + 1))
        self._codes = {group: code for code, group in enumerate(known.dictionary.to_pylist())}

    def near(self, group: Group, time: Time, *, gap: int) -> NDArray[np.int64]:
        """Numbers of the rows of that group whose time is at most `gap` µs away; none without a group or a time."""
        code = self._codes.get(group)
        if code is None or time is None:
            return self._rows[:0]
        start, end = self._starts[code], self._starts[code + 1]
        first, last = start + np.searchsorted(self._times[start:end], (time - gap, time + gap + 1))
        return self._rows[first:last]


class Walk(NamedTuple):
    """Result of a walk, as row numbers, ascending."""

    met: list[int]  # rows whose group had room, up to the last that was taken; all others are passed over for their gap
    taken: list[int]


def microseconds(gap: float) -> int:
    """A gap in seconds as µs, cut to whole ones.

    Raises:
        ValueError: it is negative or no number.
    """
    if not 0 <= gap < math.inf:
        raise ValueError(f"min_gap must be at least 0 and finite, found {gap}")
    return int(Fraction(str(gap)) * 1_000_000)  # as it is written, not as it is stored


def walk(
    groups: Sequence[Group],
    times: Sequence[Time],
    *,
    k: int,
    gap: int,
    max_per_group: int | None = None,
    counts: Mapping[Group, int] | None = None,
) -> Walk:
    """Takes up to `k` rows in their order: each whose group has room, and of whose moment none was taken before.

    Costs a few look-ups a row, down to the k-th that is taken.

    Args:
        groups: of the rows.
        times: when they were captured, µs.
        k: the budget.
        gap: µs; as in `Moments`.
        max_per_group: at most so many of a group; rows without a group are free.
        counts: rows of each group that were taken before.
    """
    moments, counted = Moments(gap), Counter[Group](counts or {})
    room = math.inf if max_per_group is None else max_per_group
    met: list[int] = []
    taken: list[int] = []
    for row, (group, time) in enumerate(zip(groups, times, strict=True)):
        if len(taken) >= k:
            break
        if group is not None and counted[group] >= room:
            continue
        met.append(row)
        if not moments.is_near(group, time):
            moments.add(group, time)
            counted[group] += 1
            taken.append(row)
    return Walk(met, taken)


def moments_of(rows: pa.Table) -> tuple[list[Group], list[Time]]:
    """Groups and times (µs) of rows with `group` and `captured_at`."""
    return rows["group"].cast(pa.string()).to_pylist(), times_of(rows).to_pylist()


def times_of(rows: pa.Table) -> pa.ChunkedArray:
    """Times (int64, µs) of rows with `captured_at`."""
    return rows["captured_at"].cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())


def has_moments(schema: pa.Schema) -> bool:
    """True for tables whose `group` and `captured_at` are those of a pool, but for the unit of the times."""
    if not {"group", "captured_at"} <= set(schema.names):
        return False
    kind, time = schema.field("group").type, schema.field("captured_at").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return is_text and pa.types.is_timestamp(time) and time.tz is not None


def join_moments(gap: float, tables: Iterable[pa.Table]) -> Moments:
    """The moments of all rows of some tables, with a gap in seconds."""
    moments = Moments(microseconds(gap))
    for rows in tables:
        moments.add_rows(rows)
    return moments
