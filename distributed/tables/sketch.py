"""Sketches of distributions: quantiles, and the number of values.

Exact up to `NUM_QUANTILES` values; above that, shares are off by at most 1 / (2 x `NUM_QUANTILES`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_QUANTILES = 128


class Sketch(NamedTuple):
    """A distribution in at most `NUM_QUANTILES` numbers."""

    num_values: int
    quantiles: tuple[float, ...]  # at most `NUM_QUANTILES`, ascending; each stands for an equal share of the values


def sketch(values: NDArray[np.floating]) -> Sketch:
    """The sketch of some values (n,), in any order; all of them where there are not more than `NUM_QUANTILES`."""
    ordered = np.sort(values)
    count = min(NUM_QUANTILES, len(ordered))
    middles = ((np.arange(count) + 0.5) / max(count, 1) * len(ordered)).astype(np.int64)
    return Sketch(len(ordered), tuple(ordered[middles].astype(np.float64).tolist()))


def merge_sketches(sketches: Iterable[Sketch]) -> Sketch:
    """The sketch of all values together: exact for one; of several, each one's shares are taken as points."""
    filled = [each for each in sketches if each.quantiles]
    if not filled:
        return Sketch(0, ())
    values = np.concatenate([each.quantiles for each in filled])
    weights = np.concatenate([np.full(len(each.quantiles), each.num_values / len(each.quantiles)) for each in filled])
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    count = min(NUM_QUANTILES, len(values))
    index = np.searchsorted(reached, (np.arange(count) + 0.5) / count * reached[-1])
    merged = values[order][np.minimum(index, len(values) - 1)]
    return Sketch(sum(each.num_values for each in filled), tuple(merged.tolist()))
