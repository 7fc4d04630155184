"""Degraded network inputs: dark, blurred, covered, noisy or flat, as a fleet's frames are that training rows may lack.

# S input size (px)
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]  # (S, S, 3), 0 to 255; what a kind of damage returns may lie beyond

# Source of the ranges: trials on the synthetic fleet, LSP and LSPET (results of the keypoint head).
_MOST_KINDS = 2  # in one image
_BLUR = 1 / 6  # of the side, at most
_COVERS = 3
_COVER = (0.1, 0.5)  # of the side
_NOISE = (3.0, 40.0)  # standard deviation, of 255


def degrade(pixels: NDArray[np.uint8], *, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A copy (S, S, 3) with one or two kinds of damage of random strength. Keypoints stay where they are."""
    damaged = pixels.astype(np.float32)
    for kind in rng.choice(len(_KINDS), size=rng.integers(1, _MOST_KINDS + 1), replace=False):
        damaged = _KINDS[kind](damaged, rng).clip(0, 255)
    return damaged.astype(np.uint8)


def _darken(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    gamma, gain = rng.uniform(1, 2.5), rng.uniform(0.1, 0.8)
    return np.asarray(255 * gain * (pixels / 255) ** gamma, np.float32)


def _blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Out of focus, or moved along a line."""
    length = int(rng.integers(2, max(3, int(len(pixels) * _BLUR)) + 1))
    is_moved, angle = rng.uniform() < 0.5, rng.uniform(0, np.pi)
    if not is_moved:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), length / 3), np.float32)
    kernel, centre = np.zeros((length, length), np.float32), (length - 1) / 2
    end = centre * np.array([np.cos(angle), np.sin(angle)])
    first, last = (tuple(round(value) for value in centre + sign * end) for sign in (-1, 1))
    cv2.line(kernel, first, last, 1.0)
    return np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()), np.float32)


def _cover(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Rectangles of one colour, or of another place of the image."""
    covered, side = pixels.copy(), len(pixels)
    for _ in range(rng.integers(1, _COVERS + 1)):
        width, height = (rng.uniform(*_COVER, size=2) * side).astype(int)
        x, from_x = rng.integers(0, side - width + 1, size=2)
        y, from_y = rng.integers(0, side - height + 1, size=2)
        is_plain, colour = rng.uniform() < 0.5, rng.uniform(0, 255, size=3)
        covered[y : y + height, x : x + width] = (
            colour if is_plain else pixels[from_y : from_y + height, from_x : from_x + width]
        )
    return covered


def _add_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    return pixels + rng.normal(0, rng.uniform(*_NOISE), pixels.shape).astype(np.float32)


def _flatten(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Contrast taken away."""
    mean = pixels.mean()
    return np.asarray(mean + (pixels - mean) * rng.uniform(0.1, 0.7), np.float32)


_KINDS: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (_darken, _blur, _cover, _add_noise, _flatten)
