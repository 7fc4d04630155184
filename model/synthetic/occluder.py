"""Things that stand between camera and person: cars, trees, boards, crates, walls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.synthetic.brush import Image, box, drab, grain, grey

Mask = NDArray[np.uint8]  # (H, W): 255 where the object is


class Occluder(NamedTuple):
    """One object, larger than the part of the body that it hides."""

    image: Image  # (H, W, 3)
    mask: Mask  # (H, W)
    # Where the middle of its top edge goes, as shares of the body's box: (0.5, 1.0) is at the feet.
    anchor: tuple[float, float]


def draw_occluder(rng: np.random.Generator, *, height_px: float) -> Occluder:
    """An object sized for a person of that height: it hides about half of the joints."""
    maker = MAKERS[rng.integers(len(MAKERS))]
    occluder = maker(rng, height_px)
    rows, columns = occluder.mask.shape
    texture = 1 + 0.07 * grain(rng, height=rows, width=columns)
    textured = np.clip(occluder.image * texture[..., None], 0, 255).astype(np.uint8)
    return occluder._replace(image=textured)


def paste(image: Image, occluder: Occluder, *, top_middle: tuple[float, float]) -> Mask:
    """Draws the object into `image`; returns (H, W) of the image, non-zero where it now hides what was there."""
    covered = np.zeros(image.shape[:2], np.uint8)
    rows, columns = occluder.mask.shape
    top, left = round(top_middle[1]), round(top_middle[0] - columns / 2)
    y0, y1 = max(top, 0), min(top + rows, image.shape[0])
    x0, x1 = max(left, 0), min(left + columns, image.shape[1])
    if y0 < y1 and x0 < x1:
        source = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        cv2.copyTo(occluder.image[source], occluder.mask[source], image[y0:y1, x0:x1])
        covered[y0:y1, x0:x1] = occluder.mask[source]
    return covered


def _car(rng: np.random.Generator, size: float) -> Occluder:
    """A parked car: hides everything below the chest."""
    width, tall = int(1.5 * size), int(rng.uniform(0.62, 0.8) * size)
    image, mask = _blank(tall, width)
    paint = drab(rng)
    cabin = [(0.16, 0.45), (0.30, 0.02), (0.72, 0.02), (0.88, 0.45)]
    _both(image, mask, np.array(cabin) * (width, tall), (60, 68, 78))
    body = [(0.0, 0.52), (0.04, 0.42), (0.96, 0.40), (1.0, 0.55), (1.0, 0.88), (0.0, 0.88)]
    _both(image, mask, np.array(body) * (width, tall), paint)
    for x in (0.2, 0.8):
        for target, colour in ((image, (26, 26, 28)), (mask, 255)):
            cv2.circle(target, (int(x * width), int(0.84 * tall)), int(0.16 * tall), colour, -1)
    box(image, (0, int(0.62 * tall), width, int(0.65 * tall)), grey(rng, 40, 90))
    return Occluder(image, mask, (float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.34, 0.5))))


def _trunk(rng: np.random.Generator, size: float) -> Occluder:
    """A tree or a pillar: hides one side of the body."""
    width, tall = int(rng.uniform(0.20, 0.30) * size), int(2.6 * size)
    image, mask = _blank(tall, width)
    base = np.array(grey(rng, 90, 180)) * (1.0, 0.92, 0.82)
    roundness = np.sin(np.linspace(0.25, 2.9, width))[None, :, None]
    image[:] = base * (0.45 + 0.55 * roundness)
    mask[:] = 255
    return Occluder(image, mask, (float(rng.choice([0.1, 0.25, 0.75, 0.9])), -1.0))


def _board(rng: np.random.Generator, size: float) -> Occluder:
    """A sign on a post: hides the upper body."""
    width, tall = int(rng.uniform(0.5, 0.65) * size), int(1.15 * size)
    image, mask = _blank(tall, width)
    sheet = int(rng.uniform(0.42, 0.5) * tall)
    for target, colour in ((image, grey(rng, 60, 110)), (mask, 255)):
        cv2.rectangle(target, (width // 2 - 3, 0), (width // 2 + 3, tall), colour, -1)
        cv2.rectangle(target, (0, 0), (width - 1, sheet), drab(rng) if target is image else 255, -1)
    for y in range(10, sheet - 8, 14):
        box(image, (8, y, int(width * rng.uniform(0.5, 0.9)), y + 5), grey(rng, 30, 230))
    return Occluder(image, mask, (float(rng.uniform(0.35, 0.65)), float(rng.uniform(-0.08, 0.05))))


def _crates(rng: np.random.Generator, size: float) -> Occluder:
    """A stack of boxes: hides legs and a side."""
    edge = int(0.27 * size)
    image, mask = _blank(3 * edge, 3 * edge)
    for column, stack in enumerate(rng.permutation([1, 2, 3])):
        for row in range(3 - stack, 3):
            x, y, paint = column * edge, row * edge, drab(rng)
            box(image, (x, y, x + edge, y + edge), (50, 42, 36))
            box(image, (x + 1, y + 1, x + edge - 1, y + edge - 1), paint)
            box(image, (x + edge // 2 - 3, y, x + edge // 2 + 3, y + edge), (196, 178, 130))
            mask[y : y + edge, x : x + edge] = 255
    return Occluder(image, mask, (float(rng.uniform(0.35, 0.65)), float(rng.uniform(0.22, 0.4))))


def _wall(rng: np.random.Generator, size: float) -> Occluder:
    """A wall or a hedge in front: hides everything below the waist or the chest."""
    width, tall = int(2.2 * size), int(1.2 * size)
    image, mask = _blank(tall, width)
    is_hedge = rng.random() < 0.5
    image[:] = (70, 92, 54) if is_hedge else drab(rng)
    mask[:] = 255
    if is_hedge:
        for x in range(0, width, 9):
            cv2.circle(mask, (x, 0), int(rng.integers(2, 8)), 0, -1)
    for y in range(0, tall, 12):
        image[y : y + (5 if is_hedge else 2)] = image[y : y + 1] * 0.75
    return Occluder(image, mask, (0.5, float(rng.uniform(0.3, 0.55))))


def _blank(rows: int, columns: int) -> tuple[Image, Mask]:
    return np.zeros((rows, columns, 3), np.uint8), np.zeros((rows, columns), np.uint8)


def _both(image: Image, mask: Mask, corners: NDArray[np.float64], colour: tuple[float, float, float]) -> None:
    for target, value in ((image, colour), (mask, 255)):
        cv2.fillPoly(target, [np.rint(corners).astype(np.int32)], value)


MAKERS: tuple[Callable[[np.random.Generator, float], Occluder], ...] = (_car, _trunk, _board, _crates, _wall)
