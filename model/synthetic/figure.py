"""Draws one clothed, shaded person from projected joints, and says which joints the body itself leaves visible.

Everyone in the fleet wears a two-tone kit: sleeve and trouser leg of the right side are the dark ones. That is what
tells right from left at 64 pixels, from the front and from behind; hair and face tell front from back.
"""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.synthetic.brush import SUBPIXEL_BITS, Colour, Image, Point, ellipse, fixed_point, polygon, segment
from model.synthetic.pose import EYE_LEVEL, LEFT_TOE, NECK_TO_TOP, NOSE, NOSE_FORWARD, RIGHT_TOE, Floats

# Layers of a round part, from rim to highlight: share of its width, brightness. Three look round at this size.
SHADING = ((1.0, 0.76), (0.76, 0.92), (0.42, 1.05))

# Shares of body height.
SKULL_ALONG, SKULL_ACROSS = 0.068, 0.053
EYE_APART, MOUTH_HALF_WIDTH = 0.018, 0.013
DARK, LIPS = (40, 30, 28), (140, 70, 66)

ARC = np.linspace(math.pi / 2, 3 * math.pi / 2, 6)  # half a circle, as six corners
UP = np.array([0.0, -1.0])


class Outfit(NamedTuple):
    """Clothes, hair and breadth of one person."""

    skin: Colour
    hair: Colour
    shirt: Colour
    shirt_right: Colour
    trousers: Colour
    trousers_right: Colour
    shoes: Colour
    has_short_sleeves: bool
    has_shorts: bool
    has_vest: bool  # two bright bands around the trunk
    breadth: float


class BodyPart(NamedTuple):
    """A capsule between two points; radii are shares of body height. `joints` are those it shows rather than hides."""

    start: int
    end: int
    start_radius: float
    end_radius: float
    joints: tuple[int, ...]
    reach: float = 1.0  # 1.3 draws 30 % beyond `end`


SKULL, TRUNK, PELVIS = 0, 1, 2
PARTS = (
    BodyPart(12, 13, 0.030, 0.030, (12, 13)),  # the head; drawn as an ellipse
    BodyPart(8, 9, 0.040, 0.040, (2, 3, 8, 9, 12)),  # the trunk: the hull of this one and the pelvis
    BodyPart(2, 3, 0.054, 0.054, (2, 3)),
    BodyPart(2, 1, 0.049, 0.036, (1, 2)),
    BodyPart(1, 0, 0.035, 0.023, (0, 1)),
    BodyPart(0, RIGHT_TOE, 0.026, 0.020, (0,)),
    BodyPart(3, 4, 0.049, 0.036, (3, 4)),
    BodyPart(4, 5, 0.035, 0.023, (4, 5)),
    BodyPart(5, LEFT_TOE, 0.026, 0.020, (5,)),
    BodyPart(8, 7, 0.033, 0.027, (7, 8)),
    BodyPart(7, 6, 0.026, 0.018, (6, 7)),
    BodyPart(7, 6, 0.0, 0.028, (6,), 1.16),  # right hand
    BodyPart(9, 10, 0.033, 0.027, (9, 10)),
    BodyPart(10, 11, 0.026, 0.018, (10, 11)),
    BodyPart(10, 11, 0.0, 0.028, (11,), 1.16),  # left hand
)
THIGHS, ARMS, FOREARMS, HANDS = [3, 6], [9, 10, 12, 13], [10, 13], [11, 14]
START = np.array([p.start for p in PARTS])
END = np.array([p.end for p in PARTS])
RADII = np.array([(p.start_radius, p.end_radius) for p in PARTS])
REACH = np.array([[p.reach] for p in PARTS])
# SHOWS[part, joint]; the last row is "no part": whatever is not covered is visible.
SHOWS = np.array([[j in p.joints for j in range(14)] for p in PARTS] + [[True] * 14])


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """A person's outfit: saturated, so that it stands out from streets; the right side dark, the left side light."""
    hue = rng.random(2)
    shirt = _rgb(hue[0], rng.uniform(0.25, 0.85), rng.uniform(0.66, 0.95))
    trousers = _rgb(hue[1], rng.uniform(0.1, 0.6), rng.uniform(0.58, 0.86))
    tan = rng.uniform(0, 1)
    return Outfit(
        skin=(236 - 130 * tan, 196 - 122 * tan, 168 - 112 * tan),
        hair=_rgb(rng.uniform(0.02, 0.12), rng.uniform(0.1, 0.7), rng.uniform(0.08, 0.55)),
        shirt=shirt,
        shirt_right=_rgb(hue[0], 0.75, rng.uniform(0.20, 0.32)),
        trousers=trousers,
        trousers_right=_rgb(hue[1], 0.6, rng.uniform(0.14, 0.24)),
        shoes=_rgb(rng.random(), 0.2, rng.uniform(0.1, 0.5)),
        has_short_sleeves=bool(rng.random() < 0.35),
        has_shorts=bool(rng.random() < 0.2),
        has_vest=bool(rng.random() < 0.25),
        breadth=float(rng.uniform(0.9, 1.18)),
    )


