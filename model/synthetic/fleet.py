"""The fleet: frames with their truth, one after another, each the same whatever part of the fleet is generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from model.synthetic import degrade
from model.synthetic.brush import Image
from model.synthetic.figure import Outfit, draw_figure, draw_outfit
from model.synthetic.motion import Manner, draw_manner, pose_at
from model.synthetic.occluder import Occluder, draw_occluder, paste
from model.synthetic.plan import (
    DAMAGE_STREAM,
    FRAME_INTERVAL,
    FRAME_STREAM,
    FRAMES_PER_DRIVE,
    LOOK_STREAM,
    DrivePlan,
    is_unreadable,
    plan_drive,
    stream,
)
from model.synthetic.pose import Floats, View, blend, body_points, project
from model.synthetic.scene import CANVAS_HEIGHT, CANVAS_WIDTH, Scene, build_scene

IMAGE_SIZE = 256
MIDDLE_FRAME = (FRAMES_PER_DRIVE - 1) / 2
EASE = 0.35  # how much of an unusual pose is taken up per frame: three frames from everyday to unusual


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One frame with its truth."""

    sample_id: str  # unique in the fleet
    image: bytes  # JPEG; damaged or empty where `slices` has "unreadable"
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 around all joints, image pixels, clipped to the image
    keypoints: NDArray[np.float32]  # (14, 2) LSP joints, x, y in image pixels, origin = centre of the top-left pixel
    visibility: NDArray[np.uint8]  # (14,) 0 outside the image, 1 hidden, 2 visible
    group: str  # the drive
    captured_at: datetime  # UTC
    vehicle: str
    camera: str
    light: str  # "day", "dusk" or "night"
    slices: tuple[str, ...]  # what makes it hard, a subset of SLICES; () is easy


class Look(NamedTuple):
    """All that one drive's frames share to the eye."""

    scene: Scene
    exposure: degrade.Exposure
    outfit: Outfit
    manner: Manner
    view: View  # at the middle of the drive
    drift: tuple[float, float]  # per frame: pixels sideways, share of growth
    pan: tuple[float, float]  # window's left edge at the middle of the drive, pixels per frame
    occluder: Occluder
    slip: float  # body widths per frame by which the occluder passes
    smear: tuple[float, float]  # motion blur: pixels, degrees


def generate_fleet(*, seed: int, num_samples: int, start: int = 0, unreadable_share: float = 0.005) -> Iterator[Sample]:
    """Samples `start` to `start + num_samples - 1` of the fleet of that seed, in order.

    Sample i is frame i % 24 of drive i // 24 and byte-identical in whatever call makes it, so that parts of a fleet can
    be generated in parallel, and a labelled part and a pool kept apart by `start`. `unreadable_share` damages files
    and nothing else.
    """
    plan, look = None, None
    for index in range(start, start + num_samples):
        drive, frame = divmod(index, FRAMES_PER_DRIVE)
        if plan is None or look is None or plan.drive != drive:
            plan = plan_drive(seed, drive)
            look = _draw_look(plan)
        yield _make_sample(plan, look, frame, unreadable_share=unreadable_share)


def _make_sample(plan: DrivePlan, look: Look, frame: int, *, unreadable_share: float) -> Sample:
    image, joints, is_visible = _render(plan, look, frame)
    data, slices = degrade.encode(image), plan.slices(frame)
    if is_unreadable(plan.seed, plan.drive, frame, share=unreadable_share):
        data = degrade.damage(data, rng=stream(plan.seed, DAMAGE_STREAM, plan.drive, frame))
        slices = (*slices, "unreadable")
    keypoints = joints.astype(np.float32)
    is_inside = ((keypoints >= 0) & (keypoints <= IMAGE_SIZE - 1)).all(axis=1)
    corners = np.concatenate([keypoints.min(axis=0), keypoints.max(axis=0)]).clip(0, IMAGE_SIZE - 1).tolist()
    return Sample(
        sample_id=f"{plan.group}-f{frame:04d}",
        image=data,
        box=(corners[0], corners[1], corners[2], corners[3]),
        keypoints=keypoints,
        visibility=np.where(is_inside, np.where(is_visible, 2, 1), 0).astype(np.uint8),
        group=plan.group,
        captured_at=plan.started_at + frame * FRAME_INTERVAL,
        vehicle=plan.vehicle,
        camera=plan.camera,
        light=plan.light,
        slices=slices,
    )


def _draw_look(plan: DrivePlan) -> Look:
    rng = stream(plan.seed, LOOK_STREAM, plan.drive)
    facing = _draw_facing(rng, is_unusual="unusual_pose" in plan.bursts)
    height_px = float(rng.uniform(0.52, 0.64) * IMAGE_SIZE)
    view = View(
        facing=facing,
        elevation=float(rng.uniform(0, 8)),
        height_px=height_px,
        centre_x=float(rng.uniform(0.32, 0.68) * IMAGE_SIZE),
        ground_y=float(rng.uniform(0.84, 0.95) * IMAGE_SIZE),
    )
    is_on_foot = plan.motion in ("walk", "run", "phone", "carry")
    stride = np.sin(np.radians(facing)) * rng.uniform(1.0, 2.4) if is_on_foot else rng.normal(0, 0.3)
    is_sideways = plan.camera in ("left", "right")
    return Look(
        scene=build_scene(rng, kind=plan.scene, light=plan.light),
        exposure=degrade.draw_exposure(rng, light=plan.light, size=IMAGE_SIZE),
        outfit=draw_outfit(rng),
        manner=draw_manner(rng),
        view=view,
        drift=(float(stride), float(rng.uniform(-0.003, 0.003))),
        pan=(float(rng.uniform(0.25, 0.75)), float(rng.normal(0, 2.2 if is_sideways else 0.8))),
        occluder=draw_occluder(rng, height_px=height_px),
        slip=float(rng.uniform(-0.04, 0.04)),
        smear=(float(rng.uniform(32, 52)), float(rng.uniform(-60, 60))),
    )


