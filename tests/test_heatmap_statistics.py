"""Statistics of heatmaps against hand-worked maps, and the identity that energy stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.heatmap import encode_heatmaps
from model.heatmap_statistics import STATISTICS, heatmap_statistics
from model.objective import heatmap_loss

SIGMA = 1.5


def statistics_of(heatmaps: Tensor) -> dict[str, float]:
    """Of one keypoint's maps (S, H, W)."""
    found = heatmap_statistics(heatmaps[None, :, None], sigma=SIGMA)
    assert found.shape == (1, 1, len(STATISTICS))
    return dict(zip(STATISTICS, found[0, 0].tolist(), strict=True))


def gaussian(x: float, y: float, *, size: int = 32) -> Tensor:
    points = torch.tensor([[[x, y]]])
    return encode_heatmaps(points, input_size=size, heatmap_size=size, sigma=SIGMA)[0, 0]


def test_the_gaussian_that_was_trained_on_has_all_the_energy_and_mass() -> None:
    found = statistics_of(gaussian(16, 12)[None])
    assert found["peak"] == pytest.approx(1)
    assert found["second_peak"] == pytest.approx(0, abs=0.02)
    assert found["energy"] == pytest.approx(1, rel=1e-3)
    assert found["mass"] == pytest.approx(1, rel=1e-3)
    # A Gaussian's entropy is 1 + log(2 pi sigma^2), and its root mean square distance sigma * sqrt(2).
    assert found["entropy"] == pytest.approx((1 + math.log(2 * math.pi * SIGMA**2)) / math.log(32 * 32), rel=1e-3)
    assert found["spread"] == pytest.approx(SIGMA * math.sqrt(2) / 32, rel=1e-3)
    assert found["disagreement"] == 0


def test_two_equal_places_show_in_the_second_peak_the_entropy_and_the_spread() -> None:
    one = statistics_of(gaussian(6, 6)[None])
    two = statistics_of((gaussian(6, 6) / 2 + gaussian(24, 6) / 2)[None])
    assert two["peak"] == pytest.approx(0.5, rel=1e-3)
    assert two["second_peak"] == pytest.approx(0.5, rel=1e-3)
    assert two["energy"] == pytest.approx(one["energy"] / 2, rel=1e-2)
    assert two["entropy"] == pytest.approx(one["entropy"] + math.log(2) / math.log(32 * 32), rel=1e-2)
    assert two["spread"] == pytest.approx(math.hypot(9, SIGMA * math.sqrt(2)) / 32, rel=1e-2)


def test_disagreement_is_the_mean_squared_difference_of_earlier_stacks_from_the_last() -> None:
    same, other = gaussian(6, 6), gaussian(24, 24)
    found = statistics_of(torch.stack([same, other, same]))
    assert found["disagreement"] == pytest.approx((0 + 2) / 2, rel=1e-3)  # far apart: both energies
    assert found["peak"] == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30, 1e4])
def test_flat_maps_of_any_height_have_finite_statistics(value: float) -> None:
    found = statistics_of(torch.full((2, 8, 8), value))
    assert all(math.isfinite(number) for number in found.values())


def test_values_under_zero_count_as_zero() -> None:
    bump = gaussian(10, 10)
    sunk = torch.where(bump < 1e-3, -5.0, bump)
    assert statistics_of(sunk[None])["energy"] == pytest.approx(statistics_of(bump[None])["energy"], rel=1e-3)


def test_any_shape_of_batch_gives_a_row_an_image() -> None:
    assert heatmap_statistics(torch.rand(0, 1, 4, 8, 8), sigma=1).shape == (0, 4, len(STATISTICS))
    found = heatmap_statistics(torch.rand(3, 2, 4, 8, 8).bfloat16(), sigma=1)
    assert found.shape == (3, 4, len(STATISTICS))
    assert found.dtype == torch.float32


def test_the_error_to_expect_of_a_conditional_mean_is_what_its_energy_lacks() -> None:
    # The keypoint is equally likely to be at each of some places; the best heatmap is the mean of their Gaussians.
    rng = np.random.default_rng(0)
    places = rng.uniform(8, 24, size=(40, 2))
    targets = torch.stack([gaussian(x, y) for x, y in places])
    best = targets.mean(dim=0)
    losses = heatmap_loss(best.expand(40, 1, 1, 32, 32), targets[:, None], torch.ones(40, 1, dtype=torch.bool))
    lacking = 1 - statistics_of(best[None])["energy"]
    assert losses.mean().item() == pytest.approx(lacking * math.pi * SIGMA**2 / 32**2, rel=1e-3)
