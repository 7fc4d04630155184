"""Farthest-first picking: the loop that picks from shards, several picks a round, as one machine would.

Each round the shards hand over their best rows, and a bound of all others. The loop picks from those, and brings them
up to date with each pick, while no row that stayed behind can be better.
"""

# n rows of a shard, D embedding, p centres, m candidates

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distributed.selection.distances import grid_scale, on_grid, squared_norms
from distributed.selection.shard import TAKEN, Bound, Candidates, Step, lowered

# Candidates of a round, from all shards together: few make a pick fast, many make rounds rare.
_FIRST_CANDIDATES = 4096
_FEWEST_CANDIDATES = 1024
_MOST_CANDIDATES = 65536

# Calls that method of every shard, with the arguments of each; the answers in the shards' order.
Ask = Callable[[str, Sequence[tuple[Any, ...]]], list[Any]]


class Picks(NamedTuple):
    """What was picked, in order."""

    keys: list[Any]
    values: NDArray[np.float64]  # of each when it was picked, in units of the embeddings; inf before the first centre


def pick_farthest(
    ask: Ask,
    *,
    num_shards: int,
    k: int,
    centres: NDArray[np.generic] | None = None,
    power: float = 1.0,
    max_per_group: int | None = None,
    min_distance: float = 0.0,
) -> Picks:
    """Up to `k` rows of all shards, one after another: the row of the highest value, which lowers those near it.

    A row's value is its weight × (squared distance to the nearest centre or pick) ** `power`.
    Equal values go by key, so without centres the first pick is the row of the highest weight and smallest key. Rows
    at distance 0 are picked last, not never. Fewer than `k` are picked if groups are full or the rest is too near.

    Args:
        ask: calls a method of every shard.
        num_shards: how many shards there are.
        k: the budget.
        centres: (p, D), what is labelled already; rows that are not finite are ignored.
        power: of the squared distance.
        max_per_group: at most so many of one group; rows without a group are free.
        min_distance: rows nearer than that (Euclidean) to a centre or pick are passed over.

    Raises:
        ValueError: the shards, or the centres, differ in D; a limit is out of range.
    """
    check_limits(k, max_per_group, min_distance)
    extents = ask("extent", [()] * num_shards)
    dim = extents[0][1]
    labelled = np.empty((0, dim)) if centres is None else centres[np.isfinite(centres).all(axis=1)]
    dims = {labelled.shape[1], *(found for _, found, _ in extents)}
    if len(dims) > 1:
        raise ValueError(f"expected embeddings of one size, found {sorted(dims)}")
    largest = max(float(np.abs(labelled).max(initial=0)), *(found for _, _, found in extents))
    scale = grid_scale(largest, dim=dim)
    # Shuffled: the first few, which every row is compared with, should not be frames of one drive.
    labelled = np.random.default_rng(0).permutation(labelled)
    step = Step(scale, power, (min_distance * scale) ** 2, labelled, np.empty(0, np.int64), [], 1)
    num_rows = [count for count, _, _ in extents]
    keys, values = _pick_in_rounds(ask, step, num_rows=num_rows, k=k, max_per_group=max_per_group)
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
    ask: Ask, step: Step, *, num_rows: list[int], k: int, max_per_group: int | None
) -> tuple[list[Any], NDArray[np.float64]]:
    keys: list[Any] = []
    values: list[float] = []
    counts: Counter[str] = Counter()
    taken: list[list[int]] = [[] for _ in num_rows]
    wanted = _FIRST_CANDIDATES
    while len(keys) < k:
        # Before there is a centre all rows are equally far, and one is all that can be picked.
        share = -(-wanted // len(num_rows)) if len(step.centres) or keys else 1
        steps = [(step._replace(taken=np.array(rows, np.int64), num_wanted=share),) for rows in taken]
        front = _Front(ask("advance", steps), step)
        centres, closed, taken = [], [], [[] for _ in num_rows]
        while len(keys) < k and (best := front.best()) is not None:
            keys.append(front.keys[best])
            values.append(float(front.values[best]))
            taken[front.shards[best]].append(int(front.rows[best]))
            centres.append(front.embeddings[best])
            front.take(best)
            group = front.groups[best]
            counts[group] += 1
            if group is not None and counts[group] == max_per_group:
                closed.append(group)
                front.close(group)
        if not centres:
            break
        if share > 1:
            wanted = _next_wanted(wanted, work=len(centres) * len(front.values), num_rows=sum(num_rows))
        step = step._replace(centres=np.stack(centres), closed=closed)
    return keys, np.array(values)


def _next_wanted(wanted: int, *, work: int, num_rows: int) -> int:
    """How many candidates the next round needs, for rows looked at by the driver to be about those of the shards."""
    if work < num_rows:
        return min(2 * wanted, _MOST_CANDIDATES)
    return wanted if work < 4 * num_rows else max(wanted // 2, _FEWEST_CANDIDATES)


class _Front:
    """The candidates of all shards, by key; it is picked from until what stayed behind might be better."""

    def __init__(self, answers: Sequence[Candidates], step: Step) -> None:
        self._step = step
        keys = [key for answer in answers for key in answer.keys]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        self.keys = [keys[row] for row in order]
        self.groups = np.array([group for answer in answers for group in answer.groups], object)[order]
        self.shards = np.repeat(np.arange(len(answers)), [len(answer.rows) for answer in answers])[order]
        self.rows = np.concatenate([answer.rows for answer in answers])[order]
        self.embeddings = np.concatenate([answer.embeddings for answer in answers])[order]
        self.values = np.concatenate([answer.values for answer in answers])[order]
        self._weights = np.concatenate([answer.weights for answer in answers])[order]
        self._points = on_grid(self.embeddings, step.scale)
        self._norms = squared_norms(self._points)
        value = max(answer.bound.value for answer in answers)
        bounds = [answer.bound.key for answer in answers if answer.bound.value == value]
        self._bound = Bound(value, None if None in bounds else min(bounds))

    def best(self) -> int | None:
        """The row to pick, if it is certain."""
        if not len(self.values):
            return None
        row = int(self.values.argmax())  # the first of equals: that of the smallest key
        value, bound = self.values[row], self._bound
        if value < 0 or value < bound.value:
            return None
        is_first = value > bound.value or (bound.key is not None and self.keys[row] < bound.key)
        return row if is_first else None

    def take(self, row: int) -> None:
        """The row is picked: it is a centre now."""
        distances = self._points @ (-2.0 * self._points[row]) + (self._norms + self._norms[row])
        self.values = lowered(self.values, distances, weights=self._weights, step=self._step)
        self.values[row] = TAKEN

    def close(self, group: str) -> None:
        """The group is full."""
        self.values[self.groups == group] = TAKEN
