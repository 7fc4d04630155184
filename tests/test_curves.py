"""Heads and risk-coverage curves against every order that the ties allow, hand-worked areas, and the best order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.curves import (
    area_under_risks,
    area_under_sparsification_error,
    coverage_risks,
    head_means,
    head_size,
    head_weights,
    mean_of_heads,
)

SMALL = st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 9)), min_size=1, max_size=6)


def orders(score: np.ndarray) -> list[tuple[int, ...]]:
    """All orders by falling score."""
    return [
        order
        for order in itertools.permutations(range(len(score)))
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order))
    ]


def split(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    score, values = np.array(rows, float).T
    return score, values


@settings(deadline=None, max_examples=60)
@given(SMALL)
def test_heads_are_the_mean_over_all_orders_that_ties_allow(rows: list[tuple[int, int]]) -> None:
    score, values = split(rows)
    allowed = orders(score)
    expected = [
        np.mean([values[list(order[:count])].mean() for order in allowed]) for count in range(1, len(score) + 1)
    ]
    np.testing.assert_allclose(head_means(score, values), expected, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(SMALL, st.integers(0, 7))
def test_weights_are_the_share_of_orders_that_have_the_image_in_the_head(rows: list, count: int) -> None:
    score, _ = split(rows)
    allowed = orders(score)
    expected = [np.mean([image in order[:count] for order in allowed]) for image in range(len(score))]
    weights = head_weights(score, count=count)
    np.testing.assert_allclose(weights, expected, atol=1e-12)
    assert weights.sum() == pytest.approx(min(count, len(score)))


def test_a_head_by_hand() -> None:
    score, pck = np.array([1.0, 5.0, 3.0, 5.0]), np.array([1.0, 0.0, 0.5, 0.4])
    np.testing.assert_allclose(head_means(score, pck), [0.2, 0.2, 0.3, 0.475])
    np.testing.assert_allclose(mean_of_heads(score, pck, shares=(0.01, 0.5, 0.75, 1.0)), [0.2, 0.2, 0.3, 0.475])


@pytest.mark.parametrize(
    ("num_images", "share", "size"), [(1, 0.01, 1), (100, 0.1, 10), (24, 0.1, 2), (26, 0.1, 3), (7, 1.0, 7)]
)
def test_a_head_has_one_image_at_least(num_images: int, share: float, size: int) -> None:
    assert head_size(num_images, share) == size


def test_areas_by_hand() -> None:
    risk = np.array([0.0, 1.0, 0.5])
    # Best first: 0, 0.25, 0.5. Worst first: 1, 0.75, 0.5.
    assert area_under_risks(np.array([1.0, 3.0, 2.0]), risk) == pytest.approx(0.25)
    assert area_under_risks(np.array([3.0, 1.0, 2.0]), risk) == pytest.approx(0.75)
    np.testing.assert_allclose(coverage_risks(np.array([1.0, 3.0, 2.0]), risk), [0, 0.25, 0.5])


def test_a_score_that_says_nothing_has_the_area_of_chance() -> None:
    risk = np.array([0.3, 0.9, 0.0, 0.4])
    assert area_under_risks(np.zeros(4), risk) == pytest.approx(risk.mean())
    np.testing.assert_allclose(coverage_risks(np.zeros(4), risk), risk.mean())


def test_chance_is_the_mean_over_all_orders() -> None:
    risk = np.array([0.3, 0.9, 0.0, 0.4, 0.4])
    areas = [area_under_risks(np.array(order, float), risk) for order in itertools.permutations(range(5))]
    assert np.mean(areas) == pytest.approx(risk.mean())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_perfect_predictor_has_the_lowest_area_of_all_orders(losses: list[int]) -> None:
    risk = np.array(losses, float)
    lowest = min(area_under_risks(np.array(order, float), risk) for order in itertools.permutations(range(len(risk))))
    assert area_under_risks(risk, risk) == pytest.approx(lowest)
    assert area_under_risks(np.exp(risk) - 7, risk) == area_under_risks(risk, risk)


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    score, values = rng.integers(0, 9, 200).astype(float), rng.random(200)
    order = rng.permutation(200)
    np.testing.assert_allclose(head_means(score, values), head_means(score[order], values[order]), atol=1e-12)
    assert area_under_risks(score, values) == pytest.approx(area_under_risks(score[order], values[order]))


def test_minus_zero_ties_with_zero() -> None:
    np.testing.assert_allclose(head_means(np.array([0.0, -0.0]), np.array([1.0, 0.0])), [0.5, 0.5])


def test_nothing_has_no_curve_and_one_image_has_its_own() -> None:
    none, one = np.empty(0), np.array([0.3])
    assert math.isnan(area_under_risks(none, none))
    assert np.isnan(mean_of_heads(none, none, shares=(0.1, 1.0))).tolist() == [True, True]
    assert head_means(none, none).shape == (0,)
    assert head_weights(none, count=1).shape == (0,)
    assert area_under_risks(one, one) == 0.3
    assert mean_of_heads(np.array([7.0]), one, shares=(0.1, 1.0)).tolist() == [0.3, 0.3]


def test_the_sparsification_error_is_nothing_for_the_oracle_and_worked_by_hand() -> None:
    risk = np.array([0.0, 1.0, 2.0])
    assert area_under_sparsification_error(risk, risk) == 0
    # Kept by the reversed ranking: 2, then 1.5, then 1; by the oracle: 0, 0.5, 1. Areas 1.5 and 0.5, mean risk 1.
    assert area_under_sparsification_error(-risk, risk) == pytest.approx(1.0)
    assert np.isnan(area_under_sparsification_error(risk[:0], risk[:0]))
