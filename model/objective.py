"""The estimator's true loss per image, the ranking objectives that teach a loss head its order, and the methods.

A method is a loss head and what teaches it. Sources: ll: Yoo & Kweon, "Learning Loss for Active Learning", CVPR 2019;
ll++ and ll++conv: Shukla & Ahmed, "A Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPRW
2021; these three as published: half of the pairs of a batch, a constant rate of the head. keypoint: this project's;
LL++'s objective over all pairs, and the probability that each keypoint is missed.
# B batch, S stacks, K keypoints, H, W heatmap size (px), P pairs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from model.errors import BundleError

Pairs = Literal["half", "all"]


def heatmap_loss(heatmaps: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
    """True loss of each image (B,): squared error, mean over pixels, labelled keypoints and stacks.

    Unlabelled keypoints add nothing, to the value or to the gradient, even where their target is NaN. An image without
    labelled keypoints gives 0, which is not a small loss: leave it out of the ranking.

    Args:
        heatmaps: (B, S, K, H, W), one prediction a stack.
        targets: (B, K, H, W).
        labelled: (B, K) bool.

    Source: Shukla & Ahmed 2021. Their code divides by the number of labelled keypoints plus 0.1, against division by
    zero; that shrinks the loss of an image by how few of its keypoints are labelled (1 of 1: -9 %, 14 of 14: -0.7 %),
    so here the number itself divides.
    """
    num_labelled = labelled.sum(dim=1).clamp(min=1)
    return keypoint_losses(heatmaps, targets, labelled).sum(dim=1) / num_labelled


def keypoint_losses(heatmaps: Tensor, targets: Tensor, labelled: Tensor) -> Tensor:
    """Squared error of each keypoint (B, K), mean over pixels and stacks; 0, without gradient, if it is not labelled.

    Args: as `heatmap_loss`.
    """
    mask = labelled[:, None, :, None, None]
    # Masked before squaring: a NaN that is squared first comes back through the gradient.
    error = torch.where(mask, heatmaps - targets[:, None], 0.0)
    return error.square().mean(dim=(3, 4), dtype=torch.float32).mean(dim=1)


def pair_indices(batch_size: int, *, pairs: Pairs, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Indices i and j, (P,) int64 each, of the pairs that a batch is ranked by; none for a batch of 0 or 1.

    "half": (i, i + B // 2), the paper's; the last image of an odd batch is in no pair. "all": every i < j.
    """
    if pairs == "all":
        i, j = torch.triu_indices(batch_size, batch_size, offset=1, device=device)
        return i, j
    first = torch.arange(batch_size // 2, device=device)
    return first, first + batch_size // 2


def count_pairs(true: Tensor, *, pairs: Pairs, distinct: bool = False) -> Tensor:
    """Number of pairs of a batch with true losses (B,) that the ranking loss is the mean of: a scalar int64.

    `distinct` counts those alone whose losses differ, which is what `margin_ranking_loss` learns from.
    """
    i, j = pair_indices(len(true), pairs=pairs, device=true.device)
    return (true[i] != true[j]).sum() if distinct else torch.tensor(len(i), device=true.device)


def margin_ranking_loss(predicted: Tensor, true: Tensor, *, pairs: Pairs, margin: float = 1.0) -> Tensor:
    """LL: mean over pairs of max(0, margin - sign(l_i - l_j) (s_i - s_j)) for predictions s: a scalar, 0 without pairs.

    Pairs of equal true losses (or with a NaN) have no order to teach. The published formula gives them the constant
    `margin`, without gradient; here they are left out of the mean.

    Args:
        predicted: (B,) losses that the head predicts.
        true: (B,) the estimator's losses; no gradient flows into them.
        pairs: see `pair_indices`.
        margin: distance that a ranked pair of predictions is pushed apart to.

    Source: Yoo & Kweon 2019, eq. 2.
    """
    i, j = pair_indices(len(predicted), pairs=pairs, device=predicted.device)
    order = torch.sign(true.detach()[i] - true.detach()[j])
    hinge = F.relu(margin - order * (predicted[i] - predicted[j]))
    return _mean(torch.where(order != 0, hinge, 0.0), count=(order != 0).sum())


def kl_ranking_loss(predicted: Tensor, true: Tensor, *, pairs: Pairs) -> Tensor:
    """LL++: mean over pairs of KL(p || q), p = (l_i, l_j) / (l_i + l_j), q = softmax(s_i, s_j).

    A scalar, 0 without pairs. A pair's gradient with respect to the prediction s_i is q_i - p_i: it vanishes as the
    ratio gets right. Two losses of zero are taken as equal, p = (0.5, 0.5). A true loss of NaN makes the result NaN.

    Args:
        predicted: (B,) losses that the head predicts, of any sign.
        true: (B,) the estimator's losses, at least 0; no gradient flows into them.
        pairs: see `pair_indices`.

    Source: Shukla & Ahmed 2021.
    """
    i, j = pair_indices(len(predicted), pairs=pairs, device=predicted.device)
    share_i, share_j = _shares(true.detach()[i], true.detach()[j])
    gap = predicted[i] - predicted[j]
    cross_entropy = -share_i * F.logsigmoid(gap) - share_j * F.logsigmoid(-gap)
    entropy = -torch.xlogy(share_i, share_i) - torch.xlogy(share_j, share_j)
    return _mean(cross_entropy - entropy, count=torch.tensor(len(gap), device=gap.device))


@dataclass(frozen=True, kw_only=True)
class Method:
    """A loss head and its objective."""

    head: Literal["gap", "conv", "keypoint"]
    ranking_loss: Callable[..., Tensor] | None  # beside the pose loss; None: the head is taught after the estimator
    needs_distinct_losses: bool = False  # pairs of equal losses teach nothing


METHODS: dict[str, Method] = {
    "ll": Method(head="gap", ranking_loss=margin_ranking_loss, needs_distinct_losses=True),
    "ll++": Method(head="gap", ranking_loss=kl_ranking_loss),
    "ll++conv": Method(head="conv", ranking_loss=kl_ranking_loss),
    "keypoint": Method(head="keypoint", ranking_loss=None),
}


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        BundleError: there is none of that name.
    """
    if name not in METHODS:
        raise BundleError(f"method: expected {', '.join(METHODS)}, found {name!r}")
    return METHODS[name]


def _shares(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each in their sum, (P,) twice; a half where both are 0."""
    total = first + second
    both_zero = total == 0
    return torch.where(both_zero, 0.5, first / total), torch.where(both_zero, 0.5, second / total)


def _mean(values: Tensor, *, count: Tensor) -> Tensor:
    """Sum over count; 0 if there is nothing to count, and still part of the graph: a worker must not skip backward."""
    return values.sum() / count.clamp(min=1)
