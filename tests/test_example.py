"""Labels follow their crop: mirrored, moved, dropped where they can't be seen; views stay in their ranges."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ImageError
from model.example import AUGMENTATIONS, Augmentation, Example, label_crop, make_crop, make_example, sample_view
from model.image import PLAIN, View, crop_to_input, decode_image
from model.pose_model import make_spec
from model.skeleton import LSP

SPEC = dataclasses.replace(make_spec("hourglass-small", method="ll++", skeleton=LSP), crop_margin=1.75)
K = LSP.num_keypoints
FLIPPED = View(is_flipped=True)
BOX = np.array([40.0, 30.0, 80.0, 90.0])  # its plain crop reaches from 7.5 to 112.5 and from 7.5 to 112.5
PICTURE = np.random.default_rng(0).integers(0, 256, (128, 160, 3), np.uint8)
PNG = cv2.imencode(".png", PICTURE[..., ::-1])[1].tobytes()
KEYPOINTS = np.random.default_rng(1).uniform([40, 30], [80, 90], (K, 2)).astype(np.float32)
ALL_VISIBLE = np.full(K, 2, np.uint8)


def example(
    *, keypoints: np.ndarray = KEYPOINTS, visibility: np.ndarray = ALL_VISIBLE, view: View | None = None
) -> Example:
    return make_example(PNG, BOX, keypoints=keypoints, visibility=visibility, spec=SPEC, view=view or View())


def with_keypoint(index: int, x: float, y: float) -> np.ndarray:
    keypoints = KEYPOINTS.copy()
    keypoints[index] = x, y
    return keypoints


def test_the_crop_is_what_the_specification_prescribes() -> None:
    expected = crop_to_input(decode_image(PNG), BOX, input_size=SPEC.input_size, margin=SPEC.crop_margin)
    for found in (example().pixels, make_crop(PNG, BOX, spec=SPEC).pixels):
        np.testing.assert_array_equal(found, expected.pixels)


def test_keypoints_are_in_pixels_of_the_crop() -> None:
    # 105 image pixels become 64, around the middle of the box.
    expected = (KEYPOINTS - [60, 60]) * (64 / 105) + 31.5
    np.testing.assert_allclose(example().keypoints, expected, atol=1e-4)
    assert example().is_labelled.all()


def test_shapes_and_types_are_those_of_a_batch() -> None:
    found = example()
    assert [(part.shape, part.dtype.name) for part in found] == [
        ((64, 64, 3), "uint8"),
        ((K, 2), "float32"),
        ((K,), "bool"),
    ]


def test_a_mirrored_view_swaps_left_and_right() -> None:
    plain, mirrored = example(), example(view=FLIPPED)
    np.testing.assert_array_equal(mirrored.pixels, plain.pixels[:, ::-1])
    for right, left in LSP.flip_pairs:
        np.testing.assert_allclose(mirrored.keypoints[left, 0], 63 - plain.keypoints[right, 0], atol=1e-4)
        np.testing.assert_allclose(mirrored.keypoints[left, 1], plain.keypoints[right, 1], atol=1e-4)


def test_a_mirrored_view_of_the_mirrored_image_and_body_is_the_plain_view() -> None:
    width = PICTURE.shape[1]
    mirror_png = cv2.imencode(".png", np.ascontiguousarray(PICTURE[:, ::-1, ::-1]))[1].tobytes()
    mirrored_body = np.stack([width - 1 - KEYPOINTS[:, 0], KEYPOINTS[:, 1]], axis=1)[list(LSP.flip_order)]
    visibility = np.arange(K, dtype=np.uint8) % 3
    found = make_example(
        mirror_png,
        np.array([width - 1 - BOX[2], BOX[1], width - 1 - BOX[0], BOX[3]]),
        keypoints=mirrored_body,
        visibility=visibility[list(LSP.flip_order)],
        spec=SPEC,
        view=FLIPPED,
    )
    expected = example(visibility=visibility)
    # Mirrored, a sampling position that ties between two 1/32 pixels may round the other way.
    np.testing.assert_allclose(found.pixels.astype(int), expected.pixels, atol=8)
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=1e-4)
    np.testing.assert_array_equal(found.is_labelled, expected.is_labelled)


def test_a_mirrored_view_takes_the_visibility_of_the_other_side() -> None:
    visibility = ALL_VISIBLE.copy()
    right, left = LSP.flip_pairs[0]
    visibility[right] = 0
    assert np.flatnonzero(~example(visibility=visibility, view=FLIPPED).is_labelled).tolist() == [left]


def test_occluded_keypoints_are_labelled_and_those_of_visibility_zero_are_not() -> None:
    visibility = np.array([0, 1, 2] * 5, np.uint8)[:K]
    np.testing.assert_array_equal(example(visibility=visibility).is_labelled, visibility > 0)


@pytest.mark.parametrize(
    ("x", "y"),
    [(7.0, 60), (113.0, 60), (60, 7.0), (60, 113.0), (-500, -500), (1e30, 0), (3e38, -3e38)],
)
def test_a_keypoint_outside_the_crop_is_not_labelled(x: float, y: float) -> None:
    assert np.flatnonzero(~example(keypoints=with_keypoint(3, x, y)).is_labelled).tolist() == [3]


@pytest.mark.parametrize(("x", "y"), [(8.0, 60), (112.0, 60), (60, 8.0), (60, 112.0)])
def test_a_keypoint_at_the_border_of_the_crop_is_labelled(x: float, y: float) -> None:
    assert example(keypoints=with_keypoint(3, x, y)).is_labelled.all()


@pytest.mark.parametrize(("x", "y"), [(np.nan, np.nan), (np.nan, 60), (60, np.nan), (np.inf, 60), (60, -np.inf)])
def test_a_keypoint_that_is_no_number_is_not_labelled_and_spoils_no_other(x: float, y: float) -> None:
    found = example(keypoints=with_keypoint(3, x, y))
    assert np.flatnonzero(~found.is_labelled).tolist() == [3]
    np.testing.assert_array_equal(np.delete(found.keypoints, 3, axis=0), np.delete(example().keypoints, 3, axis=0))


def test_a_tiny_box_throws_far_keypoints_out_without_complaint() -> None:
    box = np.array([60.0, 60.0, np.nextafter(np.float32(60), np.float32(61)), 60.00001])
    found = make_example(PNG, box, keypoints=KEYPOINTS * np.float32(1e36), visibility=ALL_VISIBLE, spec=SPEC)
    assert not found.is_labelled.any()


def test_a_shifted_view_loses_the_keypoints_that_it_no_longer_shows() -> None:
    found = example(view=View(shift=(0.5, 0.0)))
    np.testing.assert_array_equal(found.is_labelled, KEYPOINTS[:, 0] > 60)


def test_labelling_a_crop_twice_gives_the_same_and_leaves_the_labels_alone() -> None:
    crop = make_crop(PNG, BOX, spec=SPEC)
    before = KEYPOINTS.copy()
    first = label_crop(crop, keypoints=KEYPOINTS, visibility=ALL_VISIBLE, spec=SPEC, is_flipped=True)
    second = label_crop(crop, keypoints=KEYPOINTS, visibility=ALL_VISIBLE, spec=SPEC, is_flipped=True)
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
    np.testing.assert_array_equal(KEYPOINTS, before)


@pytest.mark.parametrize(
    ("image", "box", "reason"),
    [(b"", None, "empty"), (PNG[:-30], None, "undecodable"), (PNG, np.full(4, np.nan), "bad_box")],
)
def test_an_image_that_cannot_be_used_is_named(image: bytes, box: np.ndarray | None, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        make_example(image, box, keypoints=KEYPOINTS, visibility=ALL_VISIBLE, spec=SPEC)
    assert caught.value.reason == reason


# Augmentation


RANGES = st.builds(
    Augmentation,
    shift=st.floats(0, 0.5),
    scale=st.floats(0, 0.9),
    rotation_deg=st.floats(0, 180),
    flip_probability=st.floats(0, 1),
)


def views(augmentation: Augmentation, count: int, *, seed: int = 0) -> list[View]:
    rng = np.random.default_rng(seed)
    return [sample_view(augmentation, rng=rng) for _ in range(count)]


@given(augmentation=RANGES, seed=st.integers(0, 2**32 - 1))
def test_views_keep_within_their_ranges(augmentation: Augmentation, seed: int) -> None:
    for view in views(augmentation, 5, seed=seed):
        assert max(map(abs, view.shift)) <= augmentation.shift
        assert 1 - augmentation.scale <= view.scale <= 1 + augmentation.scale
        assert abs(view.rotation_deg) <= augmentation.rotation_deg


def test_views_reach_almost_to_both_ends_of_their_ranges() -> None:
    paper = AUGMENTATIONS["paper"]
    drawn = views(paper, 400)
    for values, middle, reach in (
        ([view.shift[0] for view in drawn], 0, paper.shift),
        ([view.shift[1] for view in drawn], 0, paper.shift),
        ([view.scale for view in drawn], 1, paper.scale),
        ([view.rotation_deg for view in drawn], 0, paper.rotation_deg),
    ):
        assert min(values) < middle - 0.95 * reach
        assert max(values) > middle + 0.95 * reach


def test_the_same_generator_gives_the_same_views_and_another_seed_others() -> None:
    light = AUGMENTATIONS["light"]
    assert views(light, 5, seed=1) == views(light, 5, seed=1)
    assert views(light, 5, seed=1) != views(light, 5, seed=2)


def test_other_ranges_leave_the_rest_of_the_stream_as_it_was() -> None:
    streams = [np.random.default_rng(3) for _ in AUGMENTATIONS]
    for augmentation, rng in zip(AUGMENTATIONS.values(), streams, strict=True):
        sample_view(augmentation, rng=rng)
    assert len({rng.integers(2**63) for rng in streams}) == 1


def test_no_augmentation_is_the_plain_view_and_the_plain_crop() -> None:
    drawn = views(AUGMENTATIONS["none"], 50)
    assert drawn == [PLAIN] * 50
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    box = np.array([5.0, 5.0, 20.0, 15.0])
    found = crop_to_input(picture, box, input_size=16, margin=1.5, view=drawn[0])
    np.testing.assert_array_equal(found.pixels, crop_to_input(picture, box, input_size=16, margin=1.5).pixels)


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_views_are_flipped_with_the_given_probability(probability: float) -> None:
    augmentation = Augmentation(shift=0, scale=0, rotation_deg=0, flip_probability=probability)
    share = np.mean([view.is_flipped for view in views(augmentation, 2000)])
    assert share == pytest.approx(probability, abs=0.05 if 0 < probability < 1 else 0)  # 4.5 standard deviations


def test_what_is_drawn_for_a_view_is_independent_of_each_other() -> None:
    drawn = views(AUGMENTATIONS["paper"], 2000)
    values = np.array([[*view.shift, view.scale, view.rotation_deg, view.is_flipped] for view in drawn])
    np.testing.assert_allclose(np.corrcoef(values.T), np.eye(5), atol=0.1)  # 4.5 standard deviations
