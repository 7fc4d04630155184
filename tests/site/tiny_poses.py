"""An estimator of three layers, offered as one's own package would: for tests of trainings that need no good poses."""

from __future__ import annotations

import torch
from torch import nn

from model.estimator import PoseOutput, estimator


class TinyPoses(nn.Module):
    """One convolution, a batch norm, and a convolution to heatmaps."""

    def __init__(self, num_keypoints: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8), nn.ReLU())
        self.heatmaps = nn.Conv2d(8, num_keypoints, 3, padding=1)

    def forward(self, images: torch.Tensor) -> PoseOutput:
        """Heatmaps (B, 1, K, 16, 16) and features (B, 8, 16, 16) of images (B, 3, 64, 64)."""
        features = self.features(images)
        return PoseOutput(self.heatmaps(features)[:, None], (features,))


@estimator(input_size=64, heatmap_size=16)
def tiny(num_keypoints: int) -> nn.Module:
    """Named `tiny_poses:tiny` on command lines and in bundles."""
    return TinyPoses(num_keypoints)
