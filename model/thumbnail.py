"""Small pictures of what the model saw, and its pose in their pixels: for pages that hold thousands of them.

# S side of a thumbnail (px), K keypoints
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.errors import ImageError
from model.image import Affine, Bytes, Crop, crop_to_input, decode_image, invert_affine, transform_points

_STEPS = 255  # places of a coordinate across a thumbnail, and of a peak: one byte each
_NO_PEAK = 0  # the byte of a keypoint that is not there; the least of the others is 1


class Format(NamedTuple):
    """Size and encoding of a thumbnail."""

    side: int  # S
    quality: int  # 0 to 100
    kind: Literal["webp", "jpeg"] = "webp"  # half the bytes, or at 400 px a thirtieth of the time


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """An encoded crop and the way into it."""

    data: bytes
    to_image: Affine  # (2, 3): thumbnail pixels -> image pixels
    looks: int  # see `looks_of`


def make_thumbnails(
    image: Bytes, box: NDArray[np.floating] | None, formats: Sequence[Format], *, margin: float
) -> list[Thumbnail] | None:
    """The crop around the box as the model sees it, in each format; None where the image can't be decoded or cropped.

    Args:
        image: the encoded image, which is decoded once.
        box: x0, y0, x1, y1 in image pixels; None means the whole image.
        formats: of each thumbnail.
        margin: see `crop_to_input`.
    """
    try:
        pixels = decode_image(image)
        crops = [crop_to_input(pixels, box, input_size=each.side, margin=margin) for each in formats]
    except ImageError:
        return None
    return [_encode(crop, each) for crop, each in zip(crops, formats, strict=True)]


def _encode(crop: Crop, to: Format) -> Thumbnail:
    option = cv2.IMWRITE_WEBP_QUALITY if to.kind == "webp" else cv2.IMWRITE_JPEG_QUALITY
    _, data = cv2.imencode(f".{to.kind}", cv2.cvtColor(crop.pixels, cv2.COLOR_RGB2BGR), [option, to.quality])
    return Thumbnail(data=data.tobytes(), to_image=crop.to_image, looks=looks_of(crop.pixels))


def looks_of(pixels: NDArray[np.uint8]) -> int:
    """The look of an image (S, S, 3) in 64 bits: images that look alike differ in few of them.

    Source: the difference hash of Krawetz, "Kind of Like That", 2013: in an 8 × 8 grid, is it brighter to the right?
    """
    small = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def pack_pose(keypoints: NDArray[np.floating], peaks: NDArray[np.floating], *, to_image: Affine, side: int) -> bytes:
    """3K bytes, x, y and peak of each keypoint: the coordinates in 255ths of the thumbnail's side from its corner.

    A keypoint that is no number has the peak 0, and no other has. Those outside lie on the border.

    Args:
        keypoints: (K, 2) image pixels.
        peaks: (K,) 0 to 1.
        to_image: of the thumbnail.
        side: S.
    """
    inside = transform_points(keypoints, invert_affine(to_image)) + 0.5  # from the corner, not the pixel's centre
    values = np.concatenate([inside / side, np.asarray(peaks, np.float64)[:, None]], axis=1)
    is_known = np.isfinite(values).all(axis=1)
    packed = np.clip(np.round(np.where(is_known[:, None], values, 0) * _STEPS), 0, _STEPS).astype(np.uint8)
    packed[:, 2] = np.where(is_known, np.maximum(packed[:, 2], _NO_PEAK + 1), _NO_PEAK)
    return packed.tobytes()
