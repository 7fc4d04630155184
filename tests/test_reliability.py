"""Reliability: bins and errors by hand, ties in one bin, and a calibration that is off by as much as it is off."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from model.calibration import Calibration, fit_calibration
from model.reliability import Pair, calibration_error, reliability_bins

NAN = float("nan")
# Expects at predicted losses 0 to 1: true losses 0 to 10, PCK 1 to 0, failures 0 to 1.
LINE = Calibration(
    predicted_loss=(0.0, 1.0), true_loss=(0.0, 10.0), pck=(1.0, 0.0), failure_share=(0.0, 1.0), num_images=50
)


def test_the_bins_are_what_they_are_by_hand() -> None:
    predicted = np.array([0.9, 0.1, 0.2, 0.3, NAN, 0.5, 0.4])
    true = np.array([8.0, 1.0, NAN, 3.0, 4.0, 6.0, 9.0])
    pck = np.array([0.1, 0.9, 0.8, 0.4, 0.5, 0.6, NAN])
    bins = reliability_bins(LINE, predicted, expected_pck=LINE.expected_pck(predicted), true_loss=true, pck=pck)
    # Images at 0.1, 0.3, 0.5 and 0.9; the last edge belongs to the last bin, which so has two of them.
    assert [(each.lowest, each.highest, each.num_images) for each in bins] == [
        (0.1, 0.1, 1),
        (0.3, 0.3, 1),
        (0.5, 0.9, 2),
    ]
    assert [each.true_loss for each in bins] == [
        Pair(expected=1.0, observed=1.0),
        Pair(expected=3.0, observed=3.0),
        Pair(expected=7.0, observed=7.0),
    ]
    assert bins[2].pck.expected == pytest.approx(0.3)
    assert bins[2].pck.observed == pytest.approx(0.35)
    assert bins[1].failure_share == Pair(expected=0.3, observed=1.0)
    assert bins[2].failure_share == Pair(expected=0.7, observed=0.5)


def test_bins_hold_every_image_once_and_are_of_about_equal_size() -> None:
    x = np.random.default_rng(0).random(997)
    bins = reliability_bins(LINE, x, expected_pck=LINE.expected_pck(x), true_loss=10 * x, pck=1 - x)
    assert sum(each.num_images for each in bins) == 997
    assert len(bins) == 10
    assert {each.num_images for each in bins} <= {99, 100, 101}
    assert all(a.highest < b.lowest for a, b in itertools.pairwise(bins))


def test_equal_predicted_losses_share_a_bin() -> None:
    x = np.repeat([0.2, 0.4, 0.6], [50, 30, 20])
    bins = reliability_bins(LINE, x, expected_pck=LINE.expected_pck(x), true_loss=10 * x, pck=1 - x)
    assert sum(each.num_images for each in bins) == 100
    assert all(a.highest < b.lowest for a, b in itertools.pairwise(bins))
    constant = reliability_bins(
        LINE, np.full(9, 0.3), expected_pck=np.full(9, 0.7), true_loss=np.arange(9.0), pck=np.full(9, 0.7)
    )
    assert [(each.num_images, each.true_loss.observed) for each in constant] == [(9, 4.0)]


def test_nothing_has_no_bins() -> None:
    assert reliability_bins(LINE, np.empty(0), expected_pck=np.empty(0), true_loss=np.empty(0), pck=np.empty(0)) == []
    assert reliability_bins(LINE, np.array([NAN]), expected_pck=np.ones(1), true_loss=np.ones(1), pck=np.ones(1)) == []
    assert len(reliability_bins(LINE, np.ones(1), expected_pck=np.ones(1), true_loss=np.ones(1), pck=np.ones(1))) == 1


def test_the_error_by_hand() -> None:
    pairs = [Pair(expected=0.5, observed=0.7), Pair(expected=0.9, observed=0.8)]
    assert calibration_error(pairs, [1, 3]) == pytest.approx((0.2 + 3 * 0.1) / 4)
    assert math.isnan(calibration_error([], []))


def test_a_fitted_calibration_holds_on_fresh_images_and_not_when_they_are_worse() -> None:
    def images(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = rng.random(4000)
        return x, x + rng.normal(0, 0.1, 4000), rng.binomial(14, 1 - 0.6 * x) / 14

    x, true, pck = images(0)
    calibration = fit_calibration(x, true_loss=true, pck=pck)
    assert calibration is not None
    x, true, pck = images(1)

    def error(shift: float) -> float:
        bins = reliability_bins(
            calibration, x, expected_pck=calibration.expected_pck(x), true_loss=true + shift, pck=pck
        )
        return calibration_error([each.true_loss for each in bins], [each.num_images for each in bins])

    assert error(0.0) < 0.02
    assert error(0.5) == pytest.approx(0.5, abs=0.02)
