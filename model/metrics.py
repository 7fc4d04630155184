"""Pose metrics (PCK, PCKh), correlations, and how well a ranking of images finds failures.

NaN marks what cannot be judged; nothing here warns about it. Rankings are of finite numbers: images with equal scores
are in no order, and every number is the exact expectation over an order drawn at random among them. So a constant score
is as good as chance and no better, whatever the order of the rows.

# N images, K keypoints
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.skeleton import Skeleton

PCK_THRESHOLD = 0.2  # of the torso. Source: the paper, for LSP and LSPET
PCKH_THRESHOLD = 0.5  # of the head. Source: Andriluka et al., "2D Human Pose Estimation", CVPR 2014

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]


def normalised_distances(
    predicted: Floats, true: Floats, labelled: Bools, *, reference_lengths: Floats
) -> NDArray[np.float64]:
    """Distance of each prediction from the truth as a share of the image's reference length: (N, K).

    NaN where the keypoint is not labelled or the reference length is not a positive number. A labelled keypoint whose
    *prediction* is NaN is infinitely far away: it counts as a miss, and does not drop out of the score.

    Args:
        predicted: (N, K, 2) pixels.
        true: (N, K, 2) pixels of the same frame.
        labelled: (N, K) bool.
        reference_lengths: (N,) pixels, from `torso_lengths` or `head_lengths`.
    """
    distances = _lengths(np.asarray(predicted, np.float64) - true)
    distances[np.isnan(predicted).any(axis=-1)] = np.inf
    usable = (reference_lengths > 0) & np.isfinite(reference_lengths)  # (N,)
    judged = labelled & usable[:, None] & np.isfinite(true).all(axis=-1)
    return np.where(judged, distances / np.where(usable, reference_lengths, 1.0)[:, None], np.nan)


def torso_lengths(keypoints: Floats, labelled: Bools, skeleton: Skeleton) -> NDArray[np.float64]:
    """Length of the longer labelled torso diagonal (N,), in pixels: what PCK is normalised by. NaN if none is labelled.

    A skeleton without torso has no PCK: NaN for all.

    Args:
        keypoints: (N, K, 2) true positions.
        labelled: (N, K) bool.
        skeleton: names the diagonals, shoulder to opposite hip.
    """
    longest = np.full(len(keypoints), np.nan)
    for ends in skeleton.torso_diagonals:
        longest = np.fmax(longest, _segment_lengths(keypoints, labelled, ends))  # fmax passes over NaN
    return longest


def head_lengths(keypoints: Floats, labelled: Bools, skeleton: Skeleton) -> NDArray[np.float64]:
    """Length of the segment from neck to head top (N,), in pixels: what PCKh is normalised by. NaN if not labelled.

    MPII's published PCKh divides by 0.6 times the diagonal of an annotated head *box*. Keypoints carry no box, so this
    is the plain segment: compare PCKh from it among runs of lossight, not with leaderboards. A skeleton without head
    has no PCKh: NaN for all.

    Args:
        keypoints: (N, K, 2) true positions.
        labelled: (N, K) bool.
        skeleton: names the segment.
    """
    if skeleton.head_segment is None:
        return np.full(len(keypoints), np.nan)
    return _segment_lengths(keypoints, labelled, skeleton.head_segment)


def pck(distances: Floats, *, threshold: float = PCK_THRESHOLD) -> float:
    """Share of judged keypoints within `threshold` (inclusive): PCK. NaN if none is judged.

    Source: Yang & Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", TPAMI 2013.
    """
    return float(_share_within(distances.reshape(1, -1), threshold)[0])


def pck_per_image(distances: Floats, *, threshold: float = PCK_THRESHOLD) -> NDArray[np.float64]:
    """PCK of each image (N,), NaN where none of its keypoints is judged."""
    return _share_within(distances, threshold)


def pck_per_keypoint(distances: Floats, *, threshold: float = PCK_THRESHOLD) -> NDArray[np.float64]:
    """PCK of each keypoint (K,), NaN where it is judged in no image."""
    return _share_within(distances.T, threshold)


def pearson(x: Floats, y: Floats) -> float:
    """Linear correlation, -1 to 1. NaN for fewer than 2 points, a constant side or any number that is not finite."""
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.clip(_standardised(x) @ _standardised(y), -1.0, 1.0))


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, -1 to 1; ties share their average rank. NaN for under 2 points, a constant side or any NaN."""
    from scipy.stats import rankdata  # a second, which who only reads records need not wait

    return pearson(rankdata(x, nan_policy="propagate"), rankdata(y, nan_policy="propagate"))


