"""Selected images as exports describe them, whichever tool they are for, and as CSV for people and spreadsheets.

# K keypoints
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.ingest.coco import box_from_coco, box_to_coco
from distributed.ingest.reference import Corners
from model.image import Bytes
from model.skeleton import Skeleton

_LONGEST = 80  # characters of an id that a name keeps
_PNG_MAGIC = b"\x89PNG"
_LAST = 0.51  # from the last place in an image that is written to two decimals and read as inside, to W and H


_COLUMNS = ("rank", "sample_id", "predicted_loss", "expected_pck", "group", "reason", "image", "width", "height")
_BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
_BEGIN_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")

Cell = str | float | None


@dataclass(frozen=True, kw_only=True)
class Item:
    """A selected image. Coordinates are those of the tables (`distributed.ingest.coco`)."""

    rank: int
    sample_id: str
    file_name: str  # safe, unique
    reference: str  # where a tool finds the image: below the export, or a URI
    width: int
    height: int
    box: Corners  # the whole image where the pool has none
    pose: NDArray[np.float64] | None  # (K, 3) x, y within the image, trust
    predicted_loss: float
    expected_pck: float | None
    group: str | None
    reason: str
    metadata: dict[str, str]

    @property
    def score(self) -> float | None:
        """The mean trust: the expected PCK where P(miss) is known, else the mean peak."""
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


def box_or_all(box: NDArray[np.floating] | None, *, width: int, height: int) -> Corners:
    """The box; the whole image where there is none."""
    if box is None:
        return box_from_coco(0, 0, width, height)
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def within(pose: NDArray[np.floating] | None, *, width: int, height: int) -> NDArray[np.float64] | None:
    """The pose with its points moved to the border where they lie outside; None if one is no number.

    The border is where COCO's numbers begin, 0, and the last hundredth that `ingest` takes for inside, W - 0.51.
    """
    if pose is None or not np.isfinite(pose).all():
        return None
    low, high = [0.0, 0.0, 0.0], [width - _LAST, height - _LAST, 1.0]
    moved: NDArray[np.float64] = np.clip(np.asarray(pose, np.float64), low, high)
    return moved


def relative_box(item: Item) -> tuple[float, float, float, float]:
    """Left, top, width and height of the part of the box within the image, as shares of the image's sides."""
    x, y, width, height = box_to_coco(item.box)
    left, top = max(0.0, x / item.width), max(0.0, y / item.height)
    right, bottom = min(1.0, (x + width) / item.width), min(1.0, (y + height) / item.height)
    return left, top, max(0.0, right - left), max(0.0, bottom - top)


def relative_points(item: Item) -> list[tuple[float, float]]:
    """The keypoints as shares of the image's sides; none without a pose."""
    points = [] if item.pose is None else item.pose[:, :2].tolist()
    return [(x / item.width, y / item.height) for x, y in points]


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


def selection_csv(exported: Exported) -> bytes:
    """A row for each item: what the selection says, where the image is, its box, metadata, and the predicted pose."""
    metadata = sorted({name for item in exported.items for name in item.metadata})
    points = [f"{name}_{part}" for name in exported.skeleton.keypoint_names for part in ("x", "y", "peak")]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow([defused(name) for name in (*_COLUMNS, *_BOX, *metadata, *points)])
    for item in exported.items:
        cells = [*_cells(item), *(item.metadata.get(name) for name in metadata), *_pose(item, len(points))]
        writer.writerow([defused(cell) for cell in cells])
    return text.getvalue().encode()


def defused(cell: Cell) -> Cell:
    """The cell; a text that a spreadsheet would take for a formula with an apostrophe before it. Numbers stay."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(_BEGIN_FORMULAS) else cell


def _cells(item: Item) -> list[Cell]:
    about: list[Cell] = [item.rank, item.sample_id, item.predicted_loss, item.expected_pck, item.group, item.reason]
    return [*about, item.reference, item.width, item.height, *(round(value, 2) for value in item.box)]


def _pose(item: Item, count: int) -> list[Cell]:
    return [None] * count if item.pose is None else [round(float(value), 3) for value in item.pose.ravel()]
