"""The published loss heads, which read an estimator's features and predict one loss an image; no gradient flows back.

Sources: GAP after Yoo & Kweon, "Learning Loss for Active Learning", CVPR 2019; GAP and conv as in Shukla & Ahmed,
"A Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPRW 2021.
# B batch, H, W feature size (px), C channels
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import InputError
from model.estimator import PoseOutput

HIDDEN_WIDTHS = (128, 64, 32, 16, 8)  # Shukla & Ahmed 2021


class GapLossHead(nn.Module):
    """Global average pool of the penultimate map, then fully connected layers ("LL", "LL++")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.regressor = _regressor(channels)

    def forward(self, output: PoseOutput) -> Tensor:
        """Predicted loss (B,), float32, of any sign, from `features[0]` (B, C, H, W)."""
        pooled = output.features[0].mean(dim=(2, 3), dtype=torch.float32)
        return _predict(self.regressor, pooled)


class ConvLossHead(nn.Module):
    """Convolutional loss head ("LL++conv"): from the finest scale down, a 2x2 convolution carries each map to the next.

    Args:
        channels: C of every feature map.
        num_scales: number of feature maps, each half the size of the one before.
        coarsest_size: height and width of the last one (px).
    """

    def __init__(self, channels: int, num_scales: int, coarsest_size: int) -> None:
        super().__init__()
        self.downs = nn.ModuleList(nn.Conv2d(channels, channels, 2, stride=2) for _ in range(num_scales - 1))
        self.to_vector = nn.Conv2d(channels, channels, coarsest_size)
        self.regressor = _regressor(channels)

    def forward(self, output: PoseOutput) -> Tensor:
        """Predicted loss (B,), float32, of any sign, from all features, finest first.

        Raises:
            InputError: the number of features, or the size of the last, is not what the head was built for.
        """
        features = output.features
        self._check(features)
        x = features[0]
        for down, feature in zip(self.downs, features[1:], strict=True):
            x = F.relu(down(x)) + feature
        return _predict(self.regressor, self.to_vector(x).flatten(start_dim=1))

    def _check(self, features: tuple[Tensor, ...]) -> None:
        expected = (len(self.downs) + 1, *self.to_vector.kernel_size)
        found = (len(features), *features[-1].shape[-2:])
        if found != expected:
            raise InputError(f"conv loss head: expected (scales, height, width of the last) {expected}, found {found}")


def _regressor(channels: int) -> nn.Sequential:
    """Fully connected layers C-128-64-32-16-8-1, ReLU between; none after the last, so the prediction has any sign."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((channels, *HIDDEN_WIDTHS)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(HIDDEN_WIDTHS[-1], 1))


def _predict(regressor: nn.Sequential, pooled: Tensor) -> Tensor:
    """(B,) from `pooled` (B, C). In float32 even under autocast: bfloat16 keeps 8 bits, and a ranking would be ties."""
    with torch.autocast(pooled.device.type, enabled=False):
        predicted: Tensor = regressor(pooled.float())
    return predicted[:, 0]
