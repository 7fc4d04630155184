"""k-centre greedy: each pick is the row farthest from all that is labelled or picked so far, exact in any sharding.

Source: Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
algorithm 1. Without a first centre the guarantee of at most twice the best radius holds for any first pick.

Distances are exact: embeddings are rounded to a grid on which every sum is an integer that float64 holds. So in
‖x‖² − 2x·c + ‖c‖² nothing is ever rounded, whatever the order of its terms: a row's distance depends on neither the
rows beside it nor the machine, and a matrix product may compute it.

Few distances are computed: a row's smallest distance to the centres only falls, so what it was bounds it from above,
and a row is brought up to date only when its bound is among the highest (lazy greedy, Minoux, "Accelerated greedy
algorithms for maximizing submodular set functions", 1978). Each round the shards hand over their best rows and a bound
of all others. `k_centre` picks from those, and brings them up to date with each pick, while no row that stayed behind
can be better.
"""

# n rows of a shard, D embedding, p centres, m candidates

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.moments import MomentIndex, microseconds

TAKEN = -1.0  # the value of a row that can't be picked any more
_FLOAT64_BITS = 53

# A row catches up with so many centres, then with twice as many: most fall back behind the others after a few.
_FIRST_CENTRES = 64
_MOST_CENTRES = 2048
_ROWS_AT_ONCE = 2048  # with the centres above, 32 MiB of distances

# A shard looks for its best rows among so many times what is wanted: with less, it goes over all its rows more often.
_HOT_FACTOR = 8

# Candidates of a round, from all shards together: few make a pick fast, many make rounds rare.
_FIRST_CANDIDATES = 4096
_FEWEST_CANDIDATES = 1024
_MOST_CANDIDATES = 65536


class Picks(NamedTuple):
    """The picked rows, in order."""

    keys: list[Any]
    values: NDArray[np.float64]  # of each when it was picked, in units of the embeddings; inf before the first centre


class ShardStep(NamedTuple):
    """All that changed since the last step of a shard, and the number of candidates that are wanted."""

    scale: float  # grid units in 1.0
    power: float  # a row's value is its weight × its smallest squared distance ** power
    limit: float  # rows nearer than that to a centre drop out; squared, grid units
    centres: NDArray[np.generic]  # (p, D) new ones, not on the grid
    taken: NDArray[np.int64]  # the shard's rows that were picked
    closed: list[str]  # groups that are full
    gap: int  # µs; rows of a group within it of a pick drop out; 0: none
    near: list[tuple[str | None, int | None]]  # groups and times of the picks
    num_wanted: int


class ShardBest(NamedTuple):
    """A shard's best rows, up to date with all centres, in no order; and a bound of all others."""

    rows: NDArray[np.int64]  # (m,) row numbers in the shard
    keys: list[Any]
    groups: list[str | None]
    times: list[int | None]  # µs
    embeddings: NDArray[np.generic]  # (m, D)
    weights: NDArray[np.float64]  # (m,)
    values: NDArray[np.float64]  # (m,)
    bound: float  # no other row has a higher value
    bound_key: Any  # the smallest key of those that may have it; None: unknown


class Shard(Protocol):
    """Some rows, in this process or elsewhere; each call may come from another thread, one at a time."""

    def extent(self) -> tuple[int, int, float]:
        """The number of rows that may be picked, D, and the largest magnitude of any component."""

    def advance(self, step: ShardStep) -> ShardBest:
        """The best `num_wanted` rows after that step (or all there are), and a bound of the others."""


