"""Pictures for people: skeletons drawn on images, and sheets of them.

# K keypoints
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ImageError
from model.image import Bytes, decode_image
from model.skeleton import Skeleton

_RIGHT, _LEFT, _MIDDLE = (255, 140, 40), (70, 170, 255), (240, 240, 240)  # RGB: orange, blue, white
_CAPTION_PX = 18
_BACKGROUND = (24, 26, 30)
_SUBPIXEL_BITS = 3


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One image of a sheet."""

    image: Bytes  # JPEG or PNG
    keypoints: NDArray[np.floating] | None  # (K, 2) image pixels, NaN where there is none
    caption: str


def draw_pose(image: NDArray[np.uint8], keypoints: NDArray[np.floating], *, skeleton: Skeleton) -> NDArray[np.uint8]:
    """A copy of the image (H, W, 3) with limbs drawn: right side orange, left side blue, the rest white."""
    canvas = image.copy()
    width = max(1, round(min(image.shape[:2]) / 110))
    for a, b in skeleton.limbs:
        if np.isfinite(keypoints[[a, b]]).all():
            start, end = (_fixed_point(keypoints[i]) for i in (a, b))
            cv2.line(canvas, start, end, _side_colour(skeleton, a, b), width, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def contact_sheet(
    tiles: Sequence[Tile], *, skeleton: Skeleton, columns: int = 8, tile_px: int = 160
) -> NDArray[np.uint8]:
    """One picture (H, W, 3) of all tiles, row by row, each with its caption below; unreadable images stay blank."""
    rows = -(-len(tiles) // columns)
    height = tile_px + _CAPTION_PX
    sheet = np.full((max(1, rows) * height, columns * tile_px, 3), _BACKGROUND, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * height, (index % columns) * tile_px
        sheet[top : top + tile_px, left : left + tile_px] = _thumbnail(tile, skeleton, tile_px)
        place = (left + 4, top + tile_px + _CAPTION_PX - 5)
        cv2.putText(sheet, tile.caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, _MIDDLE, 1, cv2.LINE_AA)
    return sheet


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of an RGB image."""
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def _thumbnail(tile: Tile, skeleton: Skeleton, tile_px: int) -> NDArray[np.uint8]:
    """(tile_px, tile_px, 3): the whole image, scaled to fit and centred, the pose drawn at the final size."""
    canvas = np.full((tile_px, tile_px, 3), _BACKGROUND, np.uint8)
    try:
        image = decode_image(tile.image)
    except ImageError:
        return canvas
    scale = (tile_px - 2) / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    if tile.keypoints is not None:
        small = draw_pose(small, (tile.keypoints + 0.5) * scale - 0.5, skeleton=skeleton)
    top, left = (tile_px - height) // 2, (tile_px - width) // 2
    canvas[top : top + height, left : left + width] = small
    return canvas


def _side_colour(skeleton: Skeleton, a: int, b: int) -> tuple[int, int, int]:
    limb = {a, b}
    if limb <= {right for right, _ in skeleton.flip_pairs}:
        return _RIGHT
    return _LEFT if limb <= {left for _, left in skeleton.flip_pairs} else _MIDDLE


def _fixed_point(point: NDArray[np.floating]) -> tuple[int, int]:
    x, y = np.clip(np.round(point * 2**_SUBPIXEL_BITS), -(2**20), 2**20).astype(int)
    return int(x), int(y)
