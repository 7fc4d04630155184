"""Thumbnails against the crop that models see; packed poses against hand-worked bytes."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import pytest

from model.image import crop_to_input
from model.thumbnail import Format, make_thumbnails, pack_pose

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def picture() -> np.ndarray:
    x, y = np.meshgrid(np.arange(200), np.arange(120))
    return np.stack([x, y, x + y], axis=2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("box", [None, [20.0, 10.0, 90.0, 110.0]])
@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_a_thumbnail_shows_what_the_model_sees(box: list[float] | None, kind: Literal["webp", "jpeg"]) -> None:
    form = Format(side=64, quality=90, kind=kind)
    region = None if box is None else np.array(box)
    made, _ = make_thumbnails(jpeg(picture()), region, [form, Format(side=32, quality=50)], margin=1.5) or []
    crop = crop_to_input(picture()[..., ::-1], region, input_size=64, margin=1.5)
    np.testing.assert_array_equal(made.to_image, crop.to_image)
    shown = cv2.cvtColor(cv2.imdecode(np.frombuffer(made.data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert made.data.startswith(b"RIFF" if kind == "webp" else b"\xff\xd8")
    assert shown.shape == (64, 64, 3)
    assert np.abs(shown.astype(int) - crop.pixels).mean() < 4  # lossy twice


@pytest.mark.parametrize("image", [b"", b"no image", jpeg(picture())[:-200]])
def test_what_can_not_be_decoded_has_none(image: bytes) -> None:
    assert make_thumbnails(image, None, [Format(side=64, quality=50)], margin=1.0) is None


def test_a_box_outside_has_none() -> None:
    region, formats = np.array([900.0, 0, 950, 50]), [Format(side=64, quality=50)]
    assert make_thumbnails(jpeg(picture()), region, formats, margin=1.0) is None


def test_places_are_255ths_of_the_side_from_the_corner() -> None:
    keypoints = np.array([[-0.5, -0.5], [49.5, 99.5], [24.5, 49.5], [500.0, -500.0], [np.nan, 3.0]])
    packed = pack_pose(keypoints, np.array([1.0, 0.5, 0.0, 2.0, 1.0]), to_image=IDENTITY, side=100)
    assert [*packed] == [0, 0, 255, 128, 255, 128, 64, 128, 1, 255, 0, 255, 0, 0, 0]


def test_a_pose_of_the_image_is_moved_into_the_thumbnail() -> None:
    to_image = np.array(
        [[2.0, 0.0, 10.0], [0.0, 2.0, 20.0]]
    )  # thumbnail pixel (x, y) is image pixel (2x + 10, 2y + 20)
    packed = pack_pose(np.array([[10.0 + 2 * 50, 20.0 + 2 * 25]]), np.array([1.0]), to_image=to_image, side=100)
    assert [*packed] == [round(50.5 / 100 * 255), round(25.5 / 100 * 255), 255]
