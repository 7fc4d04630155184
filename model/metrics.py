"""Pose metrics (PCK, PCKh) and correlations. NaN marks what cannot be judged; nothing here warns about it.

# N images, K keypoints
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from model.skeleton import Skeleton

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


def pck(distances: Floats, *, threshold: float = 0.2) -> float:
    """Share of judged keypoints within `threshold` (inclusive): PCK. NaN if none is judged.

    Source: Yang & Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", TPAMI 2013.
    """
    return float(_share_within(distances.reshape(1, -1), threshold)[0])


def pck_per_image(distances: Floats, *, threshold: float = 0.2) -> NDArray[np.float64]:
    """PCK of each image (N,), NaN where none of its keypoints is judged."""
    return _share_within(distances, threshold)


def pck_per_keypoint(distances: Floats, *, threshold: float = 0.2) -> NDArray[np.float64]:
    """PCK of each keypoint (K,), NaN where it is judged in no image."""
    return _share_within(distances.T, threshold)


def pearson(x: Floats, y: Floats) -> float:
    """Linear correlation, -1 to 1. NaN for fewer than 2 points, a constant side or any number that is not finite."""
    if len(x) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.clip(_standardised(x) @ _standardised(y), -1.0, 1.0))


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation, -1 to 1; ties share their average rank. NaN for under 2 points, a constant side or any NaN."""
    return pearson(rankdata(x, nan_policy="propagate"), rankdata(y, nan_policy="propagate"))


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
    """Of each row's numbers, the share that is at most `threshold`; NaN for a row without numbers."""
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
