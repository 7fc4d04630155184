"""Local maxima of heatmaps, and the multi-peak entropy that active learning ranks images by.

# B batch, K keypoints, H, W heatmap size (px), P peaks
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_PEAKS = 5  # of a heatmap. Source: VL4Pose


def local_maxima(heatmaps: Tensor) -> Tensor:
    """The heights (B, K, P) of the highest local maxima of heatmaps (B, K, H, W), descending; −inf where there is none.

    A local maximum is a pixel that no other of its 3×3 neighbourhood exceeds, so each pixel of a flat top is one. P is
    `MOST_PEAKS`, or H × W where that is less.
    """
    is_peak = heatmaps == F.max_pool2d(heatmaps, kernel_size=3, stride=1, padding=1)
    heights = heatmaps.masked_fill(~is_peak, -torch.inf).flatten(2)
    return heights.topk(min(MOST_PEAKS, heights.shape[2]), dim=2).values


def multi_peak_entropy(heatmaps: Tensor) -> Tensor:
    """Mean over keypoints (B,) of the entropy, in nats, of the softmax over the raw heights of `local_maxima`.

    Source: the multi-peak entropy of Shukla et al., "VL4Pose: Active Learning Through Out-Of-Distribution Detection For
    Pose Estimation", BMVC 2022 (arXiv 2210.06028), with at most five peaks.
    """
    shares = local_maxima(heatmaps.float()).softmax(dim=2)
    return -torch.xlogy(shares, shares).sum(dim=2).mean(dim=1)
