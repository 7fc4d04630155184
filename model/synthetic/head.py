"""Draws a head: skull, hair and, where it can be seen, a face; what tells front from back besides the kit."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from model.synthetic.brush import Colour, Image, Point, ellipse, polygon, segment
from model.synthetic.pose import EYE_LEVEL, NECK_TO_TOP, NOSE, NOSE_FORWARD, Floats

# Layers of a round part, from rim to highlight: share of its width, brightness. Three look round at this size.
SHADING = ((1.0, 0.76), (0.76, 0.92), (0.42, 1.05))

# Shares of body height.
SKULL_ALONG, SKULL_ACROSS = 0.068, 0.053
EYE_APART, MOUTH_HALF_WIDTH = 0.018, 0.013
DARK, LIPS = (40, 30, 28), (140, 70, 66)


class HeadFrame(NamedTuple):
    """Where a head is and how it is turned, in the image."""

    centre: Point  # of the skull
    up: Point  # unit vector to the crown
    forward: Point  # where the face points, as projected: shorter than 1 when it looks into the camera
    frontal: float  # 1 looks into the camera, -1 away


def draw_head(image: Image, points: Floats, *, skin: Colour, hair: Colour, height_px: float) -> Floats:
    """Draws the head of a person whose (17, 3) points are given; returns the skull's outline."""
    frame = _head_frame(points, height_px=height_px)
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


def _head_frame(points: Floats, *, height_px: float) -> HeadFrame:
    neck, crown, nose = points[12], points[13], points[NOSE]
    axis = crown - neck
    length = max(float(np.hypot(*axis[:2])), 1e-6)  # seen from above the crown covers the neck
    forward = (nose - (neck + axis * (EYE_LEVEL / NECK_TO_TOP))) / (NOSE_FORWARD * height_px)
    return HeadFrame(neck[:2] + 0.62 * axis[:2], axis[:2] / length, forward[:2], float(forward[2]))


def _draw_hair(image: Image, frame: HeadFrame, *, hair: Colour, height_px: float) -> None:
    """A cap away from the face, or the whole back of the head."""
    if frame.frontal < -0.3:
        cap, along, across = frame.centre + 0.010 * height_px * frame.up, 0.058, 0.056
    else:
        cap, along, across = frame.centre + (0.039 * frame.up - 0.020 * frame.forward) * height_px, 0.033, 0.049
    outline = ellipse(cap, frame.up, along=along * height_px, across=across * height_px)
    polygon(image, outline, hair, brightness=0.8)
    polygon(image, cap + (outline - cap) * 0.6 - 0.006 * height_px, hair, brightness=1.15)


def _draw_face(image: Image, frame: HeadFrame, *, height_px: float) -> None:
    side = np.array([-frame.up[1], frame.up[0]]) * frame.frontal * height_px
    face = frame.centre + (0.030 * frame.forward - 0.006 * frame.up) * height_px
    for eye in (face - EYE_APART * side, face + EYE_APART * side):
        cv2.circle(image, (round(float(eye[0])), round(float(eye[1]))), 1, DARK, -1, cv2.LINE_AA)
    mouth = face - frame.up * (0.028 * height_px)
    segment(image, mouth - MOUTH_HALF_WIDTH * side, mouth + MOUTH_HALF_WIDTH * side, LIPS, 1)
