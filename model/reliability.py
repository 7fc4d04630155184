"""Whether a calibration keeps what it promises: in bins of the predicted loss, what it expects and what came.

# N images
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.calibration import FAILURE_PCK, Calibration

NUM_BINS = 10

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A mean that was expected and the one that was observed."""

    expected: float
    observed: float


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images of neighbouring predicted losses."""

    lowest: float  # predicted loss
    highest: float
    num_images: int
    true_loss: Pair
    pck: Pair
    failure_share: Pair  # of images with a PCK under `FAILURE_PCK`


def reliability_bins(
    calibration: Calibration, predicted_loss: Floats, *, expected_pck: Floats, true_loss: Floats, pck: Floats
) -> list[ReliabilityBin]:
    """Ten bins of about as many images each, by rising predicted loss; images with a NaN are left out.

    Equal predicted losses share a bin: with many ties there are fewer bins, and none without images.

    Args:
        calibration: says what true loss and what failures to expect.
        predicted_loss: (N,).
        expected_pck: (N,) of each image.
        true_loss: (N,) observed.
        pck: (N,) observed, of each image.
    """
    columns = (predicted_loss, expected_pck, true_loss, pck)
    is_known = np.logical_and.reduce([np.isfinite(values) for values in columns])
    x, expected, loss, right = (np.asarray(values, np.float64)[is_known] for values in columns)
    if not len(x):
        return []
    edges = np.unique(np.quantile(x, np.linspace(0, 1, NUM_BINS + 1), method="lower"))
    bin_of = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(0, len(edges) - 2))
    return [
        _bin(calibration, *(values[bin_of == index] for values in (x, expected, loss, right)))
        for index in np.unique(bin_of)
    ]


def _bin(calibration: Calibration, x: Floats, expected_pck: Floats, loss: Floats, right: Floats) -> ReliabilityBin:
    def pair(expected: Floats, observed: Floats) -> Pair:
        return Pair(expected=float(expected.mean()), observed=float(observed.mean()))

    return ReliabilityBin(
        lowest=float(x.min()),
        highest=float(x.max()),
        num_images=len(x),
        true_loss=pair(calibration.expected_true_loss(x), loss),
        pck=pair(expected_pck, right),
        failure_share=pair(calibration.failure_probability(x), np.asarray(right < FAILURE_PCK, np.float64)),
    )


def calibration_error(pairs: Sequence[Pair], counts: Sequence[int]) -> float:
    """Expected calibration error: mean distance of observed from expected, bins weighted by images; NaN for none.

    Source: Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    Theirs is of class probabilities in bins of equal width; ours of any expectation, in bins of equal counts.
    """
    if not sum(counts):
        return float("nan")
    return float(np.average([abs(pair.observed - pair.expected) for pair in pairs], weights=counts))
