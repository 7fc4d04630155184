"""Primitives shared by everything that is painted: colours, boxes, polygons, grain, and the objects of a street."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Colour = tuple[float, float, float]  # RGB, 0 to 255
Image = NDArray[np.uint8]  # (H, W, 3) RGB

# Brick, sandstone, concrete, slate, render, cardboard, sage, white.
MATERIALS = ((142, 98, 82), (178, 160, 128), (138, 138, 134), (96, 106, 118), (186, 176, 160), (158, 124, 88))
MATERIALS += ((122, 134, 118), (196, 196, 192))

SUBPIXEL_BITS = 4  # cv2 then draws at 1/16 pixel; its origin is ours, the centre of the top-left pixel


def car(canvas: Image, rng: np.random.Generator, foot: NDArray[np.float64], *, width: float) -> None:
    (x, y), tall = foot, width * 0.3
    colour = drab(rng)
    cabin = [(x + 0.18 * width, y - tall), (x + 0.3 * width, y - 1.7 * tall)]
    cabin += [(x + 0.72 * width, y - 1.7 * tall), (x + 0.86 * width, y - tall)]
    polygon(canvas, cabin, (52, 60, 70))
    box(canvas, int(x), int(y - tall), int(x + width), int(y - 0.15 * tall), colour)
    for wheel in (0.2, 0.8):
        cv2.circle(
            canvas, (int(x + wheel * width), int(y - 0.15 * tall)), int(0.1 * width), (28, 28, 30), -1, cv2.LINE_AA
        )


def tree(canvas: Image, rng: np.random.Generator, x: int, y: int, size: float) -> None:
    box(canvas, int(x - 4 * size), int(y - 60 * size), int(x + 4 * size), y, (84, 70, 56))
    for _ in range(9):
        at = (int(x + rng.normal(0, 20) * size), int(y - (72 + rng.normal(0, 16)) * size))
        shade = rng.uniform(0.6, 1.1)
        cv2.circle(canvas, at, int(rng.uniform(12, 22) * size), (78 * shade, 98 * shade, 56 * shade), -1, cv2.LINE_AA)


def pole(canvas: Image, rng: np.random.Generator, x: int, foot: int) -> None:
    colour, width = grey(rng, 50, 120), int(rng.integers(2, 5))
    box(canvas, x, int(rng.integers(-20, 60)), x + width, foot, colour)
    if rng.random() < 0.5:
        cv2.circle(canvas, (x + width // 2, int(rng.integers(50, 80))), 11, drab(rng), -1, cv2.LINE_AA)


def polygon(canvas: Image, corners: ArrayLike, colour: Colour) -> None:
    """Fills a convex polygon, anti-aliased."""
    cv2.fillConvexPoly(canvas, fixed_point(corners), colour, cv2.LINE_AA, SUBPIXEL_BITS)


def fixed_point(corners: ArrayLike) -> NDArray[np.int32]:
    """Pixel coordinates as cv2 takes them with `SUBPIXEL_BITS`."""
    return np.rint(np.multiply(corners, 1 << SUBPIXEL_BITS)).astype(np.int32)


def box(canvas: Image, x0: int, y0: int, x1: int, y1: int, colour: Colour) -> None:
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, -1)


def segment(canvas: Image, a: Sequence[float], b: Sequence[float], colour: Colour, width: int) -> None:
    """Draws a line."""
    cv2.line(canvas, (round(a[0]), round(a[1])), (round(b[0]), round(b[1])), colour, width, cv2.LINE_AA)


def grey(rng: np.random.Generator, low: float, high: float) -> Colour:
    level = rng.uniform(low, high)
    return level, level * rng.uniform(0.97, 1.02), level * rng.uniform(0.95, 1.05)


def drab(rng: np.random.Generator) -> Colour:
    """A building's, a car's or a box's colour: less saturated than clothes."""
    red, green, blue = MATERIALS[rng.integers(len(MATERIALS))]
    level = rng.uniform(0.75, 1.2)
    return red * level, green * level, blue * level


def grain(rng: np.random.Generator, *, height: int, width: int, stretch: float = 1.0) -> NDArray[np.float32]:
    """(height, width) texture with mean 0 and unit spread: noise of four sizes, each twice as coarse.

    `stretch` > 1 draws it out sideways, as a road seen at a flat angle.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(4):
        cell = 2.0**octave
        rows, columns = int(height / cell) + 2, int(width / (cell * stretch)) + 2
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return total / total.std()
