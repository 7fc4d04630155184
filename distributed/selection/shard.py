"""A shard of farthest-first picking: some rows, and of each how far it is from all that was picked.

Few distances are computed: a row's smallest distance to the centres only falls, so what it was bounds it from above,
and a row is brought up to date only when its bound is among the highest. Source: lazy greedy, Minoux, "Accelerated
greedy algorithms for maximizing submodular set functions", 1978.
"""

# n rows of a shard, D embedding, p centres, m candidates

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.distances import on_grid, squared_distances

TAKEN = -1.0  # the value of a row that can't be picked any more

# A row catches up with so many centres, then with twice as many: most fall back behind the others after a few.
_FIRST_CENTRES = 64
_MOST_CENTRES = 2048
_ROWS_AT_ONCE = 2048  # with the centres above, 32 MiB of distances

# The best rows are looked for among so many times what is wanted: with less, the whole shard is gone over more often.
_HOT_FACTOR = 8


class Step(NamedTuple):
    """What a shard is told: all that changed since the last step, and how many candidates are wanted."""

    scale: float  # grid units in 1.0
    power: float  # a row's value is its weight × its smallest squared distance ** power
    limit: float  # rows nearer than that to a centre drop out; squared, grid units
    centres: NDArray[np.generic]  # (p, D) new ones, not on the grid
    taken: NDArray[np.int64]  # the shard's rows that were picked
    closed: list[str]  # groups that are full
    num_wanted: int


class Bound(NamedTuple):
    """No row that stayed behind is better than that: a value, and the smallest key of those that may have it."""

    value: float
    key: Any  # None: unknown


class Candidates(NamedTuple):
    """A shard's best rows, up to date with all centres, in no order."""

    rows: NDArray[np.int64]  # (m,) row numbers in the shard
    keys: list[Any]
    groups: list[str | None]
    embeddings: NDArray[np.generic]  # (m, D)
    weights: NDArray[np.float64]  # (m,)
    values: NDArray[np.float64]  # (m,)
    bound: Bound


class CoresetShard:
    """Some rows, and of each how far it is from the nearest centre; a plain object, of a thread or of an actor.

    Args:
        embeddings: (n, D) floats; rows that are not finite are never candidates.
        keys: n unique strings or integers; of rows with equal values the smaller key (by UTF-8 bytes) goes first.
        groups: n strings or nulls; needed where groups can be full.
        weights: (n,) positive factors; 1 if not given.

    Raises:
        ValueError: the lengths differ.
    """

    def __init__(
        self,
        embeddings: NDArray[np.generic],
        *,
        keys: pa.Array,
        groups: pa.Array | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if len(keys) != len(embeddings):
            raise ValueError(f"expected one key a row, found {len(keys)} keys and {len(embeddings)} rows")
        by_key = pc.sort_indices(keys).to_numpy()  # then the first of equals is the smallest row number
        order = by_key[np.isfinite(embeddings).all(axis=1)[by_key]].astype(np.int64)
        self._embeddings = embeddings[order]
        self._keys = keys.take(pa.array(order))
        self._groups = (pa.nulls(len(keys), pa.string()) if groups is None else groups).take(pa.array(order))
        self._weights = np.ones(len(order)) if weights is None else weights[order]
        self._values = np.full(len(order), np.inf)  # bounds: exact where `_seen` is all centres
        self._seen = np.zeros(len(order), np.int64)
        self._centres = np.empty((0, embeddings.shape[1]))

    def extent(self) -> tuple[int, int, float]:
        """The number of rows that may be picked, D, and the largest magnitude of any component."""
        return *self._embeddings.shape, float(np.abs(self._embeddings).max(initial=0))

    def advance(self, step: Step) -> Candidates:
        """The best `num_wanted` rows after that step (or all there are), and a bound of the others."""
        self._close(step)
        if len(step.centres):
            centres = on_grid(step.centres, step.scale)
            self._centres = np.concatenate([self._centres, centres])
            if self._seen.size and not self._seen.any():
                self._catch_up(np.arange(len(self._seen)), step)
        top, bound = self._best(step)
        wanted = pa.array(top)
        return Candidates(
            rows=top,
            keys=self._keys.take(wanted).to_pylist(),
            groups=self._groups.take(wanted).to_pylist(),
            embeddings=self._embeddings[top],
            weights=self._weights[top],
            values=self._values[top],
            bound=bound,
        )

    def _close(self, step: Step) -> None:
        self._values[step.taken] = TAKEN
        if len(step.closed):
            is_full = pc.is_in(self._groups, value_set=pa.array(step.closed, self._groups.type))
            self._values[is_full.to_numpy(zero_copy_only=False)] = TAKEN

    def _best(self, step: Step) -> tuple[NDArray[np.int64], Bound]:
        """The rows of the highest values, all up to date; and the best of the others."""
        while True:
            hot, floor = self._hot(_HOT_FACTOR * step.num_wanted)
            top, bound = self._top(hot, step.num_wanted)
            while bound.value >= floor:  # else a row outside might be better
                stale = top[self._seen[top] < len(self._centres)]
                if not len(stale):
                    return top, bound
                self._catch_up(stale, step)
                top, bound = self._top(hot, step.num_wanted)

    def _hot(self, count: int) -> tuple[NDArray[np.int64], float]:
        """At least so many rows of the highest values, by key, and a value that all others are under."""
        rest = self._values.size - count
        floor = np.partition(self._values, rest)[rest] if rest > 0 else TAKEN
        return np.flatnonzero(self._values >= max(floor, 0.0)), floor

    def _top(self, hot: NDArray[np.int64], num_wanted: int) -> tuple[NDArray[np.int64], Bound]:
        """The `num_wanted` best of the hot rows, equals by key; and the best of the others."""
        values, rest = self._values[hot], hot.size - num_wanted
        if rest <= 0:
            return hot[values >= 0], Bound(TAKEN, None)
        below, edge = np.partition(values, (rest - 1, rest))[rest - 1 : rest + 1]
        if edge < 0:
            return hot[values >= 0], Bound(TAKEN, None)
        above, ties = hot[values > edge], hot[values == edge]
        num_ties = num_wanted - len(above)
        top = np.concatenate([above, ties[:num_ties]])
        if below == edge:
            return top, Bound(edge, self._keys[int(ties[num_ties])].as_py())
        return top, Bound(below, None)

    def _catch_up(self, rows: NDArray[np.int64], step: Step) -> None:
        """Brings rows nearer to being up to date: by as many centres as each has seen, or a few."""
        seen = self._seen[rows]
        for start in np.unique(seen):
            stop = min(len(self._centres), start + min(max(start, _FIRST_CENTRES), _MOST_CENTRES))
            behind = rows[seen == start]
            for at in range(0, len(behind), _ROWS_AT_ONCE):
                self._compare(behind[at : at + _ROWS_AT_ONCE], slice(start, stop), step)
            self._seen[behind] = stop

    def _compare(self, rows: NDArray[np.int64], centres: slice, step: Step) -> None:
        points = on_grid(self._embeddings[rows], step.scale)
        distances = squared_distances(points, self._centres[centres]).min(axis=1)
        self._values[rows] = lowered(self._values[rows], distances, weights=self._weights[rows], step=step)


def lowered(
    values: NDArray[np.float64], distances: NDArray[np.float64], *, weights: NDArray[np.float64], step: Step
) -> NDArray[np.float64]:
    """The values of rows that have these squared distances to further centres: never higher than they were."""
    powers = distances if step.power == 1 else distances**step.power
    return np.where(distances < step.limit, TAKEN, np.minimum(values, weights * powers))
