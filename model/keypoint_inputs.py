"""Inputs of the keypoint head: numbers of each keypoint's heatmap that tell how far it can be trusted.

# B batch, K keypoints, H, W heatmap size (px; square: H = W), P local maxima, F inputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.heatmap import decode_heatmaps
from model.skeleton import Skeleton

# Of one view. Shares of the target Gaussian's energy and mass; lengths in heatmap pixels / H.
PLAIN = (
    "peak",
    "log_peak",
    "second_peak",
    "energy",
    "log_energy",
    "mass",
    "entropy",
    "spread",
    "peak_entropy",
    "sharp_peak_entropy",
    "inside",
    "outside",
    "distance",
)
# Of a plain and a mirrored view; what is measured of a map is that of their mean.
MIRRORED = (
    "mean_energy",
    "log_mean_energy",
    "expected_loss",
    "disagreement",
    "mean_peak",
    "mean_entropy",
    "mean_inside",
    "mean_outside",
    "mean_distance",
    "mean_peak_entropy",
    "cosine",
    "log_shift",
    "shift",
)
_MAIN = ("peak", "log_energy", "entropy", "peak_entropy", "inside", "distance")  # whose mean, min, max all may see
_MAIN_MIRRORED = ("log_mean_energy", "disagreement", "log_shift")

NUM_PEAKS = 5
DISC_TORSOS = 0.2  # radius of the disc around a decoded point: that within which PCK@0.2 counts a hit
_SHARPNESS = 10.0  # of the softmax over local maxima: heights are at most about 1
_MAX_SHIFT = 12.0  # heatmap pixels; farther apart is as bad
_FLOOR = 1e-6  # under what no heatmap value counts: shares stay finite
_TINY = 1e-30  # whose logarithm is finite, and 0 times it is 0
_LOG_FLOOR = 1e-3  # of peak and energy, under which their logarithm says nothing more


def num_inputs(num_keypoints: int, *, is_mirrored: bool) -> int:
    """F, the width of `keypoint_inputs`."""
    own = len(PLAIN) + len(MIRRORED) * is_mirrored
    main = len(_MAIN) + len(_MAIN_MIRRORED) * is_mirrored
    return own + 3 * main + 2 + 2 + num_keypoints


def keypoint_inputs(plain: Tensor, mirrored: Tensor | None, *, skeleton: Skeleton, sigma: float) -> Tensor:
    """Inputs (B, K, F) float32, finite for finite maps, from heatmaps (B, K, H, W) of the last stack.

    Own numbers of each keypoint (`PLAIN`, and `MIRRORED` with a second view); mean, least and greatest of the main ones
    over the keypoints; peak and distance of its left or right counterpart; its position; and which keypoint it is.

    Args:
        plain: heatmaps of the image, of any floating type; values under 0 count as 0.
        mirrored: those of the mirrored image, mapped back: flipped, left and right swapped. None: one view.
        skeleton: names counterparts and torso.
        sigma: standard deviation of the target Gaussians, in heatmap pixels.
    """
    first = plain.clamp(min=0).float()
    size, count = first.shape[-1], first.shape[1]
    pose = decode_heatmaps(first, input_size=size)  # in heatmap pixels
    radius = DISC_TORSOS * _torso(pose.keypoints, skeleton)
    own = _plain_inputs(first, pose.keypoints, radius, sigma=sigma)
    main = _pick(own, [PLAIN.index(name) for name in _MAIN], dim=2)
    if mirrored is not None:
        second = _mirrored_inputs(first, mirrored.clamp(min=0).float(), pose.keypoints, radius, sigma=sigma)
        own = torch.cat((own, second), dim=2)
        main = torch.cat((main, _pick(second, [MIRRORED.index(name) for name in _MAIN_MIRRORED], dim=2)), dim=2)
    context = torch.cat((main.mean(dim=1), main.amin(dim=1), main.amax(dim=1)), dim=1)
    counterpart = _pick(_pick(own, [PLAIN.index("peak"), PLAIN.index("distance")], dim=2), skeleton.flip_order, dim=1)
    which = torch.eye(count, device=own.device).expand(len(own), -1, -1)
    position = (pose.keypoints + 0.5) / size - 0.5
    return torch.cat((own, context[:, None].expand(-1, count, -1), counterpart, position, which), dim=2)


def mirror_back(heatmaps: Tensor, skeleton: Skeleton) -> Tensor:
    """Heatmaps (..., K, H, W) of a mirrored image in the frame and the order of the plain one."""
    return _pick(heatmaps.flip(-1), skeleton.flip_order, dim=-3)


def _pick(values: Tensor, places: Sequence[int], *, dim: int) -> Tensor:
    """The slices of `values` at `places` along `dim`.

    An index made of a list would be copied to the device in every pass, and the host would wait for the copy.
    """
    slices = values.unbind(dim)
    return torch.stack([slices[place] for place in places], dim)


def local_maxima(heatmaps: Tensor) -> Tensor:
    """Heights (B, K, P) of the highest local maxima, falling; 0 where there are fewer.

    A local maximum is the highest pixel of a cell of 2x2, and of the 3x3 cells around it: on a quarter of the pixels it
    costs a quarter, and finds the same peaks of Gaussians as wide as ours.
    """
    cells = _halved(heatmaps)
    around = F.pad(cells, (1, 1, 1, 1))
    rows = torch.maximum(torch.maximum(around[..., :-2, :], around[..., 1:-1, :]), around[..., 2:, :])
    highest = torch.maximum(torch.maximum(rows[..., :-2], rows[..., 1:-1]), rows[..., 2:])
    peaks = _halved(cells * (highest == cells)).flatten(2)  # two peaks are at least two cells apart
    heights = peaks.topk(min(NUM_PEAKS, peaks.shape[2]), dim=2).values
    return F.pad(heights, (0, NUM_PEAKS - heights.shape[2]))


def _halved(maps: Tensor) -> Tensor:
    """(B, K, H / 2, W / 2), rounded up: the highest of each cell of 2x2, which are at least 0.

    Three times as fast on a CPU as `max_pool2d`, which steps through the pixels one by one.
    """
    even = F.pad(maps, (0, maps.shape[-1] % 2, 0, maps.shape[-2] % 2))
    pairs = torch.maximum(even[..., 0::2, :], even[..., 1::2, :])
    return torch.maximum(pairs[..., 0::2], pairs[..., 1::2])


def entropy_of_peaks(heights: Tensor, *, sharpness: float | None = None) -> Tensor:
    """Entropy (B, K) in nats of local maxima (B, K, P) as shares of their sum, or by softmax of sharpness x height."""
    if sharpness is not None:
        logs = torch.log_softmax(sharpness * heights, dim=2)
        return -(logs.exp() * logs).sum(dim=2)
    share = heights / heights.sum(dim=2, keepdim=True).clamp(min=_FLOOR)
    return -torch.xlogy(share, share).sum(dim=2)


def multi_peak_entropy(heatmaps: Tensor) -> Tensor:
    """(B,) mean over keypoints of the entropy of a softmax over the raw heights of heatmaps' (B, K, H, W) local maxima.

    Source: Liu & Ferrari, "Active Learning for Human Pose Estimation", ICCV 2017, as VL4Pose (Shukla et al., BMVC 2022)
    takes it: at most five maxima.
    """
    heights = local_maxima(heatmaps.float().clamp(min=0))
    weights = torch.where(heights > 0, heights.exp(), 0.0)
    return entropy_of_peaks(weights).mean(dim=1)


class _Measures(NamedTuple):
    """Measures of maps around given points, all (B, K)."""

    peak: Tensor
    heights: Tensor  # (B, K, P)
    energy: Tensor  # sum of squares
    mass: Tensor
    entropy: Tensor  # of the values as a distribution over pixels, as a share of the uniform one's
    spread: Tensor  # root mean square distance of that distribution from its mean, px
    inside: Tensor  # mass within `radius` of the point
    distance: Tensor  # root mean square distance from the point, px


def _measure(maps: Tensor, points: Tensor, radius: Tensor) -> _Measures:
    height, width = maps.shape[-2:]
    flat = maps.flatten(2)
    heights = local_maxima(maps)
    places = torch.arange(height, device=maps.device, dtype=torch.float32)
    powers = torch.stack((places, places.square()), dim=1)
    columns = maps.sum(dim=2)  # (B, K, W)
    mass = columns.sum(dim=2)
    of_x, of_y = columns @ powers, maps.sum(dim=3) @ powers  # (B, K, 2): first and second moments
    safe = mass.clamp(min=_FLOOR)
    mean = torch.stack((of_x[..., 0], of_y[..., 0]), dim=2) / safe[..., None]
    mean_square = (of_x[..., 1] + of_y[..., 1]) / safe
    variance = (mean_square - mean.square().sum(dim=2)).clamp(min=0)
    entropy = safe.log() - (flat * flat.clamp(min=_TINY).log()).sum(dim=2) / safe  # faster than xlogy
    return _Measures(
        peak=heights[..., 0],  # the highest of them
        heights=heights,
        energy=torch.linalg.vector_norm(flat, dim=2).square(),
        mass=mass,
        entropy=torch.where(mass > _FLOOR, entropy, 0.0) / math.log(height * width),
        spread=variance.sqrt(),
        inside=_mass_inside(maps, points, radius),
        distance=(variance + (mean - points).square().sum(dim=2)).sqrt(),
    )


def _mass_inside(maps: Tensor, points: Tensor, radius: Tensor) -> Tensor:
    """Sum (B, K) of the values within `radius` (B,) of `points` (B, K, 2), in heatmap pixels."""
    places = torch.arange(maps.shape[-1], device=maps.device)
    squares = (places - points[..., None]).square()  # (B, K, 2, W)
    left = radius.square()[:, None, None] - squares[:, :, 1]  # (B, K, H): what each row leaves for x
    is_inside = squares[:, :, 0, None, :] <= left[..., None]
    return (maps * is_inside).sum(dim=(2, 3))


def _plain_inputs(maps: Tensor, points: Tensor, radius: Tensor, *, sigma: float) -> Tensor:
    found = _measure(maps, points, radius)
    target_energy, target_mass = _target(sigma)
    size = maps.shape[-1]
    energy = found.energy / target_energy
    return torch.stack(
        (
            found.peak,
            found.peak.clamp(min=_LOG_FLOOR).log(),
            found.heights[..., 1],
            energy,
            energy.clamp(min=_LOG_FLOOR).log(),
            found.mass / target_mass,
            found.entropy,
            found.spread / size,
            entropy_of_peaks(found.heights),
            entropy_of_peaks(found.heights, sharpness=_SHARPNESS),
            found.inside / target_mass,
            (found.mass - found.inside) / target_mass,
            found.distance / size,
        ),
        dim=2,
    )


def _mirrored_inputs(first: Tensor, second: Tensor, points: Tensor, radius: Tensor, *, sigma: float) -> Tensor:
    """A heatmap that was trained by squared error comes near the target's mean: then |t - h|^2 is |t|^2 - |h|^2.

    Both energy and disagreement of two looks at one image estimate what that leaves.
    Source: the decomposition of squared error, e.g. Bishop, "Pattern Recognition and Machine Learning", 2006, 1.5.5.
    """
    mean = (first + second) / 2
    found = _measure(mean, points, radius)
    target_energy, target_mass = _target(sigma)
    size = first.shape[-1]
    a, b = first.flatten(2), second.flatten(2)
    norm_a, norm_b = torch.linalg.vector_norm(a, dim=2), torch.linalg.vector_norm(b, dim=2)
    cross = (a * b).sum(dim=2)
    energy = found.energy / target_energy
    shift = (decode_heatmaps(second, input_size=size).keypoints - points).square().sum(dim=2).sqrt()
    return torch.stack(
        (
            energy,
            energy.clamp(min=_LOG_FLOOR).log(),
            -cross / target_energy,  # |h|^2 - 2 <m, h>, with m the mean of both
            (norm_a.square() + norm_b.square() - 2 * cross).clamp(min=0) / (4 * target_energy),
            found.peak,
            found.entropy,
            found.inside / target_mass,
            (found.mass - found.inside) / target_mass,
            found.distance / size,
            entropy_of_peaks(found.heights),
            _cosine(a, mean.flatten(2)),
            shift.log1p(),
            shift.clamp(max=_MAX_SHIFT),
        ),
        dim=2,
    )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=2, eps=_FLOOR)


def _target(sigma: float) -> tuple[float, float]:
    """Energy and mass of a target Gaussian."""
    return math.pi * sigma**2, 2 * math.pi * sigma**2


def _torso(points: Tensor, skeleton: Skeleton) -> Tensor:
    """(B,) length of the longer torso diagonal of points (B, K, 2); the diagonal of their extent without a torso."""
    if not skeleton.torso_diagonals:
        extent: Tensor = torch.linalg.vector_norm(points.amax(dim=1) - points.amin(dim=1), dim=1)
        return extent / 2
    starts, ends = zip(*skeleton.torso_diagonals, strict=True)
    lengths: Tensor = torch.linalg.vector_norm(_pick(points, starts, dim=1) - _pick(points, ends, dim=1), dim=2)
    return lengths.amax(dim=1)
