"""One frame: scene, shadow, person, occluder, and the camera's share: light, lens, motion blur, noise, JPEG, damage."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from model.synthetic.brush import Image
from model.synthetic.figure import Outfit, draw_figure, draw_outfit
from model.synthetic.plan import FRAME_INTERVAL, FRAMES_PER_DRIVE, DrivePlan, Stream, generator
from model.synthetic.pose import Floats, Manner, Viewpoint, blend, body_points, draw_manner, pose_at, project
from model.synthetic.scene import CANVAS_HEIGHT, CANVAS_WIDTH, Occluder, Scene, build_scene, draw_occluder, paste

JPEG_QUALITY = 85
DAMAGES = ("empty", "zeroed", "truncated", "overwritten")
NOISE_BANK_SIZE = 448  # a 256-pixel window in it has 192² offsets: no two frames of a drive meet the same noise


class Exposure(NamedTuple):
    """Light, lens and noise of a drive's camera; drawn once a drive."""

    tone: NDArray[np.uint8]  # (1, 256, 3): level in, level out, per channel
    beam: NDArray[np.float32] | None  # (H, W): the headlights' share of light; None where daylight is even
    noise: int  # spread in grey levels; whole, so that few banks serve a fleet
    is_noise_coarse: bool  # the blotches that an in-camera denoiser leaves at night
    softness: float  # sigma of the lens, pixels


def draw_exposure(rng: np.random.Generator, *, light: str, size: int) -> Exposure:
    """The exposure of one drive in "day", "dusk" or "night"."""
    if light == "day":
        gain, floor, tint = rng.uniform(0.82, 1.12), rng.uniform(0, 22), rng.uniform(0.95, 1.05, 3)
        return Exposure(_tone(gain, floor, tint), None, int(rng.integers(2, 5)), False, rng.uniform(0.4, 0.7))
    if light == "dusk":
        gain, tint = rng.uniform(0.5, 0.7), np.array([1.1, 0.95, 0.85]) * rng.uniform(0.95, 1.05, 3)
        return Exposure(_tone(gain, 8.0, tint), None, int(rng.integers(5, 8)), False, rng.uniform(0.5, 0.8))
    gain, tint = rng.uniform(0.31, 0.45), np.array([0.88, 0.95, 1.1]) * rng.uniform(0.95, 1.05, 3)
    tone = _tone(gain, rng.uniform(6, 12), tint)
    return Exposure(tone, _headlights(rng, size=size), int(rng.integers(12, 16)), True, rng.uniform(1.0, 1.5))


def expose(image: Image, exposure: Exposure) -> Image:
    """The image as that exposure renders it, before noise."""
    if exposure.beam is not None:
        image = (image * exposure.beam[..., None]).astype(np.uint8)
    toned: Image = cv2.LUT(image, exposure.tone)
    return toned


def soften(image: Image, exposure: Exposure) -> Image:
    """The image through the lens."""
    softened: Image = cv2.GaussianBlur(image, (0, 0), exposure.softness)
    return softened


def add_noise(image: Image, exposure: Exposure, *, rng: np.random.Generator) -> Image:
    """The image with sensor noise: a window at a random offset of a fixed bank."""
    bank = _noise_bank(exposure.noise, exposure.is_noise_coarse)
    top, left = rng.integers(0, NOISE_BANK_SIZE - np.array(image.shape[:2]))
    window = np.s_[top : top + image.shape[0], left : left + image.shape[1]]
    noisy: Image = cv2.subtract(cv2.add(image, bank[0][window]), bank[1][window])
    return noisy


