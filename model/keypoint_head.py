"""The keypoint head: loss and miss probability of each keypoint; an image gets their means.

It reads the heatmaps alone, and is taught after the estimator (`model.keypoint_teaching`).
# B batch, K keypoints, H, W heatmap size (px), F inputs
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.keypoint_inputs import keypoint_inputs, num_inputs
from model.skeleton import Skeleton

WIDTH = 64
DROPOUT = 0.1
NUM_MEMBERS = 2  # initialisations whose answers are averaged; six gained nothing
_FARTHEST = 4.0  # deviations from the mean that an input is cut at


class ImageJudgement(NamedTuple):
    """Predictions of a head for images. `miss` is NaN where nothing taught it."""

    predicted_loss: Tensor  # (B,) float32: mean loss of the keypoints + miss_weight x mean P(miss)
    miss: Tensor  # (B, K) float32, 0 to 1: P(farther than 0.2 torsos from the truth)


class KeypointHead(nn.Module):
    """Two judges of the same shape: of a plain view, and of a plain and a mirrored one (None without left and right).

    Args:
        skeleton: names the K keypoints, their counterparts and the torso.
        sigma: of the target Gaussians, in heatmap pixels.
    """

    def __init__(self, skeleton: Skeleton, *, sigma: float) -> None:
        super().__init__()
        self.skeleton = skeleton
        self.sigma = sigma
        self.plain = KeypointJudge(num_inputs(skeleton.num_keypoints, is_mirrored=False))
        self.mirrored = (
            KeypointJudge(num_inputs(skeleton.num_keypoints, is_mirrored=True)) if skeleton.flip_pairs else None
        )

    def forward(self, plain: Tensor, mirrored: Tensor | None = None) -> ImageJudgement:
        """Judgement from the last stack's heatmaps (B, K, H, W) and those of the mirrored image, mapped back."""
        with torch.autocast(plain.device.type, enabled=False):
            judge = self.plain if mirrored is None or self.mirrored is None else self.mirrored
            inputs = keypoint_inputs(plain, mirrored, skeleton=self.skeleton, sigma=self.sigma)
            judgement: ImageJudgement = judge(inputs)
        return judgement

    @property
    def is_taught(self) -> bool:
        """True once it has been taught; before that its answers mean nothing."""
        return self.plain.is_taught


class KeypointJudge(nn.Module):
    """Fully connected layers over the inputs of one keypoint, the same for all keypoints.

    Until it is taught every image has the predicted loss 0.

    Args:
        width: F.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(_layers(width) for _ in range(NUM_MEMBERS))
        self.mean: Tensor
        self.scale: Tensor
        self.loss_scale: Tensor
        self.miss_weight: Tensor
        self.knows_misses: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("loss_scale", torch.zeros(()))  # true loss / that of the layers; 0 until taught
        self.register_buffer("miss_weight", torch.zeros(()))  # deviation of mean losses / that of shares missed
        self.register_buffer("knows_misses", torch.zeros((), dtype=torch.bool))
        self.requires_grad_(requires_grad=False)  # it is no part of the estimator's training

    @property
    def is_taught(self) -> bool:
        """True once it has been taught; before that its answers mean nothing."""
        return bool(self.loss_scale > 0)

    def forward(self, inputs: Tensor) -> ImageJudgement:
        """Judgement from inputs (B, K, F) float32."""
        loss, miss = self.judge_keypoints(inputs)
        predicted = loss.mean(dim=1) + self.miss_weight * miss.mean(dim=1)
        return ImageJudgement(predicted, torch.where(self.knows_misses, miss, torch.nan))

    def judge_keypoints(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and P(miss), (B, K) each: means over the members."""
        standardised = self.standardise(inputs)
        losses, misses = zip(*(answers(member, standardised) for member in self.members), strict=True)
        loss = self.loss_scale * torch.stack(losses).mean(dim=0)
        return loss, torch.stack(misses).sigmoid().mean(dim=0)

    def standardise(self, inputs: Tensor) -> Tensor:
        """Values standardised by mean and deviation over the rows that taught the head, far outliers cut."""
        return ((inputs - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)


def answers(member: nn.Module, standardised: Tensor) -> tuple[Tensor, Tensor]:
    """Loss before scaling, at least 0, and log odds of a miss, (B, K) each, by one member."""
    found: Tensor = member(standardised)
    return F.softplus(found[..., 0]), found[..., 1]


def _layers(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, WIDTH),
        nn.SiLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, WIDTH),
        nn.SiLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, 2),
    )
