"""PCK, torso and head lengths and correlations against hand-worked cases."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.metrics import (
    area_under_risks,
    area_under_sparsification_error,
    coverage_risks,
    head_lengths,
    kendall,
    mean_of_top,
    normalised_distances,
    pck,
    pck_per_image,
    pck_per_keypoint,
    pearson,
    spearman,
    top_means,
    top_size,
    top_weights,
    torso_lengths,
)
from model.skeleton import COCO, LSP

NAN = math.nan
# Two images, three keypoints; distance as a share of the reference length.
DISTANCES = np.array([[0.1, 0.2, 0.3], [NAN, 0.2001, NAN]])


def all_labelled(num_images: int, num_keypoints: int) -> np.ndarray:
    return np.ones((num_images, num_keypoints), bool)


def lsp_pose() -> tuple[np.ndarray, np.ndarray]:
    """One LSP image: left shoulder to right hip 50 px, right shoulder to left hip 13 px, head 10 px."""
    keypoints = np.zeros((1, 14, 2))
    keypoints[0, LSP.keypoint_names.index("left_shoulder")] = (30, 40)
    keypoints[0, LSP.keypoint_names.index("right_shoulder")] = (105, 12)
    keypoints[0, LSP.keypoint_names.index("left_hip")] = (100, 0)
    keypoints[0, LSP.keypoint_names.index("neck")] = (7, 0)
    keypoints[0, LSP.keypoint_names.index("head_top")] = (1, 8)
    return keypoints, all_labelled(1, 14)


def test_distances_are_euclidean_over_the_images_own_reference_length() -> None:
    true = np.zeros((2, 1, 2))
    predicted = np.array([[[3.0, 4.0]], [[3.0, 4.0]]])
    distances = normalised_distances(predicted, true, all_labelled(2, 1), reference_lengths=np.array([10.0, 50.0]))
    np.testing.assert_allclose(distances, [[0.5], [0.1]])
    assert distances.dtype == np.float64


@pytest.mark.parametrize("reference", [NAN, 0.0, -3.0, math.inf])
def test_an_image_without_a_usable_reference_length_is_not_judged(reference: float) -> None:
    lengths = np.array([reference, 1.0])
    distances = normalised_distances(
        np.ones((2, 2, 2)), np.ones((2, 2, 2)), all_labelled(2, 2), reference_lengths=lengths
    )
    np.testing.assert_array_equal(distances, [[NAN, NAN], [0, 0]])


def test_an_unlabelled_keypoint_is_not_judged_whatever_its_position() -> None:
    true = np.array([[[0.0, 0.0], [NAN, NAN], [9.0, 9.0]]])
    labelled = np.array([[True, False, False]])
    distances = normalised_distances(np.zeros((1, 3, 2)), true, labelled, reference_lengths=np.ones(1))
    np.testing.assert_array_equal(distances, [[0, NAN, NAN]])


def test_a_prediction_of_nan_is_a_miss_and_not_a_gap() -> None:
    predicted = np.array([[[NAN, 0.0], [0.0, 0.0]]])
    distances = normalised_distances(predicted, np.zeros((1, 2, 2)), all_labelled(1, 2), reference_lengths=np.ones(1))
    np.testing.assert_array_equal(distances, [[math.inf, 0]])
    assert pck(distances) == 0.5


def test_torso_length_is_the_longer_diagonal_that_is_labelled() -> None:
    keypoints, labelled = lsp_pose()
    assert torso_lengths(keypoints, labelled, LSP).tolist() == [50]
    labelled[0, LSP.keypoint_names.index("right_hip")] = False
    assert torso_lengths(keypoints, labelled, LSP).tolist() == [13]
    labelled[0, LSP.keypoint_names.index("left_hip")] = False
    assert np.isnan(torso_lengths(keypoints, labelled, LSP)).tolist() == [True]


def test_head_length_is_the_segment_from_neck_to_head_top() -> None:
    keypoints, labelled = lsp_pose()
    assert head_lengths(keypoints, labelled, LSP).tolist() == [10]
    labelled[0, LSP.keypoint_names.index("neck")] = False
    assert np.isnan(head_lengths(keypoints, labelled, LSP)).tolist() == [True]


def test_a_skeleton_without_torso_or_head_has_no_lengths() -> None:
    keypoints, labelled = lsp_pose()
    bare = replace(LSP, torso_diagonals=(), head_segment=None)
    assert np.isnan(torso_lengths(keypoints, labelled, bare)).tolist() == [True]
    assert np.isnan(head_lengths(keypoints, labelled, bare)).tolist() == [True]


def test_pck_counts_what_is_judged_with_the_threshold_included() -> None:
    assert pck(DISTANCES) == 2 / 4
    assert pck(DISTANCES, threshold=0.25) == 3 / 4
    np.testing.assert_array_equal(pck_per_image(DISTANCES), [2 / 3, 0])
    np.testing.assert_array_equal(pck_per_keypoint(DISTANCES), [1, 1 / 2, 0])


def test_pck_of_nothing_judged_is_nan() -> None:
    nothing = np.full((2, 3), NAN)
    assert math.isnan(pck(nothing))
    assert np.isnan(pck_per_image(nothing)).all()
    assert np.isnan(pck_per_keypoint(nothing)).all()


def test_no_images_give_empty_results() -> None:
    none = normalised_distances(
        np.zeros((0, 14, 2)), np.zeros((0, 14, 2)), all_labelled(0, 14), reference_lengths=np.zeros(0)
    )
    assert none.shape == (0, 14)
    assert math.isnan(pck(none))
    assert pck_per_image(none).shape == (0,)
    assert np.isnan(pck_per_keypoint(none)).tolist() == [True] * 14
    assert torso_lengths(np.zeros((0, 14, 2)), all_labelled(0, 14), LSP).shape == (0,)


@given(st.integers(2, 30).flatmap(lambda n: arrays(np.float64, (2, n), elements=st.integers(-5, 5).map(float))))
def test_correlations_equal_scipys_ties_included(sides: np.ndarray) -> None:
    x, y = sides
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(pearson(x, y))
        assert math.isnan(spearman(x, y))
        assert math.isnan(kendall(x, y))
        return
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y).statistic, abs=1e-12)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(tau_b(x, y), abs=1e-12)


def tau_b(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b by its definition, over all pairs."""
    signs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in itertools.combinations(range(len(x)), 2)]
    untied_x, untied_y = sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)
    return float(sum(a * b for a, b in signs) / math.sqrt(untied_x * untied_y))


