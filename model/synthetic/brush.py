"""Primitives shared by everything that is painted: colours, boxes, polygons, grain, and the objects of a street."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Colour = tuple[float, float, float]  # RGB, 0 to 255
Image = NDArray[np.uint8]  # (H, W, 3) RGB
Point = NDArray[np.float64]  # (2,) x, y in pixels, origin = centre of the top-left pixel

# Brick, sandstone, concrete, slate, render, cardboard, sage, white.
MATERIALS = np.array(
    [
        [142, 98, 82],
        [178, 160, 128],
        [138, 138, 134],
        [96, 106, 118],
        [186, 176, 160],
        [158, 124, 88],
        [122, 134, 118],
        [196, 196, 192],
    ]
)

TURN_COS, TURN_SIN = (f(np.linspace(0, 2 * np.pi, 14, endpoint=False)) for f in (np.cos, np.sin))
SUBPIXEL_BITS = 4  # cv2 then draws at 1/16 pixel; its origin is ours, the centre of the top-left pixel


def polygon(canvas: Image, corners: ArrayLike, colour: Colour, *, brightness: float = 1.0) -> None:
    """Fills a convex polygon, anti-aliased, with the colour scaled by `brightness`."""
    red, green, blue = (min(channel * brightness, 255.0) for channel in colour)
    cv2.fillConvexPoly(canvas, fixed_point(corners), (red, green, blue), cv2.LINE_AA, SUBPIXEL_BITS)


def ellipse(centre: Point, up: Point, *, along: float, across: float) -> NDArray[np.float64]:
    """(14, 2) corners of an ellipse; `along` is its half axis in the direction of the unit vector `up`."""
    side = np.array([-up[1], up[0]])
    outline: NDArray[np.float64] = centre + np.outer(TURN_COS * along, up) + np.outer(TURN_SIN * across, side)
    return outline


def fixed_point(corners: ArrayLike) -> NDArray[np.int32]:
    """Pixel coordinates as cv2 takes them with `SUBPIXEL_BITS`."""
    return np.rint(np.multiply(corners, 1 << SUBPIXEL_BITS)).astype(np.int32)


def box(canvas: Image, corners: tuple[int, int, int, int], colour: Colour) -> None:
    """Fills x0 <= x < x1, y0 <= y < y1."""
    x0, y0, x1, y1 = corners
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colour, -1)


def segment(canvas: Image, a: Sequence[float] | Point, b: Sequence[float] | Point, colour: Colour, width: int) -> None:
    """Draws a line."""
    cv2.line(canvas, (round(a[0]), round(a[1])), (round(b[0]), round(b[1])), colour, width, cv2.LINE_AA)


def grey(rng: np.random.Generator, low: float, high: float) -> Colour:
    """A nearly neutral colour of a level between the two."""
    level = rng.uniform(low, high)
    return level, level * rng.uniform(0.97, 1.02), level * rng.uniform(0.95, 1.05)


def drab(rng: np.random.Generator) -> Colour:
    """A building's, a car's or a box's colour: less saturated than clothes."""
    red, green, blue = (MATERIALS[rng.integers(len(MATERIALS))] * rng.uniform(0.75, 1.2)).tolist()
    return red, green, blue


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


def car(canvas: Image, rng: np.random.Generator, foot: NDArray[np.float64], *, width: float) -> None:
    """A car in profile; `foot` is where its left end meets the ground."""
    (x, y), tall = foot, width * 0.3
    colour = drab(rng)
    cabin = [(x + 0.18 * width, y - tall), (x + 0.3 * width, y - 1.7 * tall)]
    cabin += [(x + 0.72 * width, y - 1.7 * tall), (x + 0.86 * width, y - tall)]
    polygon(canvas, cabin, (52, 60, 70))
    box(canvas, (int(x), int(y - tall), int(x + width), int(y - 0.15 * tall)), colour)
    for wheel in (0.2, 0.8):
        cv2.circle(
            canvas, (int(x + wheel * width), int(y - 0.15 * tall)), int(0.1 * width), (28, 28, 30), -1, cv2.LINE_AA
        )


def tree(canvas: Image, rng: np.random.Generator, x: int, y: int, size: float) -> None:
    """A tree that stands at (x, y), about 100 × `size` pixels tall."""
    box(canvas, (int(x - 4 * size), int(y - 60 * size), int(x + 4 * size), y), (84, 70, 56))
    for _ in range(9):
        at = (int(x + rng.normal(0, 20) * size), int(y - (72 + rng.normal(0, 16)) * size))
        shade = rng.uniform(0.6, 1.1)
        cv2.circle(canvas, at, int(rng.uniform(12, 22) * size), (78 * shade, 98 * shade, 56 * shade), -1, cv2.LINE_AA)


def pole(canvas: Image, rng: np.random.Generator, x: int, foot: int) -> None:
    """A lamp post or a road sign."""
    colour, width = grey(rng, 50, 120), int(rng.integers(2, 5))
    box(canvas, (x, int(rng.integers(-20, 60)), x + width, foot), colour)
    if rng.random() < 0.5:
        cv2.circle(canvas, (x + width // 2, int(rng.integers(50, 80))), 11, drab(rng), -1, cv2.LINE_AA)
