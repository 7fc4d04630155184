"""What an export says of a selected image, whichever tool it is for; and the names that images get.

# K keypoints
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.image import Bytes
from model.skeleton import Skeleton

_LONGEST = 80  # characters of an id that a name keeps
_PNG_MAGIC = b"\x89PNG"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A selected image. Coordinates are pixels, origin = centre of the top-left pixel."""

    rank: int
    sample_id: str
    file_name: str  # safe, unique
    reference: str  # where a tool finds the image: below the export, or a URI
    width: int
    height: int
    box: tuple[float, float, float, float]  # x0, y0, x1, y1; the whole image where the pool has none
    pose: NDArray[np.float64] | None  # (K, 3) x, y within the image, peak
    predicted_loss: float
    expected_pck: float | None
    group: str | None
    reason: str
    metadata: dict[str, str]

    @property
    def score(self) -> float | None:
        """The mean peak."""
        return None if self.pose is None else float(self.pose[:, 2].mean())


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What all formats are made from."""

    items: list[Item]  # by rank
    skeleton: Skeleton
    bundle_id: str
    fingerprint: str  # of the selection


def safe_name(sample_id: str, image: Bytes) -> str:
    """A file name for an image that says which it is, and is another for each id, on any file system.

    Letters, digits, dots, hyphens and underscores stay; a hash keeps apart what the rest of the id did, letters that
    differ in case only among it.
    """
    words = re.sub(r"[^A-Za-z0-9._-]+", "_", sample_id).strip("._-")[:_LONGEST]
    digest = hashlib.sha256(sample_id.encode()).hexdigest()[:12]
    suffix = "png" if bytes(memoryview(image)[:4]) == _PNG_MAGIC else "jpg"
    return f"{words or 'image'}-{digest}.{suffix}"


def within(pose: NDArray[np.floating] | None, *, width: int, height: int) -> NDArray[np.float64] | None:
    """The pose with its points moved to the border where they lie outside; None if one is no number."""
    if pose is None or not np.isfinite(pose).all():
        return None
    low, high = [0.0, 0.0, 0.0], [width - 1.0, height - 1.0, 1.0]
    moved: NDArray[np.float64] = np.clip(np.asarray(pose, np.float64), low, high)
    return moved


def about(item: Item) -> dict[str, Any]:
    """What every export says of an image beside its pose; JSON values."""
    return {
        "sample_id": item.sample_id,
        "rank": item.rank,
        "predicted_loss": item.predicted_loss,
        "expected_pck": item.expected_pck,
        "group": item.group,
        "reason": item.reason,
        "metadata": item.metadata,
    }
