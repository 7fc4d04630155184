"""Two bundles on the same labelled rows: the difference of their PCK with its interval, overall and by slice.

# N images
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.evaluation.rows import Observed
from distributed.evaluation.slices import MOST_VALUES, Column
from distributed.evaluation.summary import json_number

MARGIN = 0.01  # of PCK that the challenger may be worse, at the lower end of the interval, over all rows
SLICE_MARGIN = 0.03
SLICE_IMAGES = 200  # fewer make an interval so wide that equal bundles would fail by chance
_RESAMPLES = 2000
_LEVEL = 0.95

Counts = NDArray[np.int64]


def compare_rows(
    challenger: Observed, champion: Observed, *, columns: Mapping[str, Column], is_slice: bool
) -> list[dict[str, Any]]:
    """The comparison over all rows, and then of each slice, as JSON values.

    Each has `column` and `value` (null for all rows), `num_images`, both PCKs, `pck_difference` (challenger −
    champion), its 95 % `interval`, and `margin`: the interval may not begin below −margin. A slice of fewer than
    `SLICE_IMAGES` images has none. An image that only one of them could score counts as wrong for the other.

    Args:
        challenger: the rows as the one bundle predicted them.
        champion: the same rows in the same order, as the other did.
        columns: from `read_columns` of the rows.
        is_slice: the rows as a whole are held to what a slice is.
    """
    is_judged = (challenger.num_judged > 0) & ~(challenger.is_error & champion.is_error)
    counts = np.stack([_right(challenger), _right(champion), challenger.num_judged], axis=1) * is_judged[:, None]
    compared = [{"column": None, "value": None, **_compare(counts, is_slice=is_slice)}]
    for name, column in columns.items():
        if len(column.values) > MOST_VALUES:
            continue
        rows, codes = column.pairs
        for value, code in sorted(column.values.items(), key=lambda item: (item[0] is None, item[0] or "")):
            own = _compare(counts[rows[codes == code]], is_slice=True)
            compared.append({"column": name, "value": value, **own})
    return compared


def is_worse(compared: dict[str, Any]) -> bool:
    """True if the challenger may be worse than the margin allows."""
    return compared["margin"] is not None and compared["interval"][0] < -compared["margin"]


def _right(rows: Observed) -> Counts:
    return np.where(rows.is_error, 0, rows.num_right)


def _compare(counts: Counts, *, is_slice: bool) -> dict[str, Any]:
    """Both PCKs and their difference, from (N, 3) keypoints: right by the challenger, by the champion, and judged."""
    counts = counts[counts[:, 2] > 0]
    right, rival, judged = counts.sum(axis=0)
    low, high = _difference_interval(counts)
    counts_here = not is_slice or len(counts) >= SLICE_IMAGES
    return {
        "num_images": len(counts),
        "pck_challenger": json_number(right / judged) if judged else None,
        "pck_champion": json_number(rival / judged) if judged else None,
        "pck_difference": json_number((right - rival) / judged) if judged else None,
        "interval": [json_number(low), json_number(high)],
        "margin": (SLICE_MARGIN if is_slice else MARGIN) if counts_here and judged else None,
    }


def _difference_interval(counts: Counts) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of PCK; images are resampled, each with both its predictions.

    Images of equal counts are one kind, of which there are few: how often each kind is drawn is multinomial. NaN for
    no images.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
    """
    if not len(counts):
        return float("nan"), float("nan")
    kinds, numbers = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(counts), numbers / len(counts), size=_RESAMPLES)
    right, rival, judged = (drawn @ kinds).T
    low, high = np.quantile((right - rival) / judged, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
