"""What people do in front of a fleet's cameras: joint angles as functions of time.

`EVERYDAY` is what most frames show; `UNUSUAL` is the rare slice `unusual_pose`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from model.synthetic.pose import Limb, Pose, mirror


class Manner(NamedTuple):
    """How one person performs a motion; drawn once a drive."""

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