def k_centre(
    shards: Sequence[Shard],
    *,
    k: int,
    centres: NDArray[np.generic] | None = None,
    power: float = 1.0,
    max_per_group: int | None = None,
    min_distance: float = 0.0,
    min_gap: float = 0.0,
) -> Picks:
    """Picks up to `k` rows of all shards, one after another: the row of the highest value, which lowers those near it.

    A row's value is its weight × (squared distance to the nearest centre or pick) ** `power`. Equal values go by key,
    so without centres the first pick is the row of the highest weight and smallest key. Rows at distance 0 are picked
    last, not never. Fewer than `k` are picked if groups are full or the rest is too near, in distance or in time.

    Args:
        shards: which remember what was picked: they serve once. A thread works on each.
        k: the budget.
        centres: (p, D) embeddings of what is labelled already; rows that are not finite are ignored.
        power: of the squared distance.
        max_per_group: at most so many of one group; rows without a group are free.
        min_distance: rows nearer than that (Euclidean) to a centre or pick are passed over.
        min_gap: seconds; rows of a group that were captured within so many of a pick are passed over. 0: none is.

    Raises:
        ValueError: there is no shard; the shards, or the centres, differ in D; a limit is out of range.
    """
    check_limits(k, max_per_group, min_distance)
    gap = microseconds(min_gap)
    if not shards:
        raise ValueError("expected at least one shard, found none")
    threads = ThreadPoolExecutor(len(shards), thread_name_prefix="k-centre")
    try:
        extents = list(threads.map(lambda shard: shard.extent(), shards))
        dim = extents[0][1]
        labelled = np.empty((0, dim)) if centres is None else centres[np.isfinite(centres).all(axis=1)]
        dims = {labelled.shape[1], *(found for _, found, _ in extents)}
        if len(dims) > 1:
            raise ValueError(f"expected embeddings of one size, found {sorted(dims)}")
        largest = max(float(np.abs(labelled).max(initial=0)), *(found for _, _, found in extents))
        scale = grid_scale(largest, dim=dim)
        # Shuffled: the first few, which every row is compared with, should not be frames of one drive.
        labelled = np.random.default_rng(0).permutation(labelled)
        step = ShardStep(scale, power, (min_distance * scale) ** 2, labelled, np.empty(0, np.int64), [], gap, [], 1)
        num_rows = sum(count for count, _, _ in extents)
        keys, values = _pick_in_rounds(threads, shards, step, num_rows=num_rows, k=k, max_per_group=max_per_group)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # not waited for: a remote shard may be ended by its owner
    return Picks(keys, values / scale ** (2 * power))


def check_limits(k: int, max_per_group: int | None, min_distance: float) -> None:
    """Passes if the limits are in range.

    Raises:
        ValueError: one is not.
    """
    if k < 0:
        raise ValueError(f"k must be at least 0, found {k}")
    if max_per_group is not None and max_per_group < 1:
        raise ValueError(f"max_per_group must be at least 1, found {max_per_group}")
    if not min_distance >= 0:
        raise ValueError(f"min_distance must be at least 0, found {min_distance}")


