"""What heatmaps say about their own error: a few numbers a keypoint, which a loss head may read.

# B batch, S stacks, K keypoints, H, W heatmap size (px), F statistics
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STATISTICS = (
    "peak",
    "log_peak",
    "second_peak",
    "energy",
    "log_energy",
    "mass",
    "entropy",
    "spread",
    "disagreement",
)

_FLOOR = 1e-6  # under what no heatmap value counts: shares stay finite
_LOG_FLOOR = 1e-3  # of peak and energy, under which their logarithm says nothing more


def heatmap_statistics(heatmaps: Tensor, *, sigma: float) -> Tensor:
    """Statistics (B, K, F) float32 of heatmaps (B, S, K, H, W), in the order of `STATISTICS`; finite for finite maps.

    All but the last are of the last stack, with values under zero taken as zero:

    - peak: the greatest value.
    - second_peak: the greatest value more than 3 sigma away from the peak along either axis, 0 if there is none.
    - energy: the sum of squares, as a share of that of the Gaussian it was trained on.
    - mass: the sum, as a share of that Gaussian's.
    - log_peak, log_energy: natural logarithms of these two.
    - entropy: of the values as a distribution over pixels, as a share of the uniform one's.
    - spread: the distribution's root mean square distance from its mean, as a share of H.
    - disagreement: the mean over earlier stacks of the sum of squared differences from the last one, as a share of the
      Gaussian's energy; 0 for a single stack.

    Energy is the one to expect most of. A heatmap h that was trained by squared error towards targets t comes near
    their conditional mean, h = E[t | image], and then the error to expect is E|t - h|^2 = |t|^2 - |h|^2: all targets
    have the same |t|^2, so the more energy a heatmap has, the smaller its loss.

    Args:
        heatmaps: any floating type.
        sigma: standard deviation of the target Gaussians, in heatmap pixels.

    Source of the identity: the decomposition of squared error, e.g. Bishop, "Pattern Recognition and Machine Learning",
    2006, section 1.5.5.
    """
    maps = heatmaps.float()
    last = maps[:, -1].clamp(min=0)  # (B, K, H, W)
    height, width = last.shape[-2:]
    mass = last.sum(dim=(2, 3))
    energy = last.square().sum(dim=(2, 3))
    share = (last / mass.clamp(min=_FLOOR)[..., None, None]).flatten(2)  # (B, K, H * W)
    entropy = -torch.xlogy(share, share.clamp(min=_FLOOR)).sum(dim=2) / math.log(height * width)
    target_energy, target_mass = math.pi * sigma**2, 2 * math.pi * sigma**2
    peak, second_peak = _two_peaks(last, apart=math.ceil(3 * sigma))
    energy = energy / target_energy
    return torch.stack(
        (
            peak,
            peak.clamp(min=_LOG_FLOOR).log(),
            second_peak,
            energy,
            energy.clamp(min=_LOG_FLOOR).log(),
            mass / target_mass,
            entropy,
            _spread(share.view_as(last)) / height,
            _disagreement(maps) / target_energy,
        ),
        dim=2,
    )


def _two_peaks(maps: Tensor, *, apart: int) -> tuple[Tensor, Tensor]:
    """The greatest value (B, K) of each map, and the greatest of those more than `apart` pixels away from it."""
    width = maps.shape[-1]
    peak, index = maps.flatten(2).max(dim=2)
    rows = torch.arange(maps.shape[-2], device=maps.device)
    columns = torch.arange(width, device=maps.device)
    is_near_row = (rows - (index // width)[..., None]).abs() <= apart  # (B, K, H)
    is_near_column = (columns - (index % width)[..., None]).abs() <= apart  # (B, K, W)
    is_near = is_near_row[..., :, None] & is_near_column[..., None, :]
    return peak, maps.masked_fill(is_near, 0.0).flatten(2).amax(dim=2)


def _spread(share: Tensor) -> Tensor:
    """Root mean square distance (B, K), in pixels, of distributions (B, K, H, W) from their means."""
    variance = torch.zeros(share.shape[:2], device=share.device)
    for axis in (2, 3):
        profile = share.sum(dim=5 - axis)  # (B, K, H or W)
        places = torch.arange(profile.shape[-1], device=share.device, dtype=profile.dtype)
        mean = (profile * places).sum(dim=2, keepdim=True)
        variance = variance + (profile * (places - mean).square()).sum(dim=2)
    return variance.sqrt()


def _disagreement(maps: Tensor) -> Tensor:
    """Sum of squared differences (B, K) of the last stack's map from each earlier one's, mean over these."""
    if maps.shape[1] == 1:
        return torch.zeros_like(maps[:, 0, :, 0, 0])
    return (maps[:, :-1] - maps[:, -1:]).square().sum(dim=(3, 4)).mean(dim=1)
