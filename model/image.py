"""Images as the network's input: decoding of bytes, and the one crop that training and scoring share.

# S input size (px)
All coordinates are (x, y) pixels whose origin is the centre of the top-left pixel. EXIF orientation is ignored: boxes
and keypoints refer to the pixels as they are stored.

JPEG, PNG, WebP, TIFF and BMP. Of 16 bits a channel the upper 8 count; of several pages or frames the first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from model.errors import ImageError
from model.headers import (
    EXTRA_SAMPLES,
    ORIENTATION,
    PNG_MAGIC,
    ImageFormat,
    bmp_size,
    has_more_scans,
    image_format,
    png_size,
    tiff_size,
    tiff_tags,
    webp_size,
)

# A decoded image costs 3 bytes a pixel; 50 M pixels is more than an 8-k frame. Known from the header, before decoding.
MAX_PIXELS = 50_000_000

# Each scan goes over all pixels, and may be of 10 bytes: 250 kB took 20 s. Encoders write some ten; libjpeg-turbo's
# author can think of no use for more than 100, and libtiff ends there too.
# Source: libjpeg-turbo, "Two Issues with the JPEG Standard", LJT-01-003
MAX_SCANS = 100

# From this on, decoding takes more time than cropping, and reduced scale halves it; smaller frames stay as they are.
_LARGE_PIXELS = 1280 * 720
_REDUCTIONS = (8, 4, 2)  # of a JPEG's blocks of 8 pixels: fast in libjpeg-turbo, and whole numbers of them a pixel

# What simplejpeg raises on hostile bytes; KeyError is for a chroma subsampling that it has no name for.
_DECODER_ERRORS = (ValueError, KeyError)

_AS_STORED = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_UPRIGHT, _BLENDED = 1, 1  # values of TIFF's tags
_SIZES = {"png": png_size, "webp": webp_size, "tif": tiff_size, "bmp": bmp_size}

Bytes = bytes | memoryview  # of any item format: Arrow hands out signed bytes
Affine = NDArray[np.float64]  # (2, 3)


@dataclass(frozen=True, kw_only=True)
class View:
    """Difference of a crop from the plain one; none by default. Drawn by `model.example`."""

    shift: tuple[float, float] = (0.0, 0.0)  # share of the plain crop's side
    scale: float = 1.0  # of the crop's side: above 1 the person gets smaller
    rotation_deg: float = 0.0
    is_flipped: bool = False


PLAIN = View()


class Crop(NamedTuple):
    """A network input and the way back from it."""

    pixels: NDArray[np.uint8]  # (S, S, 3) RGB
    to_image: Affine  # (2, 3): crop pixels -> image pixels


def image_size(data: Bytes) -> tuple[int, int]:
    """Width and height in pixels, by the header of an image.

    Raises:
        ImageError: `empty`, `undecodable`, or `too_large` (over `MAX_PIXELS`).
    """
    data = memoryview(data).cast("B")
    if len(data) == 0:
        raise ImageError("empty")
    kind = _format(data)
    if kind == "jpg":
        height, width, _ = _jpeg_header(data)
    else:
        width, height = _SIZES[kind](data)
    if width < 1 or height < 1:
        raise ImageError("undecodable", f"{width}x{height} pixels in the header")
    if width * height > MAX_PIXELS:
        raise ImageError("too_large", f"{width}x{height} pixels, at most {MAX_PIXELS}")
    return width, height


def decode_image(data: Bytes, *, reduction: int = 1) -> NDArray[np.uint8]:
    """RGB pixels (H, W, 3) uint8 of an image. Grey, alpha, palette, 16-bit and CMYK images become plain RGB.

    Alpha is dropped, not blended. What follows the end of an image is ignored. With a `reduction` of 2, 4 or 8 a JPEG's
    height and width are that part of it, rounded up; those of other formats stay.

    Raises:
        ImageError: as `image_size`; truncated images are `undecodable`, JPEGs of more than `MAX_SCANS` `too_large`.
    """
    data = memoryview(data).cast("B")
    width, height = image_size(data)
    kind = _format(data)
    if kind == "jpg":
        return _decode_jpeg(data, reduction)
    if kind == "png" and not _has_png_end(data):
        raise ImageError("undecodable", "truncated PNG")
    if kind == "tif":
        data = _plain_tiff(data)
    pixels = _decode_other(data)
    if pixels is None or pixels.shape != (height, width, 3):
        raise ImageError("undecodable", f"damaged {kind.upper()}")
    return pixels.astype(np.uint8, copy=False)


def _format(data: memoryview) -> ImageFormat:
    found = image_format(data)
    if found is None:
        raise ImageError("undecodable", "no JPEG, PNG, WebP, TIFF or BMP")
    return found


def _jpeg_header(data: memoryview) -> tuple[int, int, str]:
    """Height, width and colour space."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except _DECODER_ERRORS as error:
        raise ImageError("undecodable", str(error)) from error
    return int(height), int(width), str(colorspace)


