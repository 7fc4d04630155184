"""Places a fleet drives through, and things that stand between camera and person: cars, trees, boards, crates, walls.

A place is one wide canvas a drive, over which the camera's window pans. It is drawn with rectangles and polygons, then
given grain and shade, so that a detector meets edges, texture and clutter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.synthetic.brush import Image, Point, box, car, drab, grain, grey, pole, polygon, segment, tree

CANVAS_HEIGHT, CANVAS_WIDTH = 288, 416


class Scene(NamedTuple):
    """A drive's background."""

    canvas: Image  # (CANVAS_HEIGHT, CANVAS_WIDTH, 3)
    glow: Image  # the same shape: lamps, added after the night has darkened the canvas; black by day


def build_scene(rng: np.random.Generator, *, kind: str, light: str) -> Scene:
    """A scene of one of the kinds in `PAINTERS`."""
    canvas = np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH, 3), np.uint8)
    horizon = int(rng.integers(104, 132))
    PAINTERS[kind](canvas, rng, horizon)
    canvas = _weather(canvas, rng, horizon=horizon)
    glow = _lamps(rng, horizon=horizon) if light == "night" else np.zeros_like(canvas)
    return Scene(canvas=canvas, glow=glow)


def _weather(canvas: Image, rng: np.random.Generator, *, horizon: int) -> Image:
    """Grain, soft shade and the lens: turns flat colours into surfaces."""
    texture = 0.035 * grain(rng, height=CANVAS_HEIGHT, width=CANVAS_WIDTH)
    texture[: horizon - 30] *= 0.6  # the sky, mostly
    ground = grain(rng, height=CANVAS_HEIGHT - horizon, width=CANVAS_WIDTH, stretch=4.0)
    texture[horizon:] += 0.06 * ground
    shade = cv2.resize(rng.standard_normal((4, 6), dtype=np.float32), (CANVAS_WIDTH, CANVAS_HEIGHT))
    texture += 0.07 * shade
    lit: Image = np.clip(canvas * (1.0 + texture[..., None]), 0, 255).astype(np.uint8)
    haze = lit.mean(axis=(0, 1)) * 0.28  # distance takes contrast, and leaves it to who stands near
    hazy = (lit * 0.72 + haze).astype(np.uint8)
    blurred: Image = cv2.GaussianBlur(hazy, (0, 0), float(rng.uniform(0.7, 1.3)))
    return blurred


def _lamps(rng: np.random.Generator, *, horizon: int) -> Image:
    glow = np.zeros((CANVAS_HEIGHT, CANVAS_WIDTH, 3), np.uint8)
    for _ in range(rng.integers(3, 9)):
        x, y = int(rng.integers(0, CANVAS_WIDTH)), int(rng.integers(10, horizon + 40))
        warmth = rng.uniform(0.4, 1.0)
        cv2.circle(glow, (x, y), int(rng.integers(1, 4)), (255, 235 * warmth, 190 * warmth**2), -1, cv2.LINE_AA)
    halo = cv2.GaussianBlur(glow, (0, 0), 14)
    return cv2.add(glow, cv2.multiply(halo, 9.0))


def _street_ahead(canvas: Image, rng: np.random.Generator, horizon: int) -> None:
    """Down a street: facades, pavements and lanes run to one vanishing point."""
    _sky(canvas, rng, horizon)
    centre = np.array([CANVAS_WIDTH / 2 + rng.uniform(-50, 50), horizon])
    bottom = CANVAS_HEIGHT - horizon
    box(canvas, (0, horizon, CANVAS_WIDTH, CANVAS_HEIGHT), grey(rng, 120, 170))
    left, right = np.array([-1.15 * bottom, bottom]), np.array([bottom, bottom])
    road = grey(rng, 70, 115)
    polygon(canvas, [centre, centre + left, centre + right], road)
    for offset in (-0.35, 0.4):
        for near in np.geomspace(0.08, 1.0, 7):
            _stripe(canvas, centre, np.array([offset * bottom, bottom]), near)
    for side in (-1, 1):
        _facades_ahead(canvas, rng, centre, side)
        for near in sorted(rng.uniform(0.12, 0.5, 3)):
            car(canvas, rng, centre + near * np.array([side * 1.35 * bottom, bottom]), width=110 * near)
    for x in rng.integers(0, CANVAS_WIDTH, 3):
        pole(canvas, rng, int(x), horizon + int(rng.integers(6, 60)))