class Drawn(NamedTuple):
    """Pixels and joints that drawing a person has covered."""

    silhouette: NDArray[np.bool_]  # (H, W)
    is_visible: NDArray[np.bool_]  # (14,) joints that no other part of the body hides; True outside the image


def draw_figure(image: Image, points: Floats, *, outfit: Outfit, height_px: float) -> Drawn:
    """Draws the person into `image`; returns their silhouette and which joints their own body leaves visible.

    `points` is (17, 3): x, y in pixels (origin = centre of the top-left pixel) and depth towards the camera.
    """
    outlines = _outlines(points[:, :2], height_px=height_px, breadth=outfit.breadth)
    colours = _colours(outfit)
    parts_drawn = np.full(image.shape[:2], len(PARTS), np.uint8)
    for part in _back_to_front(points, height_px=height_px):
        if part == SKULL:
            polygon(image, outlines[SKULL][0], outfit.skin, brightness=0.75)  # the neck
            outline = _draw_skull(image, points, skin=outfit.skin, hair=outfit.hair, height_px=height_px)
        else:
            outline = outlines[part][0]
            for layer, (_, brightness) in zip(outlines[part], SHADING, strict=True):
                polygon(image, layer, colours[part], brightness=brightness)
        if part == TRUNK:
            _draw_trunk_details(image, points, outfit=outfit, height_px=height_px)
        cv2.fillConvexPoly(parts_drawn, fixed_point(outline), int(part), cv2.LINE_8, SUBPIXEL_BITS)
    is_visible = SHOWS[_labels_at(parts_drawn, points[:14, :2], nothing=len(PARTS)), np.arange(14)]
    return Drawn(silhouette=parts_drawn < len(PARTS), is_visible=is_visible)


def _labels_at(labels: NDArray[np.uint8], joints: Floats, *, nothing: int) -> NDArray[np.intp]:
    x, y = np.rint(joints).astype(np.intp).T
    height, width = labels.shape
    is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = labels[y.clip(0, height - 1), x.clip(0, width - 1)].astype(np.intp)
    return np.where(is_inside, found, nothing)


def _back_to_front(points: Floats, *, height_px: float) -> NDArray[np.intp]:
    depth = (points[START, 2] + points[END, 2]) / 2
    depth[TRUNK] = depth[PELVIS] = depth[[TRUNK, PELVIS]].mean()
    depth[TRUNK] += 0.2  # the shirt hangs over the belt
    depth[THIGHS] -= 0.07 * height_px  # a thigh must be raised to come before the shirt
    depth[ARMS] += 0.02 * height_px  # arms hang beside the trunk, and cover its edge
    depth[HANDS] = depth[FOREARMS] + 0.1  # a hand over its own forearm
    return np.argsort(depth, kind="stable")


def _outlines(xy: Floats, *, height_px: float, breadth: float) -> list[list[Floats]]:
    """Per part its three convex outlines, from the full width to the highlight."""
    start, end = xy[START], xy[START] + (xy[END] - xy[START]) * REACH
    start = np.where(RADII[:, :1] == 0, end, start)  # a hand is a disc
    radii = np.where(RADII == 0, RADII.max(axis=1, keepdims=True), RADII) * (height_px * breadth)
    along = np.arctan2(end[:, 1] - start[:, 1], end[:, 0] - start[:, 0])[:, None]
    layers = []
    for width, _ in SHADING:
        lit = -0.22 * (1 - width) * radii.mean(axis=1)[:, None, None]  # towards the light: up and left
        caps = [
            centre[:, None] + radius[:, None, None] * width * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + lit
            for centre, radius, angle in ((start, radii[:, 0], along + ARC), (end, radii[:, 1], along + ARC + math.pi))
        ]
        layers.append(np.concatenate(caps, axis=1))  # (parts, 12, 2)
    by_part = [[layer[i] for layer in layers] for i in range(len(PARTS))]
    by_part[TRUNK] = [_hull(layer[TRUNK], layer[PELVIS]) for layer in layers]
    return by_part


def _hull(*outlines: Floats) -> Floats:
    hull: Floats = cv2.convexHull(np.concatenate(outlines).astype(np.float32))[:, 0]
    return hull


