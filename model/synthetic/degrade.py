"""From a clean picture to what a camera delivers: light, lens, motion blur, sensor noise, JPEG, damaged files."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from model.synthetic.brush import Image

JPEG_QUALITY = 85
DAMAGES = ("empty", "zeroed", "truncated", "overwritten")
NOISE_BANK_SIZE = 448  # a 256-pixel window in it has 192² offsets: no two frames of a drive meet the same noise


class Exposure(NamedTuple):
    """How a drive's camera renders light; drawn once a drive."""

    tone: NDArray[np.uint8]  # (1, 256, 3): level in, level out, per channel
    beam: NDArray[np.float32] | None  # (H, W): the headlights' share of light; None where daylight is even
    noise: int  # spread in grey levels; whole, so that few banks serve a fleet
    is_noise_coarse: bool  # the blotches that an in-camera denoiser leaves at night
    softness: float  # sigma of the lens, pixels


def draw_exposure(rng: np.random.Generator, *, light: str, size: int) -> Exposure:
    """The exposure of one drive in "day", "dusk" or "night"."""
    if light == "day":
        gain, floor, tint = rng.uniform(0.82, 1.12), rng.uniform(0, 22), rng.uniform(0.95, 1.05, 3)
        return Exposure(_tone(gain, floor, tint), None, int(rng.integers(2, 5)), False, rng.uniform(0.4, 0.7))
    if light == "dusk":
        gain, tint = rng.uniform(0.5, 0.7), np.array([1.1, 0.95, 0.85]) * rng.uniform(0.95, 1.05, 3)
        return Exposure(_tone(gain, 8.0, tint), None, int(rng.integers(5, 8)), False, rng.uniform(0.5, 0.8))
    gain, tint = rng.uniform(0.31, 0.45), np.array([0.88, 0.95, 1.1]) * rng.uniform(0.95, 1.05, 3)
    tone = _tone(gain, rng.uniform(6, 12), tint)
    return Exposure(tone, _headlights(rng, size=size), int(rng.integers(12, 16)), True, rng.uniform(1.0, 1.5))


def expose(image: Image, exposure: Exposure) -> Image:
    """The image as that exposure renders it, before noise."""
    if exposure.beam is not None:
        image = (image * exposure.beam[..., None]).astype(np.uint8)
    toned: Image = cv2.LUT(image, exposure.tone)
    return toned


def soften(image: Image, exposure: Exposure) -> Image:
    """The image through the lens."""
    softened: Image = cv2.GaussianBlur(image, (0, 0), exposure.softness)
    return softened


def add_noise(image: Image, exposure: Exposure, *, rng: np.random.Generator) -> Image:
    """The image with sensor noise: a window at a random offset of a fixed bank."""
    bank = _noise_bank(exposure.noise, exposure.is_noise_coarse)
    top, left = rng.integers(0, NOISE_BANK_SIZE - np.array(image.shape[:2]))
    window = np.s_[top : top + image.shape[0], left : left + image.shape[1]]
    noisy: Image = cv2.subtract(cv2.add(image, bank[0][window]), bank[1][window])
    return noisy


def motion_blur(image: Image, *, length_px: float, angle: float) -> Image:
    """The image smeared along a line of that length, `angle` in degrees; its centre stays where it was."""
    reach = math.ceil(length_px / 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    dx, dy = (length_px / 2 * f(math.radians(angle)) for f in (math.cos, math.sin))
    ends = [(round(16 * (reach + s * dx)), round(16 * (reach + s * dy))) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    blurred: Image = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return blurred


def encode(image: Image) -> bytes:
    """JPEG bytes of an RGB image."""
    data: bytes = simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
    return data


def damage(data: bytes, *, rng: np.random.Generator) -> bytes:
    """What is left of a file after an upload or a disk failed: no decoder makes an image of it."""
    kind = DAMAGES[rng.integers(len(DAMAGES))]
    if kind == "empty":
        return b""
    if kind == "zeroed":
        return bytes(len(data))
    if kind == "truncated":
        # Cut inside the header: a lenient decoder fills a picture cut in its scan with grey and calls it valid.
        return data[: int(rng.integers(16, 300))]
    return b"\x00" + rng.bytes(len(data) - 1)  # the first byte makes sure that no magic number comes about


def _tone(gain: float, floor: float, tint: NDArray[np.float64]) -> NDArray[np.uint8]:
    levels = floor + np.arange(256)[:, None] * gain * tint
    return np.clip(levels, 0, 255).astype(np.uint8)[None]


def _headlights(rng: np.random.Generator, *, size: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    aim, drop = rng.uniform(0.3, 0.7), rng.uniform(0.75, 0.95)
    beam = np.exp(-(((x - aim) / 0.33) ** 2) - ((y - drop) / 0.28) ** 2)
    lit: NDArray[np.float32] = np.clip(rng.uniform(0.42, 0.6) + 0.6 * beam, 0, 1).astype(np.float32)
    return lit


@functools.lru_cache(maxsize=16)
def _noise_bank(spread: int, is_coarse: bool) -> tuple[Image, Image]:
    """Brighter and darker halves of the noise, apart, so that adding it stays in saturating uint8 arithmetic."""
    rng = np.random.default_rng(0)
    shape = (NOISE_BANK_SIZE, NOISE_BANK_SIZE)
    luma = rng.standard_normal((*shape, 1), dtype=np.float32)
    chroma = rng.standard_normal((*shape, 3), dtype=np.float32)
    noise = 0.85 * luma + 0.5 * chroma
    if is_coarse:
        noise = cv2.GaussianBlur(noise, (0, 0), 1.1)
    noise *= spread / noise.std()
    return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)
