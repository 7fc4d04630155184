"""Inputs of the keypoint head against plain loops over hand-made maps; finite whatever the maps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from model.heatmap import decode_heatmaps, encode_heatmaps
from model.keypoint_inputs import (
    MIRRORED,
    PLAIN,
    entropy_of_peaks,
    keypoint_inputs,
    local_maxima,
    mirror_back,
    multi_peak_entropy,
    num_inputs,
)
from model.skeleton import LSP

K, SIZE, SIGMA = LSP.num_keypoints, 32, 1.75
ENERGY, MASS = math.pi * SIGMA**2, 2 * math.pi * SIGMA**2


def gaussians(points: Tensor, *, height: float = 1.0) -> Tensor:
    """Heatmaps (B, K, SIZE, SIZE) of keypoints (B, K, 2), in heatmap pixels."""
    return height * encode_heatmaps(points, input_size=SIZE, heatmap_size=SIZE, sigma=SIGMA)


def some_points(count: int = 2) -> Tensor:
    return 6 + 20 * torch.rand(count, K, 2, generator=torch.Generator().manual_seed(0))


def some_maps(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, K, SIZE, SIZE, generator=generator) ** 6
    return gaussians(some_points(count), height=0.7) + 0.4 * noise


def inputs_of(plain: Tensor, mirrored: Tensor | None = None) -> Tensor:
    return keypoint_inputs(plain, mirrored, skeleton=LSP, sigma=SIGMA)


def by_loop(h: np.ndarray, point: np.ndarray, radius: float) -> dict[str, float]:
    """The numbers of one map, pixel by pixel."""
    cells = [(x, y, float(h[y, x])) for y in range(SIZE) for x in range(SIZE)]
    mass = sum(v for *_, v in cells)
    energy = sum(v * v for *_, v in cells)
    mean = [sum(v * c[axis] for *c, v in cells) / mass for axis in (0, 1)]
    return {
        "peak": max(v for *_, v in cells),
        "energy": energy / ENERGY,
        "log_energy": math.log(max(energy / ENERGY, 1e-3)),
        "mass": mass / MASS,
        "entropy": -sum(v / mass * math.log(v / mass) for *_, v in cells if v) / math.log(SIZE * SIZE),
        "spread": math.sqrt(sum(v * ((x - mean[0]) ** 2 + (y - mean[1]) ** 2) for x, y, v in cells) / mass) / SIZE,
        "inside": sum(v for x, y, v in cells if math.dist((x, y), point) <= radius) / MASS,
        "outside": sum(v for x, y, v in cells if math.dist((x, y), point) > radius) / MASS,
        "distance": math.sqrt(sum(v * math.dist((x, y), point) ** 2 for x, y, v in cells) / mass) / SIZE,
    }


def test_a_keypoint_s_own_numbers_are_those_of_a_loop_over_its_pixels() -> None:
    maps = some_maps()
    found = inputs_of(maps)
    points = decode_heatmaps(maps, input_size=SIZE).keypoints
    for image in range(2):
        torso = max(
            math.dist(points[image, start].tolist(), points[image, end].tolist()) for start, end in LSP.torso_diagonals
        )
        for keypoint in (0, 7):
            expected = by_loop(maps[image, keypoint].numpy(), points[image, keypoint].numpy(), 0.2 * torso)
            for name, value in expected.items():
                assert found[image, keypoint, PLAIN.index(name)].item() == pytest.approx(value, rel=2e-3, abs=2e-4), (
                    name
                )


def test_the_rest_is_context_counterpart_position_and_which_keypoint() -> None:
    maps = some_maps(3)
    found = inputs_of(maps)
    assert found.shape == (3, K, num_inputs(K, is_mirrored=False))
    assert torch.equal(found[..., -K:], torch.eye(K).expand(3, -1, -1))
    points = decode_heatmaps(maps, input_size=SIZE).keypoints
    torch.testing.assert_close(found[..., -K - 2 : -K], (points + 0.5) / SIZE - 0.5)
    counterpart = found[:, list(LSP.flip_order)][..., [PLAIN.index("peak"), PLAIN.index("distance")]]
    torch.testing.assert_close(found[..., -K - 4 : -K - 2], counterpart)
    first_main = found[..., PLAIN.index("peak")]
    context = found[:, 0, len(PLAIN) :]
    torch.testing.assert_close(context[:, 0], first_main.mean(dim=1))
    assert (found[:, :1, len(PLAIN) : -K - 4] == found[:, :, len(PLAIN) : -K - 4]).all()


def test_local_maxima_are_the_peaks_by_height() -> None:
    points = torch.tensor([[[6.0, 6.0], [20.0, 9.0], [11.0, 25.0]]])
    heights = torch.tensor([0.9, 0.5, 0.3])
    maps = (gaussians(points) * heights[None, :, None, None]).sum(dim=1, keepdim=True)
    found = local_maxima(maps)[0, 0]
    torch.testing.assert_close(found[:3], heights, rtol=0.05, atol=1e-3)
    assert (found[3:] < 1e-3).all()
    share = (heights / heights.sum()).double()
    assert entropy_of_peaks(found[None, None])[0, 0].item() == pytest.approx(
        -(share * share.log()).sum().item(), abs=0.02
    )


def test_multi_peak_entropy_grows_with_peaks_of_equal_height() -> None:
    points = torch.tensor([[[6.0, 6.0], [20.0, 9.0]]])
    one, two = gaussians(points[:, :1]), gaussians(points).sum(dim=1, keepdim=True)
    assert multi_peak_entropy(one).item() < 0.01 or multi_peak_entropy(one) < multi_peak_entropy(two)
    assert multi_peak_entropy(two).item() >= math.log(2) - 1e-3


@pytest.mark.parametrize(
    "make",
    [torch.zeros, lambda *shape: torch.full(shape, 1e-9), torch.ones, lambda *shape: torch.full(shape, -3.0)],
    ids=["zeros", "tiny", "level", "negative"],
)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_inputs_are_finite_whatever_the_maps(make: Callable[..., Tensor], count: int) -> None:
    maps = make(count, K, SIZE, SIZE)
    for mirrored in (None, maps):
        found = inputs_of(maps, mirrored)
        assert found.shape == (count, K, num_inputs(K, is_mirrored=mirrored is not None))
        assert found.isfinite().all()


def test_two_views_that_agree_say_so() -> None:
    maps = some_maps()
    found = dict(
        zip(MIRRORED, inputs_of(maps, maps)[..., len(PLAIN) : len(PLAIN) + len(MIRRORED)].unbind(-1), strict=True)
    )
    torch.testing.assert_close(found["disagreement"], torch.zeros(2, K), atol=1e-4, rtol=0)
    torch.testing.assert_close(found["cosine"], torch.ones(2, K))
    assert not found["shift"].any()
    torch.testing.assert_close(found["mean_energy"], inputs_of(maps)[..., PLAIN.index("energy")])
    torch.testing.assert_close(found["expected_loss"], -found["mean_energy"], rtol=1e-4, atol=1e-4)


def test_two_views_that_part_are_as_far_as_their_maps() -> None:
    one, other = gaussians(some_points()), gaussians(some_points() + torch.tensor([3.0, 4.0]))
    found = inputs_of(one, other)
    shift = found[..., len(PLAIN) + MIRRORED.index("shift")]
    torch.testing.assert_close(shift, torch.full((2, K), 5.0), rtol=0.02, atol=0.02)
    squared = ((one - other) / 2).square().sum(dim=(2, 3)) / ENERGY
    torch.testing.assert_close(found[..., len(PLAIN) + MIRRORED.index("disagreement")], squared, rtol=1e-3, atol=1e-4)


def test_mapping_back_mirrors_columns_and_swaps_left_and_right() -> None:
    maps = some_maps()
    assert torch.equal(mirror_back(mirror_back(maps, LSP), LSP), maps)
    right, left = LSP.flip_pairs[0]
    assert torch.equal(mirror_back(maps, LSP)[:, right], maps[:, left].flip(-1))