def _facades_ahead(canvas: Image, rng: np.random.Generator, centre: Point, side: int) -> None:
    edges = np.geomspace(0.10, 1.3, 7)
    for far, near in itertools.pairwise(edges):
        colour, tall = drab(rng), rng.uniform(160, 300)
        foot, top = np.array([side * 250.0, 60.0]), np.array([side * 250.0, -tall])
        polygon(canvas, [centre + foot * far, centre + foot * near, centre + top * near, centre + top * far], colour)
        glass = grey(rng, 40, 110)
        for row in np.arange(0.14, 0.9, 0.2):
            sill, lintel = foot + (top - foot) * row, foot + (top - foot) * (row + 0.11)
            for column in (0.12, 0.56):
                a, b = far + (near - far) * column, far + (near - far) * (column + 0.3)
                polygon(canvas, [centre + sill * a, centre + sill * b, centre + lintel * b, centre + lintel * a], glass)


def _street_side(canvas: Image, rng: np.random.Generator, horizon: int) -> None:
    """Across a street: shop fronts, a pavement, a kerb and parked cars."""
    _sky(canvas, rng, horizon)
    kerb = horizon + int(rng.integers(60, 100))
    x = -int(rng.integers(0, 60))
    while x < CANVAS_WIDTH:
        width = int(rng.integers(60, 150))
        _facade(canvas, rng, (x, int(rng.integers(-60, 60)), x + width, horizon + 28))
        x += width
    box(canvas, (0, horizon + 28, CANVAS_WIDTH, kerb), grey(rng, 135, 180))
    box(canvas, (0, kerb, CANVAS_WIDTH, CANVAS_HEIGHT), grey(rng, 70, 115))
    box(canvas, (0, kerb, CANVAS_WIDTH, kerb + 5), grey(rng, 170, 205))
    for x in range(-int(rng.integers(0, 60)), CANVAS_WIDTH, 70):
        box(canvas, (x, CANVAS_HEIGHT - 34, x + 36, CANVAS_HEIGHT - 29), (205, 205, 198))
    for x in rng.integers(-20, CANVAS_WIDTH, 3):
        car(canvas, rng, np.array([float(x), kerb + 2.0]), width=float(rng.uniform(80, 115)))
    for x in rng.integers(0, CANVAS_WIDTH, 3):
        pole(canvas, rng, int(x), kerb)