def _pick_in_rounds(
    threads: ThreadPoolExecutor,
    shards: Sequence[Shard],
    step: ShardStep,
    *,
    num_rows: int,
    k: int,
    max_per_group: int | None,
) -> tuple[list[Any], NDArray[np.float64]]:
    keys: list[Any] = []
    values: list[float] = []
    counts: Counter[str] = Counter()
    taken: list[list[int]] = [[] for _ in shards]
    wanted = _FIRST_CANDIDATES
    while len(keys) < k:
        # Before there is a centre all rows are equally far, and one is all that can be picked.
        share = -(-wanted // len(shards)) if len(step.centres) or keys else 1
        steps = [step._replace(taken=np.array(rows, np.int64), num_wanted=share) for rows in taken]
        front = _Front([*threads.map(lambda shard, own: shard.advance(own), shards, steps)], step)
        centres, closed, near, taken = [], [], [], [[] for _ in shards]
        while len(keys) < k and (best := front.best()) is not None:
            keys.append(front.keys[best])
            values.append(float(front.values[best]))
            taken[front.shards[best]].append(int(front.rows[best]))
            centres.append(front.embeddings[best])
            front.take(best)
            group = front.groups[best]
            near.append((group, front.times[best]))
            counts[group] += 1
            if group is not None and counts[group] == max_per_group:
                closed.append(group)
                front.close(group)
        if not centres:
            break
        if share > 1:
            wanted = _next_wanted(wanted, work=len(centres) * len(front.values), num_rows=num_rows)
        step = step._replace(centres=np.stack(centres), closed=closed, near=near if step.gap else [])
    return keys, np.array(values)


def _next_wanted(wanted: int, *, work: int, num_rows: int) -> int:
    """Candidates of the next round, for rows looked at by the driver to be about as many as those of the shards."""
    if work < num_rows:
        return min(2 * wanted, _MOST_CANDIDATES)
    return wanted if work < 4 * num_rows else max(wanted // 2, _FEWEST_CANDIDATES)


class _Front:
    """The candidates of all shards, by key; it is picked from until what stayed behind might be better."""

    def __init__(self, answers: Sequence[ShardBest], step: ShardStep) -> None:
        self._step = step
        keys = [key for answer in answers for key in answer.keys]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        self.keys = [keys[row] for row in order]
        self.groups = np.array([group for answer in answers for group in answer.groups], object)[order]
        self.times = np.array([time for answer in answers for time in answer.times], object)[order]
        self.shards = np.repeat(np.arange(len(answers)), [len(answer.rows) for answer in answers])[order]
        self.rows = np.concatenate([answer.rows for answer in answers])[order]
        self.embeddings = np.concatenate([answer.embeddings for answer in answers])[order]
        self.values = np.concatenate([answer.values for answer in answers])[order]
        self._weights = np.concatenate([answer.weights for answer in answers])[order]
        self._points = on_grid(self.embeddings, step.scale)
        self._norms = _squared_norms(self._points)
        self._moments = step.gap and MomentIndex(pa.array(self.groups, pa.string()), pa.array(self.times, pa.int64()))
        self._bound = max(answer.bound for answer in answers)
        bound_keys = [answer.bound_key for answer in answers if answer.bound == self._bound]
        self._bound_key = None if None in bound_keys else min(bound_keys)

    def best(self) -> int | None:
        """The row to pick, if it is certain."""
        if not len(self.values):
            return None
        row = int(self.values.argmax())  # the first of equals: that of the smallest key
        value = self.values[row]
        if value < 0 or value < self._bound:
            return None
        is_first = value > self._bound or (self._bound_key is not None and self.keys[row] < self._bound_key)
        return row if is_first else None

    def take(self, row: int) -> None:
        """The row is picked: it is a centre now, and its moment is taken."""
        distances = self._points @ (-2.0 * self._points[row]) + (self._norms + self._norms[row])
        self.values = _lowered(self.values, distances, weights=self._weights, step=self._step)
        self.values[row] = TAKEN
        if self._moments:
            self.values[self._moments.near(self.groups[row], self.times[row], gap=self._step.gap)] = TAKEN

    def close(self, group: str) -> None:
        """The group is full."""
        self.values[self.groups == group] = TAKEN


class CentreShard:
    """Rows in memory, each with its distance from the nearest centre.

    Args:
        embeddings: (n, D) floats; rows that are not finite are never candidates.
        keys: n unique strings or integers; of rows with equal values the smaller key (by UTF-8 bytes) goes first.
        groups: n strings or nulls; needed where groups can be full, or there is a gap.
        times: n int64 or nulls, when they were captured (µs); needed where there is a gap.
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
        times: pa.Array | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        if len(keys) != len(embeddings):
            raise ValueError(f"expected one key a row, found {len(keys)} keys and {len(embeddings)} rows")
        by_key = pc.sort_indices(keys).to_numpy()  # then the first of equals is the smallest row number
        order = by_key[np.isfinite(embeddings).all(axis=1)[by_key]].astype(np.int64)
        self._embeddings = embeddings[order]
        self._keys = keys.take(pa.array(order))
        self._groups = (pa.nulls(len(keys), pa.string()) if groups is None else groups).take(pa.array(order))
        self._times = (pa.nulls(len(keys), pa.int64()) if times is None else times).take(pa.array(order))
        self._weights = np.ones(len(order)) if weights is None else weights[order]
        self._values = np.full(len(order), np.inf)  # bounds: exact where `_seen` is all centres
        self._seen = np.zeros(len(order), np.int64)
        self._centres = np.empty((0, embeddings.shape[1]))

    @cached_property
    def _moments(self) -> MomentIndex:
        return MomentIndex(self._groups, self._times)

    def extent(self) -> tuple[int, int, float]:
        """As in `Shard`."""
        return *self._embeddings.shape, float(np.abs(self._embeddings).max(initial=0))

    def advance(self, step: ShardStep) -> ShardBest:
        """As in `Shard`."""
        self._values[step.taken] = TAKEN
        if len(step.closed):
            is_full = pc.is_in(self._groups, value_set=pa.array(step.closed, self._groups.type))
            self._values[is_full.to_numpy(zero_copy_only=False)] = TAKEN
        for group, time in step.near:
            self._values[self._moments.near(group, time, gap=step.gap)] = TAKEN
        if len(step.centres):
            self._centres = np.concatenate([self._centres, on_grid(step.centres, step.scale)])
            if self._seen.size and not self._seen.any():
                self._catch_up(np.arange(len(self._seen)), step)
        top, bound, bound_key = self._best(step)
        wanted = pa.array(top)
        return ShardBest(
            rows=top,
            keys=self._keys.take(wanted).to_pylist(),
            groups=self._groups.take(wanted).to_pylist(),
            times=self._times.take(wanted).to_pylist(),
            embeddings=self._embeddings[top],
            weights=self._weights[top],
            values=self._values[top],
            bound=bound,
            bound_key=bound_key,
        )

    def _best(self, step: ShardStep) -> tuple[NDArray[np.int64], float, Any]:
        """The rows of the highest values, all up to date; and the bound of the others."""
        while True:
            hot, floor = self._hot(_HOT_FACTOR * step.num_wanted)
            top, bound, bound_key = self._top(hot, step.num_wanted)
            while bound >= floor:  # else a row outside might be better
                stale = top[self._seen[top] < len(self._centres)]
                if not len(stale):
                    return top, bound, bound_key
                self._catch_up(stale, step)
                top, bound, bound_key = self._top(hot, step.num_wanted)

    def _hot(self, count: int) -> tuple[NDArray[np.int64], float]:
        """The rows of the highest values by key, at least `count`, and a value that all others are under."""
        rest = self._values.size - count
        floor = np.partition(self._values, rest)[rest] if rest > 0 else TAKEN
        return np.flatnonzero(self._values >= max(floor, 0.0)), floor

    def _top(self, hot: NDArray[np.int64], num_wanted: int) -> tuple[NDArray[np.int64], float, Any]:
        """The `num_wanted` best of the hot rows, equals by key; and the bound of the others."""
        values, rest = self._values[hot], hot.size - num_wanted
        if rest <= 0:
            return hot[values >= 0], TAKEN, None
        below, edge = np.partition(values, (rest - 1, rest))[rest - 1 : rest + 1]
        if edge < 0:
            return hot[values >= 0], TAKEN, None
        above, ties = hot[values > edge], hot[values == edge]
        num_ties = num_wanted - len(above)
        top = np.concatenate([above, ties[:num_ties]])
        return top, below, self._keys[int(ties[num_ties])].as_py() if below == edge else None

    def _catch_up(self, rows: NDArray[np.int64], step: ShardStep) -> None:
        """Brings rows nearer to being up to date: by as many centres as each has seen, or a few."""
        seen = self._seen[rows]
        for start in np.unique(seen):
            stop = min(len(self._centres), start + min(max(start, _FIRST_CENTRES), _MOST_CENTRES))
            behind = rows[seen == start]
            for at in range(0, len(behind), _ROWS_AT_ONCE):
                block = behind[at : at + _ROWS_AT_ONCE]
                points = on_grid(self._embeddings[block], step.scale)
                distances = squared_distances(points, self._centres[start:stop]).min(axis=1)
                weights = self._weights[block]
                self._values[block] = _lowered(self._values[block], distances, weights=weights, step=step)
            self._seen[behind] = stop


def _lowered(
    values: NDArray[np.float64], distances: NDArray[np.float64], *, weights: NDArray[np.float64], step: ShardStep
) -> NDArray[np.float64]:
    """The values of rows that have these squared distances to further centres: never higher than they were."""
    powers = distances if step.power == 1 else distances**step.power
    return np.where(distances < step.limit, TAKEN, np.minimum(values, weights * powers))


def grid_scale(largest: float, *, dim: int) -> float:
    """The power of two by which embeddings are multiplied, then rounded, for their squared distances to be exact.

    With b bits below the largest component, each sum is under D × 2^(2b + 2), which has to fit 53 bits: b = 22 for 128
    dimensions, where float16 components above 2^−11 of the largest lie on the grid as they are. Smaller ones are
    rounded by at most 2^−23 of the largest.
    """
    bits = (_FLOAT64_BITS - 2 - math.ceil(math.log2(max(dim, 1)))) // 2
    return 2.0 ** (bits - math.frexp(largest)[1])


def on_grid(embeddings: NDArray[np.generic], scale: float) -> NDArray[np.float64]:
    """The embeddings in whole grid units."""
    return np.rint(embeddings.astype(np.float64) * scale)


def squared_distances(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, p) squared distances of points on the grid, exact."""
    products = points @ (-2.0 * others).T
    products += _squared_norms(others)
    products += _squared_norms(points)[:, None]
    return products


def _squared_norms(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("nd,nd->n", points, points)
