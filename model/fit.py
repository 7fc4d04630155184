"""Fitting a pose model and its loss head: losses, one step, one optimiser, its rates. Single-device code.

# B batch, S input size (px), K keypoints
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.choices import Precision
from model.heatmap import encode_heatmaps
from model.objective import count_pairs, find_method, heatmap_loss
from model.pose_model import PoseModel
from model.spec import ModelSpec

WARM_UP_SHARE = 0.05  # of the training
_FINAL_SHARE = 0.01  # of the peak rate, at the end. Source: the paper's set-up
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Rates, gradient clipping and precision; `rate_share` says how the estimator's rate falls."""

    learning_rate: float = 1e-3  # of the estimator, at its peak
    head_learning_rate: float = 3e-4  # of the loss head. Source: the paper's set-up
    clip_norm: float | None = None  # greatest norm of the estimator's gradient, and of the head's
    precision: Precision = "float32"  # of convolutions and matrix products, by autocast; weights stay in float32


class Batch(NamedTuple):
    """Labelled crops on the model's device."""

    pixels: Tensor  # (B, S, S, 3) uint8
    keypoints: Tensor  # (B, K, 2) crop pixels
    labelled: Tensor  # (B, K) bool


class Losses(NamedTuple):
    """Scalars of one batch."""

    pose: Tensor  # mean true loss of the images with labels
    ranking: Tensor
    num_pairs: Tensor  # that the ranking loss is the mean of; 0 for a head that is taught after the estimator


def compute_losses(model: nn.Module, batch: Batch, *, spec: ModelSpec, options: FitOptions) -> Losses:
    """The estimator's loss and the head's ranking loss of one batch; images without a labelled keypoint teach neither.

    Args:
        model: a `PoseModel`, or a wrapper of one that returns the same.
        batch: on the model's device.
        spec: what the model expects, and the method.
        options: the precision.
    """
    with torch.autocast(batch.pixels.device.type, _DTYPES[options.precision], enabled=options.precision != "float32"):
        prediction = model(batch.pixels)
    targets = encode_heatmaps(
        batch.keypoints, input_size=spec.input_size, heatmap_size=spec.heatmap_size, sigma=spec.sigma
    )
    true_loss = heatmap_loss(prediction.heatmaps, targets, batch.labelled)
    known = batch.labelled.any(dim=1)
    # A product, not an index: where no row is labelled, the gradient is zero and still there.
    pose = (true_loss * known).sum() / known.sum().clamp(min=1)
    method = find_method(spec.method)
    if method.ranking_loss is None:
        return Losses(pose, torch.zeros_like(pose), torch.zeros((), dtype=torch.int64, device=pose.device))
    true = true_loss.detach()[known]  # on a GPU the host waits here, to learn how many there are
    ranking = method.ranking_loss(prediction.predicted_loss[known], true, pairs="half")
    return Losses(pose, ranking, count_pairs(true, pairs="half", distinct=method.needs_distinct_losses))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    spec: ModelSpec,
    options: FitOptions,
    scaler: torch.amp.GradScaler | None = None,
) -> Losses:
    """One gradient step on the mean of the batches' losses, which are formed in each by itself; the losses before it.

    The estimator and the head share no parameter, so that their sum needs no weight.

    Args:
        model: a `PoseModel`, or a wrapper; under one that averages gradients (DDP), they are averaged once a step.
        optimizer: from `make_optimizer`.
        batches: one, or several whose gradients are accumulated.
        spec: what the model expects.
        options: what is optimised.
        scaler: for float16; None for types that need none.
    """
    optimizer.zero_grad(set_to_none=True)
    found: list[Losses] = []
    for index, batch in enumerate(batches):
        with nullcontext() if index == len(batches) - 1 else _without_averaging(model):
            losses = compute_losses(model, batch, spec=spec, options=options)
            total = (losses.pose + losses.ranking) / len(batches)
            (scaler.scale(total) if scaler else total).backward()  # type: ignore[no-untyped-call]
        found.append(Losses(*(value.detach() for value in losses)))
    _step(optimizer, options, scaler)
    pose, ranking, num_pairs = (torch.stack(values) for values in zip(*found, strict=True))
    return Losses(pose.mean(), ranking.mean(), num_pairs.sum())


def make_scaler(options: FitOptions, device: torch.device) -> torch.amp.GradScaler | None:
    """Scaler that keeps gradients of float16 in range; None for other types."""
    return torch.amp.GradScaler(device.type) if options.precision == "float16" else None


def make_optimizer(model: PoseModel, options: FitOptions) -> torch.optim.Optimizer:
    """Adam with one group for the estimator and one for the loss head."""
    return torch.optim.Adam(
        [
            {"params": list(model.estimator.parameters()), "lr": options.learning_rate},
            {"params": list(model.loss_head.parameters()), "lr": options.head_learning_rate},
        ]
    )


def _without_averaging(model: nn.Module) -> AbstractContextManager[None]:
    no_sync = getattr(model, "no_sync", nullcontext)
    averaging_is_off: AbstractContextManager[None] = no_sync()
    return averaging_is_off


def _step(optimizer: torch.optim.Optimizer, options: FitOptions, scaler: torch.amp.GradScaler | None) -> None:
    if scaler:
        scaler.unscale_(optimizer)
    if options.clip_norm is not None:
        for group in optimizer.param_groups:  # each by itself: a head that starts badly must not slow the estimator
            nn.utils.clip_grad_norm_(group["params"], options.clip_norm)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


def rate_share(progress: float) -> float:
    """Share of the estimator's peak rate: a linear warm-up, then along a cosine down to 1 %.

    A function of the share of the training that is done, 0 to 1, is the same for any number of workers and needs no
    state.
    """
    if progress < WARM_UP_SHARE:
        return max(progress / WARM_UP_SHARE, _FINAL_SHARE)
    done = min(1.0, (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2