def _draw_facing(rng: np.random.Generator, *, is_unusual: bool) -> float:
    """Mostly towards the camera; who does something unusual is seen broadside, where it can be labelled."""
    side = rng.choice(
        [0.0, 180.0] if is_unusual else [0.0, 180.0, 90.0, -90.0], p=None if is_unusual else [0.46, 0.34, 0.10, 0.10]
    )
    return float(side + rng.normal(0, 20))


def _render(plan: DrivePlan, look: Look, frame: int) -> tuple[Image, Floats, NDArray[np.bool_]]:
    """The picture, the (14, 2) joints, and (14,) which of them nothing hides."""
    rng = stream(plan.seed, FRAME_STREAM, plan.drive, frame)
    bob = float(rng.normal(0, 1.0))
    window = _window(look, frame, bob)
    points = _points(plan, look, frame, bob)
    height_px = look.view.height_px
    image = look.scene.canvas[window].copy()
    _draw_shadow(image, points, height_px=height_px)
    silhouette, is_visible = draw_figure(image, points, outfit=look.outfit, height_px=height_px)

    slices = plan.slices(frame)
    if "occlusion" in slices:
        is_visible &= ~_occlude(image, points, look, frame - plan.bursts["occlusion"].first)
    image = degrade.soften(degrade.expose(image, look.exposure), look.exposure)
    if plan.light == "night":
        behind = np.where(silhouette, 0, 255).astype(np.uint8)
        cv2.add(image, look.scene.glow[window], dst=image, mask=behind)
    if "motion_blur" in slices:
        length_px, angle = look.smear
        image = degrade.motion_blur(image, length_px=length_px, angle=angle + float(rng.normal(0, 6)))
    return degrade.add_noise(image, look.exposure, rng=rng), points[:14, :2], is_visible


def _points(plan: DrivePlan, look: Look, frame: int, bob: float) -> Floats:
    seconds, ahead = frame * FRAME_INTERVAL.total_seconds(), frame - MIDDLE_FRAME
    pose = pose_at(plan.motion, seconds=seconds, manner=look.manner)
    if "unusual_pose" in plan.bursts:
        weight = min(max(EASE * plan.bursts["unusual_pose"].depth(frame), 0.0), 1.0)
        pose = blend(pose, pose_at(plan.unusual_motion, seconds=seconds, manner=look.manner), weight=weight)
    view = look.view._replace(
        centre_x=look.view.centre_x + look.drift[0] * ahead,
        ground_y=look.view.ground_y + bob,
        height_px=look.view.height_px * (1 + look.drift[1] * ahead),
    )
    return project(body_points(pose), view=view)


def _window(look: Look, frame: int, bob: float) -> tuple[slice, slice]:
    room_x, room_y = CANVAS_WIDTH - IMAGE_SIZE, CANVAS_HEIGHT - IMAGE_SIZE
    start, speed = look.pan
    left = round(min(max(start * room_x + speed * (frame - MIDDLE_FRAME), 0), room_x))
    top = round(min(max(room_y / 2 - bob, 0), room_y))
    return slice(top, top + IMAGE_SIZE), slice(left, left + IMAGE_SIZE)


def _draw_shadow(image: Image, points: Floats, *, height_px: float) -> None:
    """A soft dark patch on the ground under whatever of the body is near it."""
    low = points[points[:, 1] > points[:, 1].max() - 0.15 * height_px]
    centre = (round(float(low[:, 0].mean())), round(float(points[:, 1].max())))
    reach = float(np.ptp(low[:, 0])) / 2 + 0.13 * height_px
    for grown, darkness in ((1.0, 0.88), (0.8, 0.86), (0.55, 0.84)):
        mask = np.zeros(image.shape[:2], np.uint8)
        cv2.ellipse(mask, centre, (round(reach * grown), round(0.05 * height_px * grown)), 0, 0, 360, 255, -1)
        cv2.copyTo(cv2.convertScaleAbs(image, alpha=darkness), mask, image)


def _occlude(image: Image, points: Floats, look: Look, age: int) -> NDArray[np.bool_]:
    """Puts the drive's object before the person; `age` frames after it came; returns (14,) which joints it hides."""
    joints = points[:14, :2]
    low, high = joints.min(axis=0), joints.max(axis=0)
    share = np.array(look.occluder.anchor) + (look.slip * age, 0)
    x, y = low + (high - low) * share
    covered = paste(image, look.occluder, top_middle=(float(x), float(y)))
    column, row = np.rint(joints).astype(np.intp).clip(0, IMAGE_SIZE - 1).T
    is_hidden: NDArray[np.bool_] = covered[row, column] > 0
    return is_hidden
