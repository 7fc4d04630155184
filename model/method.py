"""The methods of predicting an image's loss: which head reads the estimator, and what teaches it.

Sources: ll: Yoo & Kweon, "Learning Loss for Active Learning", CVPR 2019; ll++ and ll++conv: Shukla & Ahmed, "A
Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPRW 2021; these three as published: half of
the pairs of a batch, a constant rate of the head. keypoint: this project's; LL++'s objective over all pairs, and the
probability that each keypoint is missed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from model.errors import BundleError
from model.objective import kl_ranking_loss, margin_ranking_loss

MethodName = Literal["ll", "ll++", "ll++conv", "keypoint"]


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
