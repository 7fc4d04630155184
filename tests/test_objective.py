"""The ranking objectives against the paper's worked example and gradients."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from model.objective import Pairs, count_pairs, heatmap_loss, kl_ranking_loss, margin_ranking_loss, pair_indices

OBJECTIVES = [kl_ranking_loss, margin_ranking_loss]
EVERY_PAIRS: tuple[Pairs, ...] = ("half", "all")
LOSSES = st.floats(1e-4, 1e4)
SCORES = st.floats(-20, 20)
BATCHES = st.lists(st.tuples(LOSSES, SCORES), min_size=2, max_size=9)

# True loss and predicted loss of the paper's worked example.
A, B, C = (0.45, 1.48), (0.47, 1.51), (2.87, 1.63)


def columns(rows: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """(predicted, true) of rows of (true, predicted); gradients go to the predicted."""
    true, predicted = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return predicted.clone().requires_grad_(), true


def gradient_norm(objective, rows: list[tuple[float, float]]) -> float:
    predicted, true = columns(rows)
    objective(predicted, true, pairs="half").backward()
    return float(predicted.grad.norm())


# True loss of the estimator


def test_heatmap_loss_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    heatmaps, targets = rng.normal(size=(3, 2, 4, 5, 5)), rng.normal(size=(3, 4, 5, 5))
    labelled = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0]], bool)
    expected = [
        np.mean(
            [((heatmaps[b, s, k] - targets[b, k]) ** 2).mean() for k in np.flatnonzero(labelled[b]) for s in (0, 1)]
        )
        for b in range(3)
    ]
    actual = heatmap_loss(torch.tensor(heatmaps), torch.tensor(targets), torch.tensor(labelled))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6)


def test_unlabelled_keypoints_reach_neither_the_loss_nor_the_gradient_even_as_nan() -> None:
    heatmaps = torch.ones(1, 2, 2, 3, 3, requires_grad=True)
    targets = torch.zeros(1, 2, 3, 3)
    targets[:, 1] = math.nan
    loss = heatmap_loss(heatmaps, targets, torch.tensor([[True, False]]))
    loss.sum().backward()
    assert loss.tolist() == [1.0]
    assert heatmaps.grad.isfinite().all()
    assert not heatmaps.grad[:, :, 1].any()


def test_an_image_without_labelled_keypoints_has_loss_zero() -> None:
    loss = heatmap_loss(torch.ones(2, 1, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert loss.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heatmaps_in_half_precision_have_a_loss_in_single_precision(dtype: torch.dtype) -> None:
    targets = torch.zeros(1, 1, 1, 3, dtype=dtype)
    targets[..., 0] = 1
    loss = heatmap_loss(torch.zeros(1, 1, 1, 1, 3, dtype=dtype), targets, torch.ones(1, 1, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 / 3, rel=1e-6)


def test_heatmap_loss_of_an_empty_batch_is_empty() -> None:
    loss = heatmap_loss(torch.ones(0, 2, 3, 4, 4), torch.zeros(0, 3, 4, 4), torch.zeros(0, 3, dtype=torch.bool))
    assert loss.shape == (0,)


# Pairs


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(0, []), (1, []), (2, [(0, 1)]), (4, [(0, 2), (1, 3)]), (5, [(0, 2), (1, 3)])]
)
def test_half_pairs_an_image_with_the_one_half_a_batch_on(batch_size: int, expected: list[tuple[int, int]]) -> None:
    i, j = pair_indices(batch_size, pairs="half")
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == expected


@pytest.mark.parametrize("batch_size", [0, 1, 2, 5])
def test_all_pairs_are_every_two_images_once(batch_size: int) -> None:
    i, j = pair_indices(batch_size, pairs="all")
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == list(combinations(range(batch_size), 2))


@pytest.mark.parametrize(("pairs", "expected", "distinct"), [("half", 3, 2), ("all", 15, 12)])
def test_a_pair_counts_as_distinct_whichever_of_its_losses_is_larger(
    pairs: Pairs, expected: int, distinct: int
) -> None:
    true = torch.tensor([3.0, 1.0, 2.0, 1.0, 3.0, 2.0])  # halves: 3 > 1, 1 < 3, 2 = 2
    assert count_pairs(true, pairs=pairs) == expected
    assert count_pairs(true, pairs=pairs, distinct=True) == distinct


# The paper's worked example


@pytest.mark.parametrize(("other", "kl", "step"), [(B, 2.27e-5, 0.0034), (C, 0.2445, 0.327)])
def test_kl_and_its_gradient_match_the_worked_example(other: tuple[float, float], kl: float, step: float) -> None:
    predicted, true = columns([A, other])
    loss = kl_ranking_loss(predicted, true, pairs="half")
    loss.backward()
    assert loss.item() == pytest.approx(kl, rel=3e-3)
    assert predicted.grad.abs().tolist() == pytest.approx([step, step], abs=5e-5 if step < 0.1 else 5e-4)


def test_margin_gradient_is_as_large_for_a_near_tie_as_for_a_gross_error() -> None:
    assert gradient_norm(margin_ranking_loss, [A, B]) == gradient_norm(margin_ranking_loss, [A, C]) == math.sqrt(2)
    assert gradient_norm(kl_ranking_loss, [A, C]) > 90 * gradient_norm(kl_ranking_loss, [A, B])


def test_margin_loss_by_hand() -> None:
    predicted, true = columns([(1.0, 0.2), (2.0, 0.9), (3.0, 2.5)])
    # (0, 1): 1 - 0.7; (0, 2): ordered by more than the margin; (1, 2): likewise.
    assert margin_ranking_loss(predicted, true, pairs="all").item() == pytest.approx(0.3 / 3)
    assert margin_ranking_loss(predicted, true, pairs="all", margin=2.0).item() == pytest.approx((1.3 + 0.4) / 3)


# Properties


@given(BATCHES, st.sampled_from(EVERY_PAIRS))
def test_kl_gradient_is_the_sum_of_q_minus_p_over_an_images_pairs(
    rows: list[tuple[float, float]], pairs: Pairs
) -> None:
    predicted, true = columns(rows)
    kl_ranking_loss(predicted, true, pairs=pairs).backward()
    index = [(i.item(), j.item()) for i, j in zip(*pair_indices(len(rows), pairs=pairs), strict=True)]
    expected = np.zeros(len(rows))
    for i, j in index:
        (true_i, score_i), (true_j, score_j) = rows[i], rows[j]
        step = 1 / (1 + math.exp(score_j - score_i)) - true_i / (true_i + true_j)
        expected[[i, j]] += np.array([step, -step]) / len(index)
    np.testing.assert_allclose(predicted.grad.numpy(), expected, atol=1e-9)


@given(BATCHES, st.sampled_from(EVERY_PAIRS))
def test_kl_is_never_negative(rows: list[tuple[float, float]], pairs: Pairs) -> None:
    assert kl_ranking_loss(*columns(rows), pairs=pairs).item() >= -1e-12


@given(st.lists(LOSSES, min_size=2, max_size=9), SCORES, st.floats(0.01, 5))
def test_kl_is_zero_where_the_ratios_match_and_only_there(losses: list[float], shift: float, error: float) -> None:
    matching = [(loss, math.log(loss) + shift) for loss in losses]
    assert kl_ranking_loss(*columns(matching), pairs="all").item() == pytest.approx(0, abs=1e-12)
    matching[0] = (losses[0], matching[0][1] + error)
    predicted, true = columns(matching)
    loss = kl_ranking_loss(predicted, true, pairs="all")
    loss.backward()
    assert predicted.grad[0] > 0


@given(BATCHES, st.sampled_from(EVERY_PAIRS), st.sampled_from(OBJECTIVES))
def test_a_common_factor_of_the_true_losses_changes_nothing(rows, pairs: Pairs, objective) -> None:
    predicted, true = columns(rows)
    losses = sorted(true.tolist())
    # Neighbours in the last bit may be equal once multiplied, and equal losses have no order.
    assume(all(low == high or high > low * (1 + 1e-12) for low, high in pairwise(losses)))
    scaled = objective(predicted, 900 * true, pairs=pairs).item()
    assert scaled == pytest.approx(objective(predicted, true, pairs=pairs).item(), abs=1e-9)


@given(BATCHES, st.sampled_from(OBJECTIVES), st.randoms(use_true_random=False))
def test_all_pairs_do_not_see_the_order_of_a_batch(rows, objective, random) -> None:
    shuffled = random.sample(rows, len(rows))
    expected = objective(*columns(rows), pairs="all").item()
    assert objective(*columns(shuffled), pairs="all").item() == pytest.approx(expected, abs=1e-9)


# Edges


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("pairs", EVERY_PAIRS)
@pytest.mark.parametrize("batch_size", [0, 1])
def test_without_pairs_the_loss_is_zero_and_backward_still_works(objective, pairs: Pairs, batch_size: int) -> None:
    predicted, true = columns([A][:batch_size])
    loss = objective(predicted, true, pairs=pairs)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 0
    assert predicted.grad.tolist() == [0.0] * batch_size


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_odd_image_of_a_batch_is_in_no_half_pair(objective) -> None:
    predicted, true = columns([A, C, B])
    loss = objective(predicted, true, pairs="half")
    loss.backward()
    assert loss.item() == objective(*columns([A, C]), pairs="half").item()
    assert predicted.grad[2] == 0


def test_pairs_of_equal_true_losses_are_left_out_of_the_margin_loss() -> None:
    rows = [(1.0, 0.0), (1.0, 5.0), (2.0, 0.0)]
    # Only (0, 2) and (1, 2) have an order: 1 - 0 and 1 + 5.
    assert margin_ranking_loss(*columns(rows), pairs="all").item() == pytest.approx((1 + 6) / 2)


def test_a_batch_of_equal_true_losses_teaches_the_margin_loss_nothing() -> None:
    predicted, true = columns([(1.0, 0.0), (1.0, 5.0)])
    loss = margin_ranking_loss(predicted, true, pairs="half")
    loss.backward()
    assert loss.item() == 0
    assert predicted.grad.tolist() == [0.0, 0.0]


def test_two_losses_of_zero_count_as_equal() -> None:
    predicted, true = columns([(0.0, 1.0), (0.0, 3.0)])
    equal, _ = columns([(1.0, 1.0), (1.0, 3.0)])
    expected = kl_ranking_loss(equal, torch.ones(2, dtype=torch.float64), pairs="half")
    assert kl_ranking_loss(predicted, true, pairs="half").item() == pytest.approx(expected.item())
    assert kl_ranking_loss(equal * 0, true, pairs="half").item() == pytest.approx(0, abs=1e-15)


def test_one_loss_of_zero_gives_a_finite_divergence_and_gradient() -> None:
    predicted, true = columns([(0.0, 0.0), (2.0, 0.0)])
    loss = kl_ranking_loss(predicted, true, pairs="half")
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert predicted.grad.tolist() == pytest.approx([0.5, -0.5])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_far_apart_predictions_do_not_overflow(objective) -> None:
    predicted = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = objective(predicted, torch.tensor([1.0, 3.0]), pairs="half")
    loss.backward()
    assert loss.isfinite()
    step = 0.75 if objective is kl_ranking_loss else 1.0
    assert predicted.grad.tolist() == pytest.approx([step, -step])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_true_losses_get_no_gradient(objective) -> None:
    predicted, true = columns([A, C])
    true.requires_grad_()
    objective(predicted, true, pairs="half").backward()
    assert true.grad is None


def test_a_true_loss_of_nan_is_an_error_to_kl_and_has_no_order_for_the_margin() -> None:
    predicted, true = columns([(math.nan, 1.0), (2.0, 0.0)])
    assert kl_ranking_loss(predicted, true, pairs="half").isnan()
    assert margin_ranking_loss(predicted, true, pairs="half").item() == 0