def test_spearman_sees_only_the_order() -> None:
    x = np.array([0.1, 0.5, 0.2, 3.0])
    assert spearman(x, np.exp(x)) == 1
    assert spearman(x, -(x**3)) == -1


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_pearson_of_a_line_is_one_at_any_scale(scale: float) -> None:
    x = np.array([1.0, 2.0, 4.0])
    assert pearson(scale * x, 3 * x - 7) == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y"),
    [([], []), ([1.0], [2.0]), ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]), ([1.0, NAN], [1.0, 2.0]), ([1.0, 2.0], [NAN, 2.0])],
    ids=["empty", "one point", "constant", "nan left", "nan right"],
)
@pytest.mark.parametrize("correlation", [pearson, spearman, kendall])
def test_a_correlation_that_does_not_exist_is_nan(correlation, x: list[float], y: list[float]) -> None:
    assert math.isnan(correlation(np.array(x), np.array(y)))


def test_without_head_or_torso_there_is_no_length() -> None:
    keypoints, labelled = np.ones((2, 17, 2)), all_labelled(2, 17)
    assert np.isnan(head_lengths(keypoints, labelled, COCO)).tolist() == [True, True]
    bare = replace(COCO, torso_diagonals=())
    assert np.isnan(torso_lengths(keypoints, labelled, bare)).tolist() == [True, True]


# Rankings and curves


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


@given(SMALL)
def test_heads_are_the_mean_over_all_orders_that_ties_allow(rows: list[tuple[int, int]]) -> None:
    score, values = split(rows)
    allowed = orders(score)
    expected = [
        np.mean([values[list(order[:count])].mean() for order in allowed]) for count in range(1, len(score) + 1)
    ]
    np.testing.assert_allclose(top_means(score, values), expected, atol=1e-12)


@given(SMALL, st.integers(0, 7))
def test_weights_are_the_share_of_orders_that_have_the_image_in_the_head(rows: list, count: int) -> None:
    score, _ = split(rows)
    allowed = orders(score)
    expected = [np.mean([image in order[:count] for order in allowed]) for image in range(len(score))]
    weights = top_weights(score, count=count)
    np.testing.assert_allclose(weights, expected, atol=1e-12)
    assert weights.sum() == pytest.approx(min(count, len(score)))


def test_a_head_by_hand() -> None:
    score, pck = np.array([1.0, 5.0, 3.0, 5.0]), np.array([1.0, 0.0, 0.5, 0.4])
    np.testing.assert_allclose(top_means(score, pck), [0.2, 0.2, 0.3, 0.475])
    np.testing.assert_allclose(mean_of_top(score, pck, shares=(0.01, 0.5, 0.75, 1.0)), [0.2, 0.2, 0.3, 0.475])


@pytest.mark.parametrize(
    ("num_images", "share", "size"), [(1, 0.01, 1), (100, 0.1, 10), (24, 0.1, 2), (26, 0.1, 3), (7, 1.0, 7)]
)
def test_a_head_has_one_image_at_least(num_images: int, share: float, size: int) -> None:
    assert top_size(num_images, share) == size


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
    np.testing.assert_allclose(top_means(score, values), top_means(score[order], values[order]), atol=1e-12)
    assert area_under_risks(score, values) == pytest.approx(area_under_risks(score[order], values[order]))


def test_minus_zero_ties_with_zero() -> None:
    np.testing.assert_allclose(top_means(np.array([0.0, -0.0]), np.array([1.0, 0.0])), [0.5, 0.5])


def test_nothing_has_no_curve_and_one_image_has_its_own() -> None:
    none, one = np.empty(0), np.array([0.3])
    assert math.isnan(area_under_risks(none, none))
    assert np.isnan(mean_of_top(none, none, shares=(0.1, 1.0))).tolist() == [True, True]
    assert top_means(none, none).shape == (0,)
    assert top_weights(none, count=1).shape == (0,)
    assert area_under_risks(one, one) == 0.3
    assert mean_of_top(np.array([7.0]), one, shares=(0.1, 1.0)).tolist() == [0.3, 0.3]


def test_the_sparsification_error_is_nothing_for_the_oracle_and_worked_by_hand() -> None:
    risk = np.array([0.0, 1.0, 2.0])
    assert area_under_sparsification_error(risk, risk) == 0
    # Kept by the reversed ranking: 2, then 1.5, then 1; by the oracle: 0, 0.5, 1. Areas 1.5 and 0.5, mean risk 1.
    assert area_under_sparsification_error(-risk, risk) == pytest.approx(1.0)
    assert np.isnan(area_under_sparsification_error(risk[:0], risk[:0]))