def kendall(x: Floats, y: Floats) -> float:
    """Kendall's tau-b, -1 to 1: concordant less discordant pairs, ties out of both. NaN as for `pearson`.

    Source: Kendall, "The Treatment of Ties in Ranking Problems", Biometrika 1945.
    """
    from scipy.stats import kendalltau  # as in `spearman`

    if math.isnan(pearson(x, y)):
        return float("nan")
    return float(kendalltau(x, y).statistic)


def top_means(score: Floats, values: Floats) -> NDArray[np.float64]:
    """(N,) mean value of the 1, 2, …, N images of the highest score.

    Args:
        score: (N,) what ranks.
        values: (N,) what is averaged.
    """
    _, tie, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(tie, weights=values, minlength=len(counts)) / counts
    descending = np.repeat(means[::-1], counts[::-1])
    return np.asarray(np.cumsum(descending) / np.arange(1, len(score) + 1))


def top_weights(score: Floats, *, count: int) -> NDArray[np.float64]:
    """(N,) the probability of each image to be among the `count` of the highest score: 0, 1, or between for ties.

    The weights sum to `count`, or to N where there are no more.
    """
    _, tie, counts = np.unique(score, return_inverse=True, return_counts=True)
    num_higher = len(score) - np.cumsum(counts)  # of each distinct score
    return np.asarray(np.clip((count - num_higher) / counts, 0.0, 1.0)[tie])


def top_size(num_images: int, share: float) -> int:
    """The images of a head that is this share of all: rounded, and one at least."""
    return max(1, round(share * num_images))


def mean_of_top(score: Floats, values: Floats, *, shares: Sequence[float]) -> NDArray[np.float64]:
    """The failure-detection curve: mean value of the images with the highest score, for each share; NaN without images.

    Of the PCK of images, the lower the better does the score find failures; random gives the mean of all.

    Args:
        score: (N,) what ranks.
        values: (N,) what is averaged.
        shares: of N; see `top_size`.
    """
    if not len(score):
        return np.full(len(shares), np.nan)
    means = top_means(score, values)
    return means[[top_size(len(score), share) - 1 for share in shares]]


def coverage_risks(score: Floats, risk: Floats) -> NDArray[np.float64]:
    """The risk-coverage curve (N,): mean risk of the 1, 2, …, N images of the *lowest* score, which one trusts most.

    Source: El-Yaniv & Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010; Geifman &
    El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017, where the risk is the 0/1 loss.
    """
    return top_means(-score, risk)


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


def _lengths(vectors: Floats) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.hypot(vectors[..., 0], vectors[..., 1], dtype=np.float64)
    return lengths


def _segment_lengths(keypoints: Floats, labelled: Bools, ends: tuple[int, int]) -> NDArray[np.float64]:
    """(N,) pixels, NaN unless both ends are labelled."""
    first, second = ends
    return np.where(
        labelled[:, first] & labelled[:, second], _lengths(keypoints[:, first] - keypoints[:, second]), np.nan
    )


def _share_within(distances: Floats, threshold: float) -> NDArray[np.float64]:
    """Share of each row's numbers that is at most `threshold`; NaN for a row without numbers."""
    num_judged = (~np.isnan(distances)).sum(axis=1)
    num_within = (distances <= threshold).sum(axis=1)
    shares = np.full(len(distances), np.nan)
    np.divide(num_within, num_judged, out=shares, where=num_judged > 0)
    return shares


def _standardised(x: Floats) -> NDArray[np.float64]:
    """`x` with mean 0 and length 1; scaled first, so that neither huge nor tiny numbers leave the range of float64."""
    centred = x - x.mean(dtype=np.float64)
    centred /= np.abs(centred).max()
    unit: NDArray[np.float64] = centred / np.linalg.norm(centred)
    return unit
