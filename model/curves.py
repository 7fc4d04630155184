"""How well a ranking of images finds failures: the heads of it, and the area under its risk-coverage curve.

Images with equal scores are in no order: every number is what to expect of an order drawn at random among them,
exactly. So a constant score is as good as chance and no better, whatever the order of the rows.

# N images; scores and values are finite
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def head_means(score: Floats, values: Floats) -> NDArray[np.float64]:
    """(N,) mean value of the 1, 2, …, N images of the highest score.

    Args:
        score: (N,) what ranks.
        values: (N,) what is averaged.
    """
    _, tie, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(tie, weights=values, minlength=len(counts)) / counts
    descending = np.repeat(means[::-1], counts[::-1])
    return np.asarray(np.cumsum(descending) / np.arange(1, len(score) + 1))


def head_weights(score: Floats, *, count: int) -> NDArray[np.float64]:
    """(N,) the probability of each image to be among the `count` of the highest score: 0, 1, or between for ties.

    The weights sum to `count`, or to N where there are no more.
    """
    _, tie, counts = np.unique(score, return_inverse=True, return_counts=True)
    num_higher = len(score) - np.cumsum(counts)  # of each distinct score
    return np.asarray(np.clip((count - num_higher) / counts, 0.0, 1.0)[tie])


def head_size(num_images: int, share: float) -> int:
    """The images of a head that is this share of all: rounded, and one at least."""
    return max(1, round(share * num_images))


def mean_of_heads(score: Floats, values: Floats, *, shares: Sequence[float]) -> NDArray[np.float64]:
    """The failure-detection curve: mean value of the images with the highest score, for each share; NaN without images.

    Of the PCK of images, the lower the better does the score find failures; random gives the mean of all.

    Args:
        score: (N,) what ranks.
        values: (N,) what is averaged.
        shares: of N; see `head_size`.
    """
    if not len(score):
        return np.full(len(shares), np.nan)
    means = head_means(score, values)
    return means[[head_size(len(score), share) - 1 for share in shares]]


def coverage_risks(score: Floats, risk: Floats) -> NDArray[np.float64]:
    """The risk-coverage curve (N,): mean risk of the 1, 2, …, N images of the *lowest* score, which one trusts most.

    Source: El-Yaniv & Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010; Geifman &
    El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017, where the risk is the 0/1 loss.
    """
    return head_means(-score, risk)


def area_under_risks(score: Floats, risk: Floats) -> float:
    """AURC: the mean of `coverage_risks` over all coverages 1/N, 2/N, …, 1. NaN without images.

    Random gives the mean risk; the risk itself as the score gives the lowest area there is, and how far an area is
    above that is the excess (E-AURC).

    Source: Geifman, Uziel & El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019.
    """
    return float(coverage_risks(score, risk).mean()) if len(score) else float("nan")


def area_under_sparsification_error(score: Floats, risk: Floats) -> float:
    """AUSE: how far `area_under_risks` is above the lowest there is, over the mean risk; NaN without images or risk.

    0 for the oracle; the sparsification curve is the risk-coverage curve, read from full coverage down.

    Source: Ilg et al., "Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow", ECCV 2018.
    """
    if not len(risk) or not risk.mean():
        return float("nan")
    return (area_under_risks(score, risk) - area_under_risks(risk, risk)) / float(risk.mean())