def motion_blur(image: Image, *, length_px: float, angle: float) -> Image:
    """The image smeared along a line of that length, `angle` in degrees; its centre stays where it was."""
    reach = math.ceil(length_px / 2)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    dx, dy = (length_px / 2 * f(math.radians(angle)) for f in (math.cos, math.sin))
    ends = [(round(16 * (reach + s * dx)), round(16 * (reach + s * dy))) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    blurred: Image = cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return blurred


def encode(image: Image) -> bytes:
    """JPEG bytes of an RGB image."""
    data: bytes = simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
    return data


def damage(data: bytes, *, rng: np.random.Generator) -> bytes:
    """A file as a failed upload or disk leaves it: no decoder makes an image of it."""
    kind = DAMAGES[rng.integers(len(DAMAGES))]
    if kind == "empty":
        return b""
    if kind == "zeroed":
        return bytes(len(data))
    if kind == "truncated":
        # Cut inside the header: a lenient decoder fills a picture cut in its scan with grey and calls it valid.
        return data[: int(rng.integers(16, 300))]
    return b"\x00" + rng.bytes(len(data) - 1)  # the first byte makes sure that no magic number comes about


def _tone(gain: float, floor: float, tint: NDArray[np.float64]) -> NDArray[np.uint8]:
    levels = floor + np.arange(256)[:, None] * gain * tint
    return np.clip(levels, 0, 255).astype(np.uint8)[None]


def _headlights(rng: np.random.Generator, *, size: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    aim, drop = rng.uniform(0.3, 0.7), rng.uniform(0.75, 0.95)
    beam = np.exp(-(((x - aim) / 0.33) ** 2) - ((y - drop) / 0.28) ** 2)
    lit: NDArray[np.float32] = np.clip(rng.uniform(0.42, 0.6) + 0.6 * beam, 0, 1).astype(np.float32)
    return lit


@functools.lru_cache(maxsize=16)
def _noise_bank(spread: int, is_coarse: bool) -> tuple[Image, Image]:
    """Brighter and darker halves of the noise, apart, so that adding it stays in saturating uint8 arithmetic."""
    rng = np.random.default_rng(0)
    shape = (NOISE_BANK_SIZE, NOISE_BANK_SIZE)
    luma = rng.standard_normal((*shape, 1), dtype=np.float32)
    chroma = rng.standard_normal((*shape, 3), dtype=np.float32)
    noise = 0.85 * luma + 0.5 * chroma
    if is_coarse:
        noise = cv2.GaussianBlur(noise, (0, 0), 1.1)
    noise *= spread / noise.std()
    return np.maximum(noise, 0).astype(np.uint8), np.maximum(-noise, 0).astype(np.uint8)


IMAGE_SIZE = 256
MIDDLE_FRAME = (FRAMES_PER_DRIVE - 1) / 2
# Degrees, and their shares. Were most people to face the camera, the mean pose alone would do well.
FACING = {0.0: 0.46, 180.0: 0.34, 90.0: 0.10, -90.0: 0.10}
BROADSIDE = (0.0, 180.0)
EASE = 0.35  # how much of an unusual pose is taken up per frame: three frames from everyday to unusual


class Look(NamedTuple):
    """All that one drive's frames share to the eye."""

    scene: Scene
    exposure: Exposure
    outfit: Outfit
    manner: Manner
    view: Viewpoint  # at the middle of the drive
    drift: tuple[float, float]  # per frame: pixels sideways, share of growth
    pan: tuple[float, float]  # window's left edge at the middle of the drive, pixels per frame
    occluder: Occluder
    slip: float  # body widths per frame by which the occluder passes
    smear: tuple[float, float]  # motion blur: pixels, degrees


class Rendered(NamedTuple):
    """One frame and its truth."""

    image: Image  # (256, 256, 3)
    joints: Floats  # (14, 2) x, y in pixels, origin = centre of the top-left pixel
    is_visible: NDArray[np.bool_]  # (14,) hidden neither by the body nor by what stands before it


def draw_look(plan: DrivePlan) -> Look:
    """The look of a drive; building its scene costs as much as some ten frames."""
    rng = generator(Stream.LOOK, seed=plan.seed, drive=plan.drive)
    facing = _draw_facing(rng, is_unusual="unusual_pose" in plan.bursts)
    height_px = float(rng.uniform(0.52, 0.64) * IMAGE_SIZE)
    view = Viewpoint(
        facing=facing,
        elevation=float(rng.uniform(0, 8)),
        height_px=height_px,
        centre_x=float(rng.uniform(0.15, 0.85) * IMAGE_SIZE),
        ground_y=float(rng.uniform(0.84, 0.95) * IMAGE_SIZE),
    )
    is_on_foot = plan.motion in ("walk", "run", "phone", "carry")
    stride = np.sin(np.radians(facing)) * rng.uniform(1.0, 2.4) if is_on_foot else rng.normal(0, 0.3)
    is_sideways = plan.camera in ("left", "right")
    return Look(
        scene=build_scene(rng, kind=plan.scene, light=plan.light),
        exposure=draw_exposure(rng, light=plan.light, size=IMAGE_SIZE),
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
    """Degrees. A person in an unusual pose is seen broadside, where it can be labelled."""
    sides, shares = (BROADSIDE, None) if is_unusual else (tuple(FACING), tuple(FACING.values()))
    return float(rng.choice(sides, p=shares) + rng.normal(0, 20))


def render(plan: DrivePlan, look: Look, frame: int) -> Rendered:
    """Frame number `frame` of a drive."""
    rng = generator(Stream.FRAME, seed=plan.seed, drive=plan.drive, frame=frame)
    bob = float(rng.normal(0, 1.0))
    window, points = _window(look, frame, bob), _points(plan, look, frame, bob)
    joints, slices, height_px = points[:14, :2], plan.slices(frame), look.view.height_px

    image = look.scene.canvas[window].copy()
    _draw_shadow(image, points, height_px=height_px)
    near, is_visible = draw_figure(image, points, outfit=look.outfit, height_px=height_px)
    if "occlusion" in slices:
        covered = _occlude(image, joints, look, age=frame - plan.bursts["occlusion"].first)
        column, row = np.rint(joints).astype(np.intp).clip(0, IMAGE_SIZE - 1).T
        near, is_visible = near | covered, is_visible & ~covered[row, column]

    image = soften(expose(image, look.exposure), look.exposure)
    if plan.light == "night":  # lamps are behind whoever stands near
        cv2.add(image, look.scene.glow[window], dst=image, mask=(~near).astype(np.uint8))
    if "motion_blur" in slices:
        length_px, angle = look.smear
        image = motion_blur(image, length_px=length_px, angle=angle + float(rng.normal(0, 6)))
    return Rendered(add_noise(image, look.exposure, rng=rng), joints, is_visible)


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
    ground = round(float(points[:, 1].max()))
    low = points[points[:, 1] > ground - 0.15 * height_px]
    reach, flat = float(np.ptp(low[:, 0])) / 2 + 0.13 * height_px, 0.05 * height_px
    top = max(ground - round(flat), 0)
    strip = image[top : ground + round(flat) + 1]
    centre = (round(float(low[:, 0].mean())), ground - top)
    for grown, darkness in ((1.0, 0.88), (0.8, 0.86), (0.55, 0.84)):
        mask = np.zeros(strip.shape[:2], np.uint8)
        cv2.ellipse(mask, centre, (round(reach * grown), round(flat * grown)), 0, 0, 360, 255, -1)
        cv2.copyTo(cv2.convertScaleAbs(strip, alpha=darkness), mask, strip)


def _occlude(image: Image, joints: Floats, look: Look, *, age: int) -> NDArray[np.bool_]:
    """Puts the drive's object before the person, `age` frames after it came; returns (H, W) what it covers."""
    low, high = joints.min(axis=0), joints.max(axis=0)
    across, down = look.occluder.anchor
    x, y = low + (high - low) * np.array([across + look.slip * age, down])
    return paste(image, look.occluder, top_middle=(float(x), float(y))) > 0
