"""Calibration: monotone maps from the predicted loss to the true loss, PCK and share of failures to expect.

Reliability compares, in bins of the predicted loss, what a calibration expects with what was observed.

# N images, M knots
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import BundleError

FAILURE_PCK = 0.5  # an image with fewer of its keypoints right is a failure
MIN_IMAGES = 50  # fewer say little about the tail, which is what gets selected
_MAX_KNOTS = 65
NUM_BINS = 10  # of a reliability diagram
_DIGITS = 7  # of a number in the JSON

Floats = NDArray[np.floating]
Numbers = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Knots of piecewise linear maps; beyond the first and the last they stay level."""

    predicted_loss: Numbers  # (M,) ascending
    true_loss: Numbers  # (M,) never falling
    pck: Numbers  # (M,) never rising
    failure_share: Numbers  # (M,) of images with a PCK under `FAILURE_PCK`; never falling
    num_images: int  # that the maps were fitted to

    def expected_true_loss(self, predicted_loss: Floats) -> NDArray[np.float64]:
        """(N,) true loss to expect; NaN where `predicted_loss` (N,) is."""
        return self._apply(predicted_loss, self.true_loss)

    def expected_pck(self, predicted_loss: Floats) -> NDArray[np.float64]:
        """(N,) PCK to expect; NaN where `predicted_loss` (N,) is."""
        return self._apply(predicted_loss, self.pck)

    def failure_probability(self, predicted_loss: Floats) -> NDArray[np.float64]:
        """(N,) probability that an image is a failure; NaN where `predicted_loss` (N,) is."""
        return self._apply(predicted_loss, self.failure_share)

    def _apply(self, predicted_loss: Floats, values: Numbers) -> NDArray[np.float64]:
        return np.interp(np.asarray(predicted_loss, np.float64), self.predicted_loss, values)


def read_calibration(fields: dict[str, Any] | None) -> Calibration | None:
    """A calibration from its JSON.

    Raises:
        BundleError: the fields are not those of one.
    """
    if fields is None:
        return None
    try:
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        found = Calibration(**known)
        values = np.array([found.predicted_loss, found.true_loss, found.pck, found.failure_share], np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise BundleError(f"calibration: expected knots, found {str(fields)[:60]}") from error
    if not (values.size and np.isfinite(values).all() and (np.diff(values[0]) > 0).all()):
        raise BundleError(f"calibration: expected ascending knots, found {str(fields)[:60]}")
    return found


def fit_calibration(predicted_loss: Floats, *, true_loss: Floats, pck: Floats, copies: int = 1) -> Calibration | None:
    """The maps that fit images best among those that never go the wrong way; None with too few images.

    Fitted by isotonic regression, images with a NaN left out, and read off at quantiles of the predicted loss, the
    lowest and the highest among them. Images that taught the predicted loss itself flatter it.

    Args:
        predicted_loss: (N,).
        true_loss: (N,).
        pck: (N,) of each image.
        copies: how often each image is among the N.

    Source: Zadrozny & Elkan, "Transforming Classifier Scores into Accurate Multiclass Probability Estimates", KDD 2002.
    """
    is_known = np.isfinite(predicted_loss) & np.isfinite(true_loss) & np.isfinite(pck)
    if is_known.sum() < MIN_IMAGES * copies:
        return None
    x, loss, right = (np.asarray(values, np.float64)[is_known] for values in (predicted_loss, true_loss, pck))
    knots = np.unique(np.round(np.quantile(x, np.linspace(0, 1, _MAX_KNOTS)), _DIGITS))
    return Calibration(
        predicted_loss=_rounded(knots),
        true_loss=_rounded(_isotonic(x, loss, knots, increasing=True)),
        pck=_rounded(_isotonic(x, right, knots, increasing=False)),
        failure_share=_rounded(_isotonic(x, (right < FAILURE_PCK).astype(np.float64), knots, increasing=True)),
        num_images=int(is_known.sum()) // copies,
    )


def _isotonic(x: Floats, y: Floats, knots: Floats, *, increasing: bool) -> NDArray[np.float64]:
    """(M,) the isotonic fit of y to x at the knots; images of equal x count as one."""
    from scipy.optimize import isotonic_regression  # half a second, and only fitting needs it

    values, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(index, weights=y) / counts
    fitted = isotonic_regression(means, weights=counts, increasing=increasing).x
    return np.interp(knots, values, fitted)


def _rounded(values: Floats) -> Numbers:
    return tuple(round(float(value), _DIGITS) for value in values)


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
