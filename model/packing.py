"""The results of a batch as one tensor, so that a single copy brings everything back from a device.

# B batch, S input size (px), K keypoints, H, W heatmap size (px), D embedding
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.heatmap import decode_heatmaps
from model.pose_model import PoseModel, Views

# Pixels (B, S, S, 3) to packed results (B, 4 + 4K + D) and heatmaps (B, stacks, K, H, W).
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]

TRUE_LOSS, PEAK_ENTROPY = 2, 3  # columns of packed results; NaN until somebody who has labels fills them


class RowResults(NamedTuple):
    """One row each, padding included."""

    predicted_loss: NDArray[np.float32]  # (B,)
    confidence: NDArray[np.float32]  # (B,) mean over keypoints of the heatmap peak
    true_loss: NDArray[np.float32]  # (B,) NaN where unknown
    peak_entropy: NDArray[np.float32]  # (B,) NaN where unknown
    peaks: NDArray[np.float32]  # (B, K)
    keypoints: NDArray[np.float32]  # (B, K, 2) crop pixels
    miss: NDArray[np.float32]  # (B, K) P(miss); NaN where the head has no opinion
    embedding: NDArray[np.float32]  # (B, D)


def predict_packed(model: PoseModel, *, views: Views = 1) -> Forward:
    """The whole way from pixels to packed results as one function, to be compiled as one."""
    input_size = model.spec.input_size

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        prediction = model(pixels, views) if views > 1 else model(pixels)
        pose = decode_heatmaps(prediction.heatmaps[:, -1].float(), input_size=input_size)
        confidence = pose.peaks.mean(dim=1)
        unknown = torch.full_like(confidence, torch.nan)
        scalars = torch.stack((prediction.predicted_loss.float(), confidence, unknown, unknown), dim=1)
        points = pose.keypoints.flatten(start_dim=1)
        columns = (scalars, pose.peaks, points, prediction.miss, prediction.embedding.float())
        return torch.cat(columns, dim=1), prediction.heatmaps

    return forward


def unpack(packed: NDArray[np.float32], *, num_keypoints: int) -> RowResults:
    """The columns by name; views of `packed`."""
    widths = [4, num_keypoints, 2 * num_keypoints, num_keypoints]
    scalars, peaks, points, miss, embedding = np.split(packed, np.cumsum(widths), axis=1)
    predicted_loss, confidence, true_loss, peak_entropy = scalars.T
    points = points.reshape(-1, num_keypoints, 2)
    return RowResults(predicted_loss, confidence, true_loss, peak_entropy, peaks, points, miss, embedding)
