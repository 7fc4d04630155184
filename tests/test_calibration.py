"""What a predicted loss means: isotonic maps against a brute-force fit, and what they give beyond their knots."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.bundle import BUNDLE_FILE, Bundle, dump_bundle, load_bundle
from model.calibration import FAILURE_PCK, MIN_IMAGES, Calibration, fit_calibration, read_calibration
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
