"""Where pixels are counted from, here and in the files of others: the one place that converts.

Here, in all tables and in `model`, (0, 0) is the centre of the top-left pixel: an image reaches from -0.5 to W - 0.5.
COCO counts keypoints likewise, so they stay as they are, and boxes from the image's corner, as x, y, width, height.
Label Studio and FiftyOne keep shares of W and H. Their own COCO imports and exports divide and multiply COCO's numbers
by the sides, so our exports do the same: what comes back through any of them is what went out. (Their canvas counts
from the corner: it shows keypoints of COCO half a pixel up and left.) MPII numbers pixels from 1.

Source: cocodataset.org, "Data format"; label_studio_sdk/converter/keypoints.py; fiftyone/utils/coco.py; MPII's README.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CORNER = 0.5  # from the image's corner to the centre of its first pixel

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1


def box_from_coco(x: float, y: float, width: float, height: float) -> Corners:
    """The corners, in our frame, of a box that COCO writes as x, y, width, height."""
    x0, y0 = x - _CORNER, y - _CORNER
    return x0, y0, x0 + width, y0 + height


def box_to_coco(box: Corners) -> tuple[float, float, float, float]:
    """A box in our frame as COCO writes it: x, y, width, height. Undoes `box_from_coco`."""
    x0, y0, x1, y1 = box
    return x0 + _CORNER, y0 + _CORNER, x1 - x0, y1 - y0


def points_from_mpii(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Points (..., 2) that number pixels from 1, in our frame."""
    return points - 1
