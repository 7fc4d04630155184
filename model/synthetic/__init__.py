"""A synthetic fleet: pose images with their truth, rare hard slices and unreadable files, deterministic by seed.

Each frame is the same whatever part of the fleet is generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from model.synthetic.plan import (
    FRAME_INTERVAL,
    FRAMES_PER_DRIVE,
    SLICES,
    DrivePlan,
    Stream,
    frames_by_slice,
    generator,
    plan_drive,
)
from model.synthetic.render import IMAGE_SIZE, Look, damage, draw_look, encode, render

__all__ = ["FRAMES_PER_DRIVE", "SLICES", "Sample", "frames_by_slice", "generate_fleet", "generate_frames"]


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


def generate_fleet(
    *, seed: int, num_samples: int, start: int = 0, step: int = 1, unreadable_share: float = 0.005
) -> Iterator[Sample]:
    """Every `step`-th sample of the fleet of that seed, `num_samples` of them, from sample `start` on.

    Sample i is frame i % 24 of drive i // 24 and byte-identical in whatever call makes it, so that parts of a fleet can
    be generated in parallel, and a labelled part and a pool kept apart by `start`. `unreadable_share` damages files
    and nothing else.
    """
    yield from generate_frames(
        range(start, start + num_samples * step, step), seed=seed, unreadable_share=unreadable_share
    )


def generate_frames(frames: Iterable[int], *, seed: int, unreadable_share: float = 0.005) -> Iterator[Sample]:
    """The samples of these numbers; see `generate_fleet`. Numbers of one drive should follow each other."""
    plan, look = None, None
    for index in frames:
        drive, frame = divmod(index, FRAMES_PER_DRIVE)
        if plan is None or look is None or plan.drive != drive:
            plan = plan_drive(drive, seed=seed)
            look = draw_look(plan)
        yield _make_sample(plan, look, frame, unreadable_share=unreadable_share)


def label_visibility(keypoints: NDArray[np.float32], *, is_visible: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """COCO's codes of (K, 2) keypoints: 0 outside the image, 1 inside but hidden, 2 visible."""
    is_inside = ((keypoints >= 0) & (keypoints <= IMAGE_SIZE - 1)).all(axis=1)
    return np.where(is_inside, np.where(is_visible, 2, 1), 0).astype(np.uint8)


def _make_sample(plan: DrivePlan, look: Look, frame: int, *, unreadable_share: float) -> Sample:
    rendered = render(plan, look, frame)
    data, slices = encode(rendered.image), plan.slices(frame)
    rng = generator(Stream.DAMAGE, seed=plan.seed, drive=plan.drive, frame=frame)
    if rng.random() < unreadable_share:
        data, slices = damage(data, rng=rng), (*slices, "unreadable")
    keypoints = rendered.joints.astype(np.float32)
    corners = np.concatenate([keypoints.min(axis=0), keypoints.max(axis=0)]).clip(0, IMAGE_SIZE - 1).tolist()
    return Sample(
        sample_id=f"{plan.group}-f{frame:04d}",
        image=data,
        box=(corners[0], corners[1], corners[2], corners[3]),
        keypoints=keypoints,
        visibility=label_visibility(keypoints, is_visible=rendered.is_visible),
        group=plan.group,
        captured_at=plan.started_at + frame * FRAME_INTERVAL,
        vehicle=plan.vehicle,
        camera=plan.camera,
        light=plan.light,
        slices=slices,
    )
