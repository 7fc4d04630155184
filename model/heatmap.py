"""Keypoints to heatmaps and back: the one place that knows where a heatmap pixel lies in the input.

# B batch, K keypoints, H, W heatmap size (px; square: H = W)
Frames: pixels, (x, y), origin = centre of the top-left pixel, so the heatmap position of x is (x + 0.5) / stride - 0.5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DecodedPose(NamedTuple):
    """Position and height of each heatmap's peak."""

    keypoints: Tensor  # (B, K, 2) input pixels
    peaks: Tensor  # (B, K) value at the arg max


def encode_heatmaps(keypoints: Tensor, *, input_size: int, heatmap_size: int, sigma: float = 1.75) -> Tensor:
    """Gaussians (B, K, H, W) of height 1 around `keypoints`; all zero where a coordinate is NaN.

    A keypoint outside the input leaves the tail that reaches in. Visibility is the caller's business.

    Args:
        keypoints: (B, K, 2) input pixels.
        input_size: height and width of the input (px).
        heatmap_size: H = W.
        sigma: standard deviation in heatmap pixels; 1.75 is the paper's.

    Source: Tompson et al., "Joint Training of a Convolutional Network and a Graphical Model for Human Pose Estimation",
    NIPS 2014. The code of Shukla & Ahmed 2021 scales the peak to 30, and losses by 900. Neither ranking objective sees
    a common factor, so the height here is 1, and a predicted peak reads as a confidence.
    """
    centres = (keypoints + 0.5) * (heatmap_size / input_size) - 0.5
    grid = torch.arange(heatmap_size, device=keypoints.device, dtype=keypoints.dtype)
    # A Gaussian is separable: H + W exponentials a keypoint instead of H * W.
    profiles = torch.exp(-0.5 * ((grid - centres[..., None]) / sigma).square())  # (B, K, 2, H)
    profiles = torch.where(keypoints.isnan().any(dim=-1)[..., None, None], 0.0, profiles)
    along_x, along_y = profiles.unbind(dim=2)
    return along_y[..., :, None] * along_x[..., None, :]


def decode_heatmaps(heatmaps: Tensor, *, input_size: int) -> DecodedPose:
    """Sub-pixel position of each heatmap's maximum, in input pixels, and its value; the lowest index wins a tie.

    Along each axis it is the vertex of the parabola through the *logarithm* of three pixels: exact for a Gaussian.
    It stays within half a heatmap pixel of the arg max, and is the arg max where the parabola does not open downwards
    or a pixel is not positive. A heatmap with NaN has the peak NaN.

    Args:
        heatmaps: (B, K, H, W), H = W of at least 3.
        input_size: height and width of the input (px).

    Source: Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose Estimation" (DARK), CVPR 2020,
    without its smoothing and without the mixed derivative, which is 0 for the Gaussians that `encode_heatmaps` makes.
    """
    size = heatmaps.shape[-1]
    peaks, index = heatmaps.flatten(start_dim=2).max(dim=2)
    column, row = index % size, index // size  # (B, K)
    rows = heatmaps.gather(2, row[..., None, None].expand(-1, -1, 1, size))[:, :, 0, :]  # (B, K, W)
    columns = heatmaps.gather(3, column[..., None, None].expand(-1, -1, size, 1))[:, :, :, 0]  # (B, K, H)
    centres = torch.stack((_refine(rows, column), _refine(columns, row)), dim=-1)
    return DecodedPose((centres + 0.5) * (input_size / size) - 0.5, peaks.float())


def _refine(profiles: Tensor, index: Tensor) -> Tensor:
    """Sub-pixel position (B, K) of the maximum of `profiles` (B, K, size), whose arg max is `index` (B, K)."""
    # At a border the three pixels move inwards: the parabola is the same, only its vertex lies off their middle.
    middle = index.clamp(1, profiles.shape[-1] - 2)
    offsets = torch.arange(-1, 2, device=index.device)
    three = profiles.gather(2, middle[..., None] + offsets).float()
    before, at, after = three.log().unbind(dim=-1)
    curvature = before - 2 * at + after
    vertex = middle + 0.5 * (before - after) / curvature
    usable = (three > 0).all(dim=-1) & (curvature < 0)
    return torch.where(usable, vertex.clamp(index - 0.5, index + 0.5), index.float())
