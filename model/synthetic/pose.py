"""A jointed body in three dimensions, its motions, and its projection into the image.

Joint angles give the 14 LSP joints. Body axes: x to the person's left, y up, z forward. Lengths are in body heights,
origin between the hips. Motions are joint angles as functions of time: most frames show one of `EVERYDAY`, those of the
rare slice `unusual_pose` one of `UNUSUAL`. Knows nothing of pixels' colours; `figure` draws the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rows after the 14 joints: what is drawn but not labelled.
RIGHT_TOE, LEFT_TOE, NOSE = 14, 15, 16
NUM_POINTS = 17

# Shares of body height. Source: near Drillis & Contini 1964; narrower shoulders, since the drawn flesh adds to them.
SHIN, THIGH, UPPER_ARM, FOREARM, FOOT = 0.245, 0.245, 0.175, 0.155, 0.10
HIP_HALF_WIDTH, SHOULDER_HALF_WIDTH = 0.052, 0.104
HIP_TO_SHOULDER, HIP_TO_NECK, NECK_TO_TOP = 0.285, 0.32, 0.17
EYE_LEVEL, NOSE_FORWARD = 0.085, 0.075  # of the nose: above the neck, in front of it

CAMERA_DISTANCE = 5.0  # body heights; nearer limbs look a little larger, as through a car's wide lens


class Limb(NamedTuple):
    """Angles of an arm or a leg in degrees; all zero hangs straight down."""

    flexion: float = 0.0  # forward
    abduction: float = 0.0  # outward
    bend: float = 0.0  # of the elbow or the knee
    rotation: float = 0.0  # about the upper segment: turns the bend inward


class Pose(NamedTuple):
    """Angles of the whole body in degrees; all zero stands at attention."""

    right_arm: Limb = Limb()
    left_arm: Limb = Limb()
    right_leg: Limb = Limb()
    left_leg: Limb = Limb()
    lean: float = 0.0  # spine, forward
    tilt: float = 0.0  # spine, to the person's right
    twist: float = 0.0  # shoulders against hips, to the left
    roll: float = 0.0  # whole body, to the person's right: 180 is upside down
    spin: float = 0.0  # whole body about its own length, to the left, before the roll


class Viewpoint(NamedTuple):
    """Direction and place of the body as the camera sees it: degrees and image pixels."""

    facing: float  # 0 looks into the camera, 90 to the image's right, 180 away
    elevation: float  # how far the camera looks down
    height_px: float  # of the standing body
    centre_x: float  # of the hips
    ground_y: float  # where the lowest point rests


def blend(a: Pose, b: Pose, *, weight: float) -> Pose:
    """Pose between `a` (weight 0) and `b` (weight 1), angle by angle."""

    def mix(x: float, y: float) -> float:
        return x + (y - x) * weight

    right_arm, left_arm, right_leg, left_leg = (Limb(*map(mix, p, q)) for p, q in zip(a[:4], b[:4], strict=True))
    return Pose(right_arm, left_arm, right_leg, left_leg, *map(mix, a[4:], b[4:]))


def mirror(pose: Pose) -> Pose:
    """The pose with left and right exchanged."""
    return Pose(
        right_arm=pose.left_arm,
        left_arm=pose.right_arm,
        right_leg=pose.left_leg,
        left_leg=pose.right_leg,
        lean=pose.lean,
        tilt=-pose.tilt,
        twist=-pose.twist,
        roll=-pose.roll,
        spin=-pose.spin,
    )


def body_points(pose: Pose) -> Floats:
    """(17, 3) body frame: the 14 LSP joints, then right toe, left toe and nose."""
    points = np.zeros((NUM_POINTS, 3))
    points[2], points[3] = (-HIP_HALF_WIDTH, 0, 0), (HIP_HALF_WIDTH, 0, 0)
    points[1], points[0], points[RIGHT_TOE] = _leg(points[2], pose.right_leg, side=-1)
    points[4], points[5], points[LEFT_TOE] = _leg(points[3], pose.left_leg, side=1)

    points[8], points[9] = (-SHOULDER_HALF_WIDTH, HIP_TO_SHOULDER, 0), (SHOULDER_HALF_WIDTH, HIP_TO_SHOULDER, 0)
    points[7], points[6] = _arm(points[8], pose.right_arm, side=-1)
    points[10], points[11] = _arm(points[9], pose.left_arm, side=1)
    points[12], points[13] = (0, HIP_TO_NECK, 0), (0, HIP_TO_NECK + NECK_TO_TOP, 0)
    points[NOSE] = (0, HIP_TO_NECK + EYE_LEVEL, NOSE_FORWARD)

    upper = [6, 7, 8, 9, 10, 11, 12, 13, NOSE]
    points[upper] = points[upper] @ (_about_x(pose.lean) @ _about_z(pose.tilt) @ _about_y(pose.twist)).T
    return points @ (_about_z(pose.roll) @ _about_y(pose.spin)).T


def project(points: Floats, *, view: Viewpoint) -> Floats:
    """(17, 3) image x, y and depth (towards the camera, in pixels) of body points; the lowest rests on the ground."""
    seen = points @ (_about_x(view.elevation) @ _about_y(view.facing)).T
    scale = view.height_px / (1.0 - seen[:, 2] / CAMERA_DISTANCE)
    x = view.centre_x + seen[:, 0] * scale
    y = -seen[:, 1] * scale
    y += view.ground_y - 0.03 * view.height_px - y.max()  # joints lie inside the flesh, not on the ground
    return np.stack([x, y, seen[:, 2] * view.height_px], axis=1)


def _arm(shoulder: Floats, limb: Limb, *, side: int) -> tuple[Floats, Floats]:
    upper, bending = _directions(limb, side=side)
    bend = math.radians(limb.bend)
    elbow = shoulder + UPPER_ARM * upper
    return elbow, elbow + FOREARM * (math.cos(bend) * upper + math.sin(bend) * bending)


def _leg(hip: Floats, limb: Limb, *, side: int) -> tuple[Floats, Floats, Floats]:
    upper, forward = _directions(limb, side=side)
    bend = math.radians(limb.bend)
    knee = hip + THIGH * upper
    shin = math.cos(bend) * upper - math.sin(bend) * forward  # knees bend the other way
    toe = math.cos(bend) * forward + math.sin(bend) * upper
    ankle = knee + SHIN * shin
    return knee, ankle, ankle + FOOT * (0.92 * toe + 0.38 * shin)


def _directions(limb: Limb, *, side: int) -> tuple[Floats, Floats]:
    """Unit vectors of the upper segment and of where an elbow bends to; `side` is -1 for right, 1 for left."""
    flexion, abduction, rotation = (math.radians(a) for a in (limb.flexion, limb.abduction, limb.rotation))
    f_sin, f_cos, a_cos = math.sin(flexion), math.cos(flexion), math.cos(abduction)
    upper = np.array([side * math.sin(abduction), -a_cos * f_cos, a_cos * f_sin])
    forward = np.array([0.0, f_sin, f_cos])
    # The third axis is upper × forward, signed so that it points inward when the limb hangs down.
    inward = side * np.array([-a_cos, -upper[0] * f_cos, upper[0] * f_sin])
    return upper, math.cos(rotation) * forward + math.sin(rotation) * inward


def _about_x(degrees: float) -> Floats:
    s, c = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(degrees: float) -> Floats:
    s, c = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_z(degrees: float) -> Floats:
    s, c = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


class Manner(NamedTuple):
    """One person's own way of a motion; drawn once a drive."""

    phase: float  # radians
    tempo: float  # 1 is usual
    vigour: float  # scales how far limbs swing
    is_left_handed: bool
    posture: tuple[Limb, ...]  # a person's own offsets to the angles of the four limbs, in the order of `Pose`