def _decode_jpeg(data: memoryview, reduction: int) -> NDArray[np.uint8]:
    if has_more_scans(data, MAX_SCANS):
        raise ImageError("too_large", f"more than {MAX_SCANS} scans")
    # strict, by default: a truncated JPEG is an error here, where OpenCV would fill the rest with grey.
    try:
        height, width, colorspace = _jpeg_header(data)
        least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction), "min_factor": reduction}
        if colorspace not in {"CMYK", "YCCK"}:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, **least)
            return pixels
        cmyk = simplejpeg.decode_jpeg(data, colorspace="CMYK", **least).astype(np.uint16)
    except _DECODER_ERRORS as error:
        raise ImageError("undecodable", str(error)) from error
    # Adobe writes CMYK inverted (255 = no ink), and practically nobody else writes CMYK JPEGs.
    return (cmyk[..., :3] * cmyk[..., 3:] // 255).astype(np.uint8)


def _decode_other(data: memoryview) -> NDArray[np.uint8] | None:
    """RGB pixels as OpenCV decodes them; None where it can't."""
    _silence_opencv()
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), _AS_STORED)
    except cv2.error:  # sides beyond its own bounds
        return None


@functools.cache
def _silence_opencv() -> None:
    """Keeps OpenCV from writing lines of its own for each damaged image, and for each TIFF with a camera's tags."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _plain_tiff(data: memoryview) -> memoryview:
    """The TIFF without an orientation, and with alpha that counts as blended: OpenCV would turn and multiply."""
    plain = bytearray(data)
    for tag in tiff_tags(data):
        if tag.num_bytes and tag.number in (ORIENTATION, EXTRA_SAMPLES):
            value = _UPRIGHT if tag.number == ORIENTATION else _BLENDED
            plain[tag.place : tag.place + tag.num_bytes] = value.to_bytes(tag.num_bytes, tag.order)
    return memoryview(plain)


def _has_png_end(data: memoryview) -> bool:
    """True if the chain of chunks (length, name, data, checksum) reaches its end within the data."""
    start = len(PNG_MAGIC)
    while start + 12 <= len(data):
        stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if bytes(data[start + 4 : start + 8]) == b"IEND":
            return stop <= len(data)
        start = stop
    return False


def crop_to_input(
    image: NDArray[np.uint8], box: NDArray[np.floating] | None, *, input_size: int, margin: float, view: View = PLAIN
) -> Crop:
    """The square around `box`, resampled to (S, S, 3); what lies outside the image is black.

    Args:
        image: (H, W, 3) uint8.
        box: x0, y0, x1, y1 in image pixels; None means the whole image (then `margin` is not applied).
        input_size: S.
        margin: side of the square divided by the longer side of the box.
        view: the departure from the plain crop, for augmentation.

    Raises:
        ImageError: `bad_box` where the box is not finite, has no area or does not touch the image.
    """
    to_image = _crop_affine(image.shape[1], image.shape[0], box, input_size=input_size, margin=margin, view=view)
    return Crop(_resample(image, to_image, input_size), to_image)


def decode_crop(
    data: Bytes, box: NDArray[np.floating] | None, *, input_size: int, margin: float, view: View = PLAIN
) -> Crop:
    """The crop of an encoded image; a large JPEG is decoded at 1/2, 1/4 or 1/8 if the crop loses no resolution by it.

    Takes a half to a third of the time of `decode_image` and `crop_to_input`. Pixels differ a little from theirs, and
    so do predicted losses: a model should be trained with what it scores with.

    Raises:
        ImageError: as `decode_image` and `crop_to_input`.
    """
    width, height = image_size(data)
    is_large = width * height >= _LARGE_PIXELS and image_format(memoryview(data).cast("B")) == "jpg"
    if not is_large:
        return crop_to_input(decode_image(data), box, input_size=input_size, margin=margin, view=view)
    to_image = _crop_affine(width, height, box, input_size=input_size, margin=margin, view=view)
    scale = np.hypot(to_image[0, 0], to_image[1, 0])
    reduction = next((factor for factor in _REDUCTIONS if factor <= scale), 1)
    to_reduced = to_image / reduction
    to_reduced[:, 2] += 0.5 / reduction - 0.5
    return Crop(_resample(decode_image(data, reduction=reduction), to_reduced, input_size), to_image)


def _resample(image: NDArray[np.uint8], to_image: Affine, input_size: int) -> NDArray[np.uint8]:
    """(S, S, 3) from the crop's pixels to those of an image."""
    x0, y0, x1, y1 = _region(to_image, input_size, image.shape[1], image.shape[0])
    source = image[y0:y1, x0:x1]
    to_source = to_image.copy()
    to_source[:, 2] -= (x0, y0)
    # Bilinear sampling aliases beyond a factor of two, so a large region is first averaged down by a whole factor.
    shrink = int(np.hypot(to_image[0, 0], to_image[1, 0]))
    if shrink >= 2 and source.size:
        size = (max(1, source.shape[1] // shrink), max(1, source.shape[0] // shrink))
        factor = np.array([size[0] / source.shape[1], size[1] / source.shape[0]])
        source = cv2.resize(source, size, interpolation=cv2.INTER_AREA)
        to_source = to_source * factor[:, None]
        to_source[:, 2] += 0.5 * factor - 0.5
    if not source.size:
        return np.zeros((input_size, input_size, 3), np.uint8)
    pixels = cv2.warpAffine(source, to_source, (input_size, input_size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return pixels.astype(np.uint8, copy=False)


def transform_points(points: NDArray[np.floating], affine: Affine) -> NDArray[np.float64]:
    """Points (..., 2) moved by an affine map (2, 3). NaN stays NaN."""
    moved: NDArray[np.float64] = np.asarray(points, np.float64) @ affine[:, :2].T + affine[:, 2]
    return moved


def invert_affine(affine: Affine) -> Affine:
    """The inverse map (2, 3): it undoes `transform_points` with the map given."""
    linear = np.linalg.inv(affine[:, :2])
    return np.concatenate([linear, -linear @ affine[:, 2:]], axis=1)


def _crop_affine(
    width: int, height: int, box: NDArray[np.floating] | None, *, input_size: int, margin: float, view: View
) -> Affine:
    """Crop pixels -> image pixels (2, 3)."""
    if box is None:
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        side = float(max(width, height))
    else:
        x0, y0, x1, y1 = (float(value) for value in box)
        if not (x1 > x0 and y1 > y0 and np.isfinite([x0, y0, x1, y1]).all()):
            raise ImageError("bad_box", f"{x0:g},{y0:g},{x1:g},{y1:g} has no area")
        if x1 < 0 or y1 < 0 or x0 > width - 1 or y0 > height - 1:
            raise ImageError("bad_box", f"{x0:g},{y0:g},{x1:g},{y1:g} is outside {width}x{height}")
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        side = max(x1 - x0, y1 - y0) * margin
    angle = np.deg2rad(view.rotation_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation * (side * view.scale / input_size)
    if view.is_flipped:
        linear = linear @ np.diag([-1.0, 1.0])
    middle = np.full(2, (input_size - 1) / 2)
    offset = centre + np.array(view.shift) * side - linear @ middle
    return np.concatenate([linear, offset[:, None]], axis=1)


def _region(to_image: Affine, input_size: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of the image that a crop can see, one pixel wider for interpolation: x0, y0, x1, y1 (exclusive)."""
    corners = np.array([[-0.5, -0.5], [input_size - 0.5, -0.5], [-0.5, input_size - 0.5], [input_size - 0.5] * 2])
    seen = transform_points(corners, to_image)
    low = np.clip(np.floor(seen.min(axis=0)) - 1, 0, [width, height]).astype(int)
    high = np.clip(np.ceil(seen.max(axis=0)) + 2, 0, [width, height]).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