def _facade(canvas: Image, rng: np.random.Generator, corners: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = corners
    box(canvas, corners, drab(rng))
    glass, step = grey(rng, 45, 120), int(rng.integers(18, 30))
    for y in range(y0 + 8, y1 - 55, step + 6):
        for x in range(x0 + 6, x1 - step // 2, step):
            box(canvas, (x, y, x + step // 2, y + step * 2 // 3), glass)
    box(canvas, (x0 + 5, y1 - 46, x1 - 26, y1 - 8), grey(rng, 50, 140))  # the shop window
    box(canvas, (x0 + 3, y1 - 54, x1 - 3, y1 - 46), drab(rng))  # its sign
    box(canvas, (x1 - 21, y1 - 42, x1 - 7, y1), drab(rng))  # the door


def _park(canvas: Image, rng: np.random.Generator, horizon: int) -> None:
    """A park: hills, trees, grass and a path."""
    _sky(canvas, rng, horizon)
    for layer in range(2):
        ridge = horizon - 26 + 14 * layer + 9 * np.cumsum(rng.normal(0, 0.5, 12))
        hill = [(x, y) for x, y in zip(np.linspace(0, CANVAS_WIDTH, 12), ridge, strict=True)]
        green = (90 - 20 * layer, 112 - 12 * layer, 100 - 30 * layer)
        outline = np.array([*hill, (CANVAS_WIDTH, horizon + 9), (0, horizon + 9)])
        cv2.fillPoly(canvas, [np.rint(outline).astype(np.int32)], green, cv2.LINE_AA)
    grass = (rng.uniform(95, 130), rng.uniform(120, 145), rng.uniform(70, 90))
    box(canvas, (0, horizon + 8, CANVAS_WIDTH, CANVAS_HEIGHT), grass)
    far, near = rng.uniform(0, CANVAS_WIDTH, 2)
    path = [(far - 6, horizon + 8), (far + 6, horizon + 8), (near + 150, CANVAS_HEIGHT), (near - 120, CANVAS_HEIGHT)]
    polygon(canvas, path, (168, 156, 134))
    for near_by in np.sort(rng.uniform(0.05, 0.6, 9)):
        tree(canvas, rng, int(rng.integers(0, CANVAS_WIDTH)), int(horizon + 8 + 90 * near_by), float(0.35 + near_by))


def _warehouse(canvas: Image, rng: np.random.Generator, horizon: int) -> None:
    """A warehouse: racks with boxes on a tiled floor."""
    canvas[:] = grey(rng, 120, 190)
    wall = horizon + 36
    for y in range(8, wall - 40, 46):
        for x in range(-int(rng.integers(0, 20)), CANVAS_WIDTH, 26):
            height = int(rng.integers(14, 36))
            box(canvas, (x, y + 40 - height, x + int(rng.integers(16, 25)), y + 40), drab(rng))
        box(canvas, (0, y + 40, CANVAS_WIDTH, y + 45), (172, 96, 52))
    for x in range(int(rng.integers(0, 90)), CANVAS_WIDTH, 96):
        box(canvas, (x, 0, x + 6, wall), (58, 74, 112))
    box(canvas, (0, wall, CANVAS_WIDTH, CANVAS_HEIGHT), grey(rng, 125, 170))
    centre, line = np.array([CANVAS_WIDTH / 2 + rng.uniform(-60, 60), horizon - 30.0]), grey(rng, 95, 120)
    for x in range(-700, CANVAS_WIDTH + 700, 90):
        edge = centre + (np.array([x, CANVAS_HEIGHT]) - centre) * ((wall - centre[1]) / (CANVAS_HEIGHT - centre[1]))
        segment(canvas, edge, (x, CANVAS_HEIGHT), line, 1)
    for near in np.geomspace(0.06, 1.0, 6):
        y = wall + (CANVAS_HEIGHT - wall) * near
        segment(canvas, (0, y), (CANVAS_WIDTH, y), line, 1)
    for _ in range(4):
        x, y, size = int(rng.integers(0, CANVAS_WIDTH)), wall + int(rng.integers(0, 40)), int(rng.integers(18, 40))
        box(canvas, (x, y - size, x + size, y), drab(rng))


def _sky(canvas: Image, rng: np.random.Generator, horizon: int) -> None:
    blue = rng.uniform(0, 1)  # from overcast to clear
    top = np.array([205 - 95 * blue, 212 - 55 * blue, 220 + 10 * blue])
    low = np.array([222.0, 228, 232])
    canvas[:horizon] = (top + (low - top) * np.linspace(0, 1, horizon)[:, None])[:, None]
    clouds = grain(rng, height=horizon, width=CANVAS_WIDTH, stretch=3.0)[..., None]
    canvas[:horizon] = np.clip(canvas[:horizon] + 7 * clouds, 0, 255)


def _stripe(canvas: Image, centre: Point, towards: Point, near: float) -> None:
    """One dash of a lane marking, `near` of the way from the vanishing point to the canvas's edge."""
    far_end, near_end = centre + towards * near, centre + towards * near * 1.25
    half = np.array([3.0 * near, 0.0])
    polygon(canvas, [far_end - half, far_end + half, near_end + 1.25 * half, near_end - 1.25 * half], (212, 212, 204))


PAINTERS: dict[str, Callable[[Image, np.random.Generator, int], None]] = {
    "street_ahead": _street_ahead,
    "street_side": _street_side,
    "park": _park,
    "warehouse": _warehouse,
}


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
