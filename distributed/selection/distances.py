"""Exact squared distances: embeddings on a grid on which every sum is an integer that float64 holds.

So in ‖x‖² − 2x·c + ‖c‖² nothing is ever rounded, whatever the order of its terms: a row's distance depends on neither
the rows beside it nor the machine, and a matrix product may compute it.
"""

# n rows, D embedding, p others

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_FLOAT64_BITS = 53


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


def squared_norms(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) squared lengths of (n, D) points."""
    return np.einsum("nd,nd->n", points, points)


def squared_distances(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, p) squared distances of points on the grid, exact."""
    products = points @ (-2.0 * others).T
    products += squared_norms(others)
    products += squared_norms(points)[:, None]
    return products
