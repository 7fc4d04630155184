"""Fitting a pose model and its loss head: one step, one optimiser, one schedule. Single-device code.

# B batch, S input size (px), K keypoints
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.heatmap import encode_heatmaps
from model.objective import Pairs, heatmap_loss, kl_ranking_loss, margin_ranking_loss
from model.pose_model import ModelSpec, PoseModel

RankingName = Literal["ll", "ll++"]

_WARM_UP_SHARE = 0.05  # of all steps
_FINAL_RATE_SHARE = 0.01  # of the peak learning rate, at the end of the cosine


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What is optimised, and how fast."""

    ranking: RankingName = "ll++"
    pairs: Pairs = "all"
    learning_rate: float = 1e-3  # of the estimator, at its peak; falls along a cosine
    head_learning_rate: float = 3e-4  # of the loss head; stays. Source: the paper's set-up


class Batch(NamedTuple):
    """Labelled crops on the model's device."""

    pixels: Tensor  # (B, S, S, 3) uint8
    keypoints: Tensor  # (B, K, 2) crop pixels
    labelled: Tensor  # (B, K) bool


class Losses(NamedTuple):
    """Scalars of one step."""

    pose: Tensor  # mean true loss of the images
    ranking: Tensor


def compute_losses(model: nn.Module, batch: Batch, *, spec: ModelSpec, options: FitOptions) -> Losses:
    """The estimator's loss and the head's ranking loss of one batch; images without a labelled keypoint teach neither.

    `model` is a `PoseModel`, or a wrapper of one that returns the same.
    """
    prediction = model(batch.pixels)
    targets = encode_heatmaps(
        batch.keypoints, input_size=spec.input_size, heatmap_size=spec.heatmap_size, sigma=spec.sigma
    )
    true_loss = heatmap_loss(prediction.heatmaps, targets, batch.labelled)
    known = batch.labelled.any(dim=1)
    pose = true_loss.sum() / known.sum().clamp(min=1)
    rank = margin_ranking_loss if options.ranking == "ll" else kl_ranking_loss
    return Losses(pose, rank(prediction.predicted_loss[known], true_loss[known].detach(), pairs=options.pairs))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, *, spec: ModelSpec, options: FitOptions
) -> Losses:
    """One gradient step; returns the losses before it. The parts share no parameter, so their sum needs no weight."""
    losses = compute_losses(model, batch, spec=spec, options=options)
    optimizer.zero_grad(set_to_none=True)
    (losses.pose + losses.ranking).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return Losses(losses.pose.detach(), losses.ranking.detach())


def make_optimizer(model: PoseModel, options: FitOptions) -> torch.optim.Optimizer:
    """Adam with one group for the estimator and one for the loss head."""
    return torch.optim.Adam(
        [
            {"params": list(model.estimator.parameters()), "lr": options.learning_rate},
            {"params": list(model.loss_head.parameters()), "lr": options.head_learning_rate},
        ]
    )


def make_schedule(optimizer: torch.optim.Optimizer, *, num_steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up, then a cosine, for the estimator; the head's rate stays, since its targets keep moving."""

    def estimator_share(step: int) -> float:
        warm_up = max(1, round(_WARM_UP_SHARE * num_steps))
        if step < warm_up:
            return (step + 1) / warm_up
        done = min(1.0, (step - warm_up) / max(1, num_steps - warm_up))
        return _FINAL_RATE_SHARE + (1 - _FINAL_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [estimator_share, lambda _: 1.0])