def _colours(outfit: Outfit) -> list[Colour]:
    right_forearm, left_forearm = (outfit.skin,) * 2 if outfit.has_short_sleeves else (outfit.shirt_right, outfit.shirt)
    right_shin, left_shin = (outfit.skin,) * 2 if outfit.has_shorts else (outfit.trousers_right, outfit.trousers)
    right_leg = [outfit.trousers_right, right_shin, outfit.shoes]
    left_leg = [outfit.trousers, left_shin, outfit.shoes]
    right_arm, left_arm = [outfit.shirt_right, right_forearm], [outfit.shirt, left_forearm]
    trunk = [outfit.skin, outfit.shirt, outfit.trousers]
    return [*trunk, *right_leg, *left_leg, *right_arm, outfit.skin, *left_arm, outfit.skin]


def _draw_trunk_details(image: Image, points: Floats, *, outfit: Outfit, height_px: float) -> None:
    """The dark panel down the right flank, unless the trunk hides it, and the bands of a vest."""
    shoulders, hips = points[[8, 9], :2], points[[2, 3], :2]
    if points[8, 2] > points[9, 2] - 0.12 * height_px:
        ends = shoulders[0], hips[0]
        for width, brightness in ((0.034, 0.9), (0.020, 1.15)):
            discs = [ellipse(c, UP, along=width * height_px, across=width * height_px) for c in ends]
            polygon(image, _hull(*discs), outfit.shirt_right, brightness=brightness)
    if outfit.has_vest:
        for height in (0.38, 0.68):
            left, right = shoulders * (1 - height) + hips * height
            segment(image, left, right, (226, 232, 140), max(2, round(0.028 * height_px)))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return 255 * red, 255 * green, 255 * blue


class Skull(NamedTuple):
    """Place and direction of a skull in the image."""

    centre: Point  # of the skull
    up: Point  # unit vector to the crown
    forward: Point  # where the face points, as projected: shorter than 1 when it looks into the camera
    frontal: float  # 1 looks into the camera, -1 away


def _draw_skull(image: Image, points: Floats, *, skin: Colour, hair: Colour, height_px: float) -> Floats:
    """Draws the head of a person whose (17, 3) points are given; returns the skull's outline."""
    frame = _skull_of(points, height_px=height_px)
    skull = ellipse(frame.centre, frame.up, along=SKULL_ALONG * height_px, across=SKULL_ACROSS * height_px)
    # Inner layers shrink towards the light, up and to the left.
    lit = frame.centre - 0.020 * height_px
    layers = [lit + (skull - lit) * width for width, _ in SHADING]
    for layer, (_, brightness) in zip(layers, SHADING, strict=True):
        polygon(image, layer, skin, brightness=brightness)
    _draw_hair(image, frame, hair=hair, height_px=height_px)
    if frame.frontal > 0.1:
        _draw_face(image, frame, height_px=height_px)
    return layers[0]


def _skull_of(points: Floats, *, height_px: float) -> Skull:
    neck, crown, nose = points[12], points[13], points[NOSE]
    axis = crown - neck
    length = max(float(np.hypot(*axis[:2])), 1e-6)  # seen from above the crown covers the neck
    forward = (nose - (neck + axis * (EYE_LEVEL / NECK_TO_TOP))) / (NOSE_FORWARD * height_px)
    return Skull(neck[:2] + 0.62 * axis[:2], axis[:2] / length, forward[:2], float(forward[2]))


def _draw_hair(image: Image, frame: Skull, *, hair: Colour, height_px: float) -> None:
    """A cap away from the face, or the whole back of the head."""
    if frame.frontal < -0.3:
        cap, along, across = frame.centre + 0.010 * height_px * frame.up, 0.058, 0.056
    else:
        cap, along, across = frame.centre + (0.039 * frame.up - 0.020 * frame.forward) * height_px, 0.033, 0.049
    outline = ellipse(cap, frame.up, along=along * height_px, across=across * height_px)
    polygon(image, outline, hair, brightness=0.8)
    polygon(image, cap + (outline - cap) * 0.6 - 0.006 * height_px, hair, brightness=1.15)


def _draw_face(image: Image, frame: Skull, *, height_px: float) -> None:
    side = np.array([-frame.up[1], frame.up[0]]) * frame.frontal * height_px
    face = frame.centre + (0.030 * frame.forward - 0.006 * frame.up) * height_px
    for eye in (face - EYE_APART * side, face + EYE_APART * side):
        cv2.circle(image, (round(float(eye[0])), round(float(eye[1]))), 1, DARK, -1, cv2.LINE_AA)
    mouth = face - frame.up * (0.028 * height_px)
    segment(image, mouth - MOUTH_HALF_WIDTH * side, mouth + MOUTH_HALF_WIDTH * side, LIPS, 1)
