"""Teaching the keypoint head, after the estimator: LL++'s objective for the loss, cross-entropy for the miss.

# N images, K keypoints, F inputs
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from model.device import one_thread
from model.keypoint_head import KeypointJudge, answers
from model.objective import kl_ranking_loss

# Source of all: trials on LSP, LSPET and the synthetic fleet.
EPOCHS = 18
_IMAGES_A_STEP = 37  # 14 keypoints of each: some 512
_RATE = 2e-3
_DECAY = 0.02
_FLOOR = 1e-12


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Training examples of the keypoint head: its inputs for N images, and the truth."""

    inputs: Tensor  # (N, K, F) float32
    keypoint_loss: Tensor  # (N, K) mean squared error over pixels and stacks; NaN where not labelled
    is_missed: Tensor  # (N, K) float32: 1 where the prediction is beyond 0.2 torsos, 0 within, NaN where not judged

    def take(self, rows: Tensor) -> Lesson:
        """Some of the images."""
        return Lesson(inputs=self.inputs[rows], keypoint_loss=self.keypoint_loss[rows], is_missed=self.is_missed[rows])

    @property
    def true_loss(self) -> Tensor:
        """(N,) mean over labelled keypoints; NaN without any."""
        return self.keypoint_loss.nanmean(dim=1)


def teach(judge: KeypointJudge, lesson: Lesson, *, seed: int) -> None:
    """Teaches a judge; images without labels teach nothing.

    The loss is taught by LL++ (KL over all pairs of a step, of the mean over labelled keypoints), which fixes ratios
    alone; it is scaled to the mean true loss afterwards. The same seed gives the same weights.
    """
    lesson = lesson.take(lesson.true_loss.isfinite())
    flat = lesson.inputs.flatten(0, 1)
    judge.mean.copy_(flat.mean(dim=0))
    deviation = flat.std(dim=0)
    judge.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
    with torch.random.fork_rng(devices=[]), one_thread():
        for index, member in enumerate(judge.members):
            torch.manual_seed(seed * 101 + index)
            for layer in member.children():
                if isinstance(layer, torch.nn.Linear):
                    layer.reset_parameters()
            _fit(member, replace(lesson, inputs=judge.standardise(lesson.inputs)))
    judge.eval()
    with torch.no_grad():
        _scale(judge, lesson)


def _fit(member: torch.nn.Module, lesson: Lesson) -> None:
    member.requires_grad_(requires_grad=True).train()
    optimizer = torch.optim.AdamW(member.parameters(), lr=_RATE, weight_decay=_DECAY)
    num_steps = EPOCHS * -(-len(lesson.inputs) // _IMAGES_A_STEP)
    done = 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(lesson.inputs))
        for start in range(0, len(order), _IMAGES_A_STEP):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 + math.cos(math.pi * done / num_steps)) / 2
            loss = _objective(member, lesson.take(order[start : start + _IMAGES_A_STEP]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
    member.requires_grad_(requires_grad=False).eval()


def _objective(member: torch.nn.Module, lesson: Lesson) -> Tensor:
    loss, odds = answers(member, lesson.inputs)
    is_labelled = lesson.keypoint_loss.isfinite()
    mean = (loss * is_labelled).sum(dim=1) / is_labelled.sum(dim=1)
    ranking = kl_ranking_loss(mean.clamp(min=_FLOOR).log(), lesson.true_loss, pairs="all")
    is_judged = lesson.is_missed.isfinite()
    each = F.binary_cross_entropy_with_logits(odds, lesson.is_missed.nan_to_num(), reduction="none")
    return ranking + (each * is_judged).sum() / is_judged.sum().clamp(min=1)


def _scale(judge: KeypointJudge, lesson: Lesson) -> None:
    """Sets the scale of the losses, and the weight of a miss beside them."""
    judge.loss_scale.fill_(1.0)
    loss, miss = judge.judge_keypoints(lesson.inputs)
    predicted = torch.where(lesson.keypoint_loss.isfinite(), loss, torch.nan).nanmean(dim=1)
    judge.loss_scale.copy_(lesson.true_loss.mean() / predicted.mean())
    if bool(lesson.is_missed.isfinite().any()):
        judge.knows_misses.fill_(value=True)
        losses, misses = (judge.loss_scale * loss).mean(dim=1), miss.mean(dim=1)
        # Of one image the deviation is 0, and not NaN as that of a sample.
        judge.miss_weight.copy_(losses.std(correction=0) / misses.std(correction=0).clamp(min=1e-6))


def join_lessons(lessons: Sequence[Lesson]) -> Lesson:
    """The images of all, in their order."""
    names = Lesson.__dataclass_fields__
    return Lesson(**{name: torch.cat([getattr(each, name) for each in lessons]) for name in names})
