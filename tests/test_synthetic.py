"""The fleet: the same bytes whatever part is made, with the promised share of hard frames."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from datetime import timedelta

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from model.skeleton import LSP
from model.synthetic import (
    FRAMES_PER_DRIVE,
    SLICES,
    Sample,
    frames_by_slice,
    generate_fleet,
    generate_frames,
    label_visibility,
)
from model.synthetic.figure import draw_figure, draw_outfit
from model.synthetic.plan import DRIVES_PER_BLOCK, plan_drive
from model.synthetic.pose import (
    EVERYDAY,
    FOREARM,
    MOTIONS,
    SHIN,
    THIGH,
    UNUSUAL,
    UPPER_ARM,
    Limb,
    Pose,
    Viewpoint,
    body_points,
    draw_manner,
    mirror,
    pose_at,
    project,
)
from model.synthetic.scene import MAKERS, Occluder, draw_occluder, paste

SEED = 3


def fields(sample: Sample) -> dict[str, object]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataclasses.asdict(sample).items()}


def pixels(sample: Sample) -> np.ndarray:
    return simplejpeg.decode_jpeg(sample.image)


def burst_frames(name: str, *, num_drives: int) -> list[Sample]:
    """The middle frame of the first few bursts of that slice."""
    found: list[Sample] = []
    for drive in range(10 * DRIVES_PER_BLOCK):
        burst = plan_drive(drive, seed=SEED).bursts.get(name)
        if burst and len(found) < num_drives:
            index = drive * FRAMES_PER_DRIVE + (burst.first + burst.last) // 2
            found += generate_fleet(seed=SEED, num_samples=1, start=index, unreadable_share=0)
    return found


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(generate_fleet(seed=SEED, num_samples=5 * FRAMES_PER_DRIVE, unreadable_share=0))


@pytest.fixture(scope="module")
def damaged() -> list[Sample]:
    return list(generate_fleet(seed=SEED, num_samples=2 * FRAMES_PER_DRIVE, unreadable_share=0.5))


def test_any_part_of_the_fleet_equals_that_part_of_the_whole(samples: list[Sample]) -> None:
    start = FRAMES_PER_DRIVE - 3  # across the border of two drives
    part = list(generate_fleet(seed=SEED, num_samples=6, start=start, unreadable_share=0))
    assert [fields(s) for s in part] == [fields(s) for s in samples[start : start + 6]]


def test_another_seed_gives_other_images(samples: list[Sample]) -> None:
    assert next(generate_fleet(seed=SEED + 1, num_samples=1)).image != samples[0].image


def test_no_samples_are_asked_for_and_none_come() -> None:
    assert list(generate_fleet(seed=SEED, num_samples=0)) == []


def test_ids_are_unique_and_name_vehicle_drive_and_frame(samples: list[Sample]) -> None:
    assert len({s.sample_id for s in samples}) == len(samples)
    for index, s in enumerate(samples):
        drive, frame = divmod(index, FRAMES_PER_DRIVE)
        assert s.group == f"{s.vehicle}-d{drive:04d}"
        assert s.sample_id == f"{s.group}-f{frame:04d}"


def test_shapes_and_types_are_those_of_the_contract(samples: list[Sample]) -> None:
    for s in samples:
        assert pixels(s).shape == (256, 256, 3)
        assert s.keypoints.shape == (LSP.num_keypoints, 2)
        assert s.keypoints.dtype == np.float32
        assert s.visibility.shape == (LSP.num_keypoints,)
        assert s.visibility.dtype == np.uint8
        assert set(s.slices) <= set(SLICES)
        assert s.captured_at.utcoffset() == timedelta(0)


def test_labelled_keypoints_lie_in_the_box_and_the_box_in_the_image(samples: list[Sample]) -> None:
    for s in samples:
        x0, y0, x1, y1 = s.box
        assert 0 <= x0 < x1 <= 255
        assert 0 <= y0 < y1 <= 255
        labelled = s.keypoints[s.visibility > 0]
        assert (labelled >= (x0, y0)).all()
        assert (labelled <= (x1, y1)).all()


def test_visibility_is_zero_outside_the_image_whatever_hides_the_joint() -> None:
    keypoints = np.array([[0, 0], [255, 255], [-0.1, 9], [9, 255.1], [9, 9]], np.float32)
    is_visible = np.array([True, False, True, False, True])
    assert label_visibility(keypoints, is_visible=is_visible).tolist() == [2, 1, 0, 0, 2]


def test_frames_of_a_drive_are_near_duplicates_and_drives_are_not(samples: list[Sample]) -> None:
    images = np.stack(
        [cv2.resize(pixels(s), (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) for s in samples]
    )
    step = np.abs(np.diff(images, axis=0)).mean(axis=(1, 2, 3))  # from each frame to the next
    is_border = np.arange(1, len(samples)) % FRAMES_PER_DRIVE == 0
    assert np.median(step[~is_border]) * 4 < step[is_border].min()


def test_frames_of_a_drive_share_its_metadata_and_are_a_tenth_of_a_second_apart(samples: list[Sample]) -> None:
    drive = samples[:FRAMES_PER_DRIVE]
    assert len({(s.group, s.vehicle, s.camera, s.light) for s in drive}) == 1
    steps = {b.captured_at - a.captured_at for a, b in itertools.pairwise(drive)}
    assert steps == {timedelta(milliseconds=100)}


def test_hard_slices_have_their_shares() -> None:
    num_drives = 40 * DRIVES_PER_BLOCK
    plans = [plan_drive(d, seed=SEED) for d in range(num_drives)]
    frames = [p.slices(f) for p in plans for f in range(FRAMES_PER_DRIVE)]
    shares = {name: count / len(frames) for name, count in Counter(s for frame in frames for s in frame).items()}
    assert shares == pytest.approx({"night": 0.04, "motion_blur": 0.03, "occlusion": 0.04, "unusual_pose": 0.04})
    assert 0.12 < np.mean([bool(frame) for frame in frames]) < 0.15
    assert {p.motion for p in plans} == set(EVERYDAY)
    assert {p.unusual_motion for p in plans if "unusual_pose" in p.bursts} == set(UNUSUAL)
    assert all((p.light == "night") == ("night" in p.slices(0)) for p in plans)


def test_unreadable_files_decode_nowhere_and_the_rest_of_their_rows_is_untouched(
    samples: list[Sample], damaged: list[Sample]
) -> None:
    is_damaged = ["unreadable" in s.slices for s in damaged]
    assert 0.25 < np.mean(is_damaged) < 0.75
    for s, whole in zip(damaged, samples, strict=False):
        if "unreadable" not in s.slices:
            assert fields(s) == fields(whole)
            continue
        assert {**fields(s), "image": 0, "slices": s.slices[:-1]} == {**fields(whole), "image": 0}
        with pytest.raises(ValueError, match=r"."):
            simplejpeg.decode_jpeg(s.image)
        if s.image:
            assert cv2.imdecode(np.frombuffer(s.image, np.uint8), cv2.IMREAD_COLOR) is None


def test_files_are_damaged_in_every_way(damaged: list[Sample]) -> None:
    images = [s.image for s in damaged if "unreadable" in s.slices]
    assert b"" in images
    assert any(image and not any(image) for image in images)  # zeroed
    assert any(image.startswith(b"\xff\xd8") for image in images)  # truncated
    assert any(image.startswith(b"\x00") and any(image) for image in images)  # overwritten


def test_an_occluder_hides_several_joints_and_they_stay_labelled() -> None:
    num_hidden = [int((s.visibility == 1).sum()) for s in burst_frames("occlusion", num_drives=8)]
    assert np.mean(num_hidden) > 5


def test_joints_under_a_pasted_object_are_hidden() -> None:
    image, mask = np.full((30, 20, 3), 9, np.uint8), np.full((30, 20), 255, np.uint8)
    canvas = np.zeros((64, 64, 3), np.uint8)
    covered = paste(canvas, Occluder(image=image, mask=mask, anchor=(0.5, 0.5)), top_middle=(0.0, 50.0))
    expected = np.zeros((64, 64), bool)
    expected[50:, :10] = True  # clipped by two edges of the image
    assert ((covered > 0) == expected).all()
    assert ((canvas == 9).all(axis=2) == expected).all()


@pytest.mark.parametrize("seed", range(3 * len(MAKERS)))
def test_every_occluder_has_a_body(seed: int) -> None:
    occluder = draw_occluder(np.random.default_rng(seed), height_px=150)
    assert occluder.image.shape[:2] == occluder.mask.shape
    assert (occluder.mask > 0).mean() > 0.3


def test_night_is_darker_and_motion_blur_smoother_than_easy_frames(samples: list[Sample]) -> None:
    def sharpness(s: Sample) -> float:
        grey = cv2.GaussianBlur(pixels(s).mean(axis=2), (0, 0), 1.5)  # without the sensor's noise
        return float(np.abs(cv2.Laplacian(grey, cv2.CV_64F)).mean())

    easy = [s for s in samples if not s.slices and s.light == "day"]
    night, blurred = (burst_frames(name, num_drives=4) for name in ("night", "motion_blur"))
    assert max(pixels(s).mean() for s in night) < min(pixels(s).mean() for s in easy)
    assert np.mean([sharpness(s) for s in blurred]) < 0.6 * np.mean([sharpness(s) for s in easy])


def test_standing_at_attention_has_the_known_geometry() -> None:
    points = body_points(Pose())
    assert points[13, 1] - points[0, 1] == pytest.approx(0.98)  # head top to ankle, body heights
    assert points[0, 0] < 0 < points[5, 0]  # the right ankle is on the right: x grows to the person's left
    seen = project(points, view=Viewpoint(facing=0, elevation=0, height_px=100, centre_x=50, ground_y=90))
    assert seen[0, 0] < 50 < seen[5, 0]  # who faces the camera has their right on the image's left


def test_a_quarter_turn_of_the_shoulder_points_where_the_angle_says() -> None:
    for limb, direction in (
        (Limb(flexion=90), (0, 0, 1)),
        (Limb(abduction=90), (-1, 0, 0)),
        (Limb(bend=90), (0, 0, 1)),
        (Limb(bend=90, rotation=90), (1, 0, 0)),
    ):
        points = body_points(Pose(right_arm=limb))
        start = 7 if limb.bend else 8
        moved = points[6] - points[start]
        assert moved / np.linalg.norm(moved) == pytest.approx(direction, abs=1e-9)


@given(motion=st.sampled_from(sorted(MOTIONS)), seconds=st.floats(0, 3), seed=st.integers(0, 999))
def test_bones_keep_their_lengths_and_mirroring_exchanges_the_sides(motion: str, seconds: float, seed: int) -> None:
    pose = pose_at(motion, seconds=seconds, manner=draw_manner(np.random.default_rng(seed)))
    points = body_points(pose)
    for a, b, length in ((0, 1, SHIN), (4, 3, THIGH), (8, 7, UPPER_ARM), (10, 11, FOREARM)):
        assert np.linalg.norm(points[a] - points[b]) == pytest.approx(length)
    mirrored = body_points(mirror(pose))[:14][list(LSP.flip_order)] * (-1, 1, 1)
    assert mirrored == pytest.approx(points[:14], abs=1e-9)


def test_the_trunk_hides_an_arm_behind_the_back() -> None:
    arm_behind = Pose(right_arm=Limb(flexion=-20, abduction=5, bend=70, rotation=80))
    view = Viewpoint(facing=0, elevation=0, height_px=150, centre_x=128, ground_y=240)
    outfit = draw_outfit(np.random.default_rng(0))
    for facing, is_seen in ((0.0, False), (180.0, True)):
        points = project(body_points(arm_behind), view=view._replace(facing=facing))
        drawn = draw_figure(np.zeros((256, 256, 3), np.uint8), points, outfit=outfit, height_px=150)
        assert drawn.is_visible[6] == is_seen
        assert drawn.is_visible[13]
        assert drawn.silhouette[round(points[12, 1]), round(points[12, 0])]


def test_frames_are_taken_until_each_slice_has_its_share_and_none_that_nobody_wants() -> None:
    frames = list(frames_by_slice(seed=3, first_drive=10, per_slice=4, num_easy=5, step=4))
    assert frames == sorted(set(frames))
    assert all(frame >= 10 * FRAMES_PER_DRIVE and frame % FRAMES_PER_DRIVE % 4 == 0 for frame in frames)
    made = list(generate_frames(frames, seed=3, unreadable_share=0.0))
    counts = Counter(name for sample in made for name in sample.slices or ("easy",))
    assert counts["easy"] == 5
    assert set(counts) == {"easy", *SLICES} - {"unreadable"}
    assert min(counts.values()) >= 4
    (alone,) = generate_frames(frames[3:4], seed=3, unreadable_share=0.0)
    assert alone.image == made[3].image
