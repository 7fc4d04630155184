"""Which slices the selection took more of than the pool holds: shares of each value of each metadata column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distributed.evaluation.slices import MOST_VALUES, values_of
from distributed.reporting.pool_rows import Pool
from distributed.tables.parquet import open_table
from distributed.tables.scores_reader import ReadablePart, open_part, read_group
from model.errors import InputError, RunFailedError

_SHOWN_VALUES = 12
_MOST_POOL_ROWS = 5_000_000  # read for their metadata where the scores have none: seconds from a disk

Counts = dict[str, Counter[str]]  # column -> value -> rows


@dataclass(frozen=True, kw_only=True)
class Share:
    """One value."""

    value: str
    pool: float
    selection: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the metadata of a pool holds."""

    num_rows: int
    counts: Counts


def count_scores(parts: Sequence[ReadablePart], names: Sequence[str]) -> Totals:
    """Rows by value of the metadata columns of scores tables, failed rows too.

    Raises:
        InputError: a part is damaged.
        RunFailedError: the store failed.
    """

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            with open_part(part) as reader:
                for group in range(len(part.group_rows)):
                    yield read_group(reader, part, group, list(names))

    return _count(tables, names)


def count_pool(pool: Pool, names: Sequence[str], *, num_rows: int) -> Totals | None:
    """The same from the files of a pool that were scored; None where they are too many rows, or not all readable."""
    if num_rows > _MOST_POOL_ROWS or not pool.footers:
        return None

    def tables() -> Iterator[pa.Table]:
        for path in pool.footers:
            with open_table(pool.location.join(*path.split("/"))) as reader:
                for group in range(reader.num_row_groups):
                    yield reader.read_row_group(group, columns=list(names))

    try:
        return _count(tables, names)
    except (InputError, RunFailedError, KeyError):
        return None


def _count(tables: Callable[[], Iterator[pa.Table]], names: Sequence[str]) -> Totals:
    counts: Counts = {name: Counter() for name in names}
    num_rows = 0
    for rows in tables():
        num_rows += len(rows)
        for name in list(counts):
            found = values_of(rows[name])
            numbers = np.bincount(found.codes, minlength=len(found.names)).tolist()
            counts[name].update(dict(zip(found.names, numbers, strict=True)))
            if len(counts[name]) > MOST_VALUES:
                del counts[name]
    return Totals(num_rows=num_rows, counts=counts)


def compare(
    totals: Totals, selected: Mapping[str, Mapping[int, tuple[str, ...]]], *, num_selected: int
) -> dict[str, list[Share]]:
    """By column, the values that the selection took most of first, by their shares of both.

    Columns with more than `MOST_VALUES` values, or with one alone, say nothing.
    """
    found = {}
    for name, pool in totals.counts.items():
        picked = Counter(word for words in selected.get(name, {}).values() for word in words)
        shares = [
            Share(
                value=value,
                pool=pool[value] / max(totals.num_rows, 1),
                selection=picked[value] / max(num_selected, 1),
            )
            for value in pool | picked
        ]
        if len(shares) > 1:
            shares.sort(key=lambda share: (-share.selection, -share.pool, share.value))
            found[name] = shares[:_SHOWN_VALUES]
    return found