def draw_manner(rng: np.random.Generator) -> Manner:
    """A person's manner."""
    return Manner(
        phase=float(rng.uniform(0, 2 * math.pi)),
        tempo=float(rng.uniform(0.8, 1.2)),
        vigour=float(rng.uniform(0.75, 1.2)),
        is_left_handed=bool(rng.random() < 0.5),
        posture=tuple(Limb(*rng.normal(0, 4, 4).tolist()) for _ in range(4)),
    )


def pose_at(motion: str, *, seconds: float, manner: Manner) -> Pose:
    """Pose of a motion named in `EVERYDAY` or `UNUSUAL`, `seconds` into the drive."""
    pose = MOTIONS[motion](seconds * manner.tempo, manner)
    if manner.is_left_handed:
        pose = mirror(pose)
    right_arm, left_arm, right_leg, left_leg = map(_add_posture, pose[:4], manner.posture)
    return pose._replace(right_arm=right_arm, left_arm=left_arm, right_leg=right_leg, left_leg=left_leg)


def _add_posture(limb: Limb, own: Limb) -> Limb:
    # Elbows and knees never bend backwards.
    return Limb(*(a + b for a, b in zip(limb, own, strict=True)))._replace(bend=max(limb.bend + own.bend, 0.0))


def _walk(t: float, manner: Manner) -> Pose:
    return _gait(t * 0.9, manner, stride=26, knee=(6, 42), swing=24, elbow=18, lean=3)


def _run(t: float, manner: Manner) -> Pose:
    return _gait(t * 1.2, manner, stride=42, knee=(22, 66), swing=38, elbow=82, lean=12)


