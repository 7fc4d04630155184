"""Calibration: isotonic maps against a brute-force fit, and their values beyond the knots."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.bundle import Bundle, dump_bundle, load_bundle
from model.calibration import (
    FAILURE_PCK,
    MIN_IMAGES,
    Calibration,
    Pair,
    calibration_error,
    fit_calibration,
    read_calibration,
    reliability_bins,
)
from model.description import BUNDLE_FILE
from model.errors import BundleError

COUNT = 4000


def noisy(count: int = COUNT, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted losses, true losses that rise with them on average, PCKs that fall."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=count)
    true = np.exp(predicted) * rng.lognormal(sigma=0.3, size=count)
    pck = rng.binomial(14, 1 / (1 + np.exp(2 * predicted))) / 14
    return predicted, true, pck


def fitted(count: int = COUNT) -> Calibration:
    predicted, true, pck = noisy(count)
    found = fit_calibration(predicted, true_loss=true, pck=pck)
    assert found is not None
    return found


def pool_adjacent_violators(values: list[float]) -> list[float]:
    """The rising fit, by the textbook: neighbours that fall are pooled until none does."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    return [float(np.mean(block)) for block in blocks for _ in block]


def test_maps_go_one_way_and_meet_the_truth_on_fresh_images() -> None:
    calibration = fitted()
    assert (np.diff(calibration.true_loss) >= 0).all()
    assert (np.diff(calibration.pck) <= 0).all()
    assert (np.diff(calibration.failure_share) >= 0).all()
    predicted, true, pck = noisy(seed=1)
    for low, high in ((-1.5, -0.5), (-0.5, 0.5), (0.5, 1.5)):
        here = (predicted > low) & (predicted < high)
        assert calibration.expected_true_loss(predicted[here]).mean() == pytest.approx(true[here].mean(), rel=0.1)
        assert calibration.expected_pck(predicted[here]).mean() == pytest.approx(pck[here].mean(), abs=0.03)
        share = (pck[here] < FAILURE_PCK).mean()
        assert calibration.failure_probability(predicted[here]).mean() == pytest.approx(share, abs=0.05)


@given(st.lists(st.integers(0, 14), min_size=MIN_IMAGES, max_size=60))
def test_few_images_are_fitted_as_by_the_textbook(hits: list[int]) -> None:
    """With fewer images than knots every image is a knot, but for quantiles that fall between two."""
    predicted = np.arange(len(hits), dtype=np.float64)
    right = np.array(hits) / 14
    found = fit_calibration(predicted, true_loss=right, pck=right)
    assert found is not None
    expected = pool_adjacent_violators(list(right))
    at_knots = np.interp(found.predicted_loss, predicted, expected)
    assert np.allclose(found.true_loss, at_knots, atol=1e-6)


def test_beyond_the_knots_nothing_changes_and_nan_stays_nan() -> None:
    calibration = fitted()
    ends = calibration.expected_pck(np.array([-np.inf, -100.0, np.nan, 100.0, np.inf]))
    assert ends[0] == ends[1] == calibration.pck[0]
    assert ends[3] == ends[4] == calibration.pck[-1]
    assert np.isnan(ends[2])


def test_images_with_unknowns_are_left_out_and_too_few_give_none() -> None:
    predicted, true, pck = noisy(MIN_IMAGES + 3)
    predicted[0], true[1], pck[2] = np.nan, np.nan, np.nan
    found = fit_calibration(predicted, true_loss=true, pck=pck)
    assert found is not None
    assert found.num_images == MIN_IMAGES
    assert found == fit_calibration(predicted[3:], true_loss=true[3:], pck=pck[3:])
    assert fit_calibration(predicted[4:], true_loss=true[4:], pck=pck[4:]) is None


def test_equal_predictions_count_as_one() -> None:
    ones = np.ones(MIN_IMAGES)
    found = fit_calibration(ones, true_loss=np.arange(MIN_IMAGES) / 10, pck=ones)
    assert found is not None
    assert (len(found.predicted_loss), found.true_loss) == (1, (2.45,))


def test_a_bundle_keeps_its_calibration(bundle: Bundle) -> None:
    calibration = fitted()
    files = dump_bundle(bundle.model, training={}, metrics={}, calibration=calibration)
    assert load_bundle(files).calibration == calibration
    assert load_bundle(dump_bundle(bundle.model, training={}, metrics={})).calibration is None
    assert load_bundle(files).bundle_id != load_bundle(dump_bundle(bundle.model, training={}, metrics={})).bundle_id


@pytest.mark.parametrize(
    "wrong",
    [{"pck": [1.0]}, {"predicted_loss": [2.0] * 65}, {"pck": ["a"] * 65}, {"extra": 1}, {"pck": [float("nan")] * 65}],
)
def test_a_broken_calibration_is_no_bundle(bundle: Bundle, wrong: dict[str, object]) -> None:
    files = dump_bundle(bundle.model, training={}, metrics={}, calibration=fitted())
    description = json.loads(files[BUNDLE_FILE])
    description["calibration"] = {**dataclasses.asdict(fitted()), **wrong}
    with pytest.raises(BundleError, match=r"calibration"):
        load_bundle({**files, BUNDLE_FILE: json.dumps(description).encode()})


def test_predicted_losses_that_hardly_differ_give_ascending_knots():
    predicted = 0.02 + np.linspace(0, 1e-6, 60)
    found = fit_calibration(predicted, true_loss=predicted, pck=np.full(60, 0.7))
    assert found is not None
    assert (np.diff(found.predicted_loss) > 0).all()
    assert read_calibration(dataclasses.asdict(found)) == found


# Reliability


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
