"""The analysis against the paper's 13 printed numbers and a Monte Carlo."""

import math

import numpy as np
import pytest

from model.analysis import expected_target, probability_close

# Both rows of the paper, rounded as printed. It does not print its parameters; these give all 13 numbers.
PRINTED = {"k": 4, "theta": 0.0666}
P_CLOSE = [(0.02, 0.094), (0.04, 0.185), (0.06, 0.274), (0.08, 0.358), (0.1, 0.437), (0.125, 0.527), (0.15, 0.607)]
TARGETS = [(0.0, 0.5), (0.1, 0.39), (0.2, 0.30), (0.3, 0.25), (0.4, 0.21), (0.5, 0.18)]


@pytest.mark.parametrize(("delta", "printed"), P_CLOSE)
def test_probability_of_a_close_pair_matches_the_paper(delta: float, printed: float) -> None:
    assert round(probability_close(delta, **PRINTED), 3) == printed
    # 1/15, the round number next to it, is 0.00003 short of the first one's last digit.
    assert probability_close(delta, k=4, theta=1 / 15) == pytest.approx(printed, abs=5.5e-4)


@pytest.mark.parametrize(("delta", "printed"), TARGETS)
def test_expected_target_matches_the_paper(delta: float, printed: float) -> None:
    assert round(expected_target(delta, **PRINTED), 2) == printed
    assert round(expected_target(delta, k=4, theta=1 / 15), 2) == printed


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_both_match_a_simulation(k: int) -> None:
    num_pairs, theta, delta = 400_000, 0.25, 0.3
    x, y = np.random.default_rng(k).gamma(k, theta, (2, num_pairs))
    gap = np.abs(x - y)
    # Four standard errors, over the pairs near delta: across so short a range the target hardly varies.
    near = np.abs(gap - delta) < 0.01
    targets = (np.minimum(x, y) / (x + y))[near]
    assert probability_close(delta, k=k, theta=theta) == pytest.approx((gap <= delta).mean(), abs=2 / num_pairs**0.5)
    assert expected_target(delta, k=k, theta=theta) == pytest.approx(
        targets.mean(), abs=4 * targets.std() / len(targets) ** 0.5
    )


def test_exponential_losses_have_an_exponential_gap() -> None:
    assert probability_close(0.7, k=1, theta=2.0) == pytest.approx(1 - math.exp(-0.35))


def test_a_pair_without_a_gap_is_never_closer_and_has_the_target_one_half() -> None:
    assert probability_close(0.0, **PRINTED) == 0
    assert expected_target(0.0, **PRINTED) == 0.5
    assert expected_target(1e-9, **PRINTED) == pytest.approx(0.5, abs=1e-7)


def test_only_the_gap_in_units_of_the_scale_matters() -> None:
    assert probability_close(0.3, k=3, theta=0.1) == pytest.approx(probability_close(30, k=3, theta=10))
    assert expected_target(0.3, k=3, theta=0.1) == pytest.approx(expected_target(30, k=3, theta=10))


@pytest.mark.parametrize("k", [1, 4, 300])
def test_a_vast_gap_is_certain_to_cover_and_leaves_no_target(k: int) -> None:
    assert probability_close(1e6, k=k, theta=1.0) == pytest.approx(1)
    # X is then a Gamma of shape k and half the scale, beside which delta is everything.
    assert expected_target(1e6, k=k, theta=1.0) == pytest.approx(k / 2 / 1e6, rel=1e-3)


@pytest.mark.parametrize("function", [probability_close, expected_target])
@pytest.mark.parametrize(("delta", "k", "theta"), [(-0.1, 4, 1.0), (0.1, 0, 1.0), (0.1, 4, 0.0), (math.nan, 4, 1.0)])
def test_impossible_parameters_are_refused(function, delta: float, k: int, theta: float) -> None:
    with pytest.raises(ValueError, match="expected delta >= 0"):
        function(delta, k=k, theta=theta)