def _gait(
    cycles: float, manner: Manner, *, stride: float, knee: tuple[float, float], swing: float, elbow: float, lean: float
) -> Pose:
    angle = 2 * math.pi * cycles + manner.phase
    step, lift = math.sin(angle) * manner.vigour, math.cos(angle)
    still, bent = knee
    return Pose(
        right_arm=Limb(-swing * step, 8, elbow),
        left_arm=Limb(swing * step, 8, elbow),
        right_leg=Limb(stride * step + still / 2, 3, still + bent * max(lift, 0.0)),
        left_leg=Limb(-stride * step + still / 2, 3, still + bent * max(-lift, 0.0)),
        lean=lean,
        twist=4 * step,
    )


def _stand(t: float, manner: Manner) -> Pose:
    sway = math.sin(1.5 * t + manner.phase) * manner.vigour
    return Pose(
        right_arm=Limb(3 + 2 * sway, 10, 12),
        left_arm=Limb(3 - 2 * sway, 10, 12),
        right_leg=Limb(2, 5, 3),
        left_leg=Limb(-2, 5, 3),
        tilt=1.5 * sway,
    )


def _wave(t: float, manner: Manner) -> Pose:
    beat = math.sin(5 * t + manner.phase) * manner.vigour
    return _stand(t, manner)._replace(right_arm=Limb(90, 78, 78 + 24 * beat))


def _hail(t: float, manner: Manner) -> Pose:
    beat = math.sin(2 * t + manner.phase) * manner.vigour
    return _stand(t, manner)._replace(right_arm=Limb(20 + 5 * beat, 135 + 10 * beat, 12), tilt=-3.0)


def _phone(t: float, manner: Manner) -> Pose:
    return _walk(0.6 * t, manner)._replace(right_arm=Limb(28, 14, 125, 12), twist=0.0)


def _carry(t: float, manner: Manner) -> Pose:
    arm = Limb(12, 6, 78, 8)
    return _walk(0.8 * t, manner)._replace(right_arm=arm, left_arm=arm, lean=-2.0, twist=0.0)


def _handstand(t: float, manner: Manner) -> Pose:
    sway = math.sin(2 * t + manner.phase) * manner.vigour
    arm = Limb(5, 165, 6)
    return Pose(arm, arm, Limb(18 + 8 * sway, 14, 16), Limb(-12, 20 + 6 * sway, 28), roll=180 + 4 * sway)


def _cartwheel(t: float, manner: Manner) -> Pose:
    arm, leg = Limb(0, 142, 5), Limb(0, 36, 5)
    return Pose(arm, arm, leg, leg, roll=110 * t + math.degrees(manner.phase))


def _crouch(t: float, manner: Manner) -> Pose:
    sway = math.sin(1.5 * t + manner.phase) * manner.vigour
    return Pose(
        right_arm=Limb(70 + 5 * sway, 10, 45, 15),
        left_arm=Limb(55, 15, 70 - 5 * sway, 20),
        right_leg=Limb(118, 18, 138),
        left_leg=Limb(100, 22, 130),
        lean=38 + 3 * sway,
    )


def _lie(t: float, manner: Manner) -> Pose:
    sway = math.sin(t + manner.phase) * manner.vigour
    return Pose(
        right_arm=Limb(25, 60 + 5 * sway, 50),
        left_arm=Limb(-10, 110, 35 + 5 * sway),
        right_leg=Limb(35, 8, 55),
        left_leg=Limb(5, 12, 15 + 5 * sway),
        roll=90 + 4 * sway,
        spin=70 * math.sin(3 * manner.phase),
    )


def _knot(t: float, manner: Manner) -> Pose:
    sway = math.sin(1.5 * t + manner.phase) * manner.vigour
    return Pose(
        right_arm=Limb(34, 4, 112, 78 + 4 * sway),
        left_arm=Limb(22, 4, 105, 82),
        right_leg=Limb(14, -15 + 2 * sway, 22),
        left_leg=Limb(-4, -14, 6),
        tilt=12 + 3 * sway,
        lean=10,
    )


def _bow(t: float, manner: Manner) -> Pose:
    sway = math.sin(1.5 * t + manner.phase) * manner.vigour
    arm = Limb(85 + 6 * sway, 6, 12)
    return Pose(arm, arm, Limb(-8, 6, 8), Limb(6, 10, 14), lean=96 + 5 * sway, tilt=14)


EVERYDAY = {"walk": 0.36, "run": 0.12, "stand": 0.20, "wave": 0.09, "hail": 0.07, "phone": 0.08, "carry": 0.08}
UNUSUAL = ("handstand", "cartwheel", "crouch", "lie", "knot", "bow")
MOTIONS: dict[str, Callable[[float, Manner], Pose]] = {
    "walk": _walk,
    "run": _run,
    "stand": _stand,
    "wave": _wave,
    "hail": _hail,
    "phone": _phone,
    "carry": _carry,
    "handstand": _handstand,
    "cartwheel": _cartwheel,
    "crouch": _crouch,
    "lie": _lie,
    "knot": _knot,
    "bow": _bow,
}
