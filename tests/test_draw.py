"""Poses and contact sheets: the right colours in the right places."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from model.draw import Tile, contact_sheet, draw_pose, encode_png
from model.image import decode_image
from model.skeleton import LSP

K = LSP.num_keypoints
ORANGE, BLUE, WHITE = (255, 140, 40), (70, 170, 255), (240, 240, 240)
CAPTION_PX = 18
NAMES = LSP.keypoint_names
BLACK = np.zeros((80, 80, 3), np.uint8)


def keypoints(**places: tuple[float, float]) -> np.ndarray:
    """(K, 2) with the named keypoints there and the others NaN."""
    points = np.full((K, 2), np.nan)
    for name, place in places.items():
        points[NAMES.index(name)] = place
    return points


def is_shade(pixels: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """(...) where pixels (..., 3) are that colour, up to the softening of lines."""
    bright = pixels.max(axis=-1, keepdims=True).astype(float)
    shade = pixels / np.maximum(bright, 1) - np.array(colour) / max(colour)
    return (bright[..., 0] > 100) & (np.abs(shade) < 0.03).all(axis=-1)


def colours(image: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()} - {(0, 0, 0)}


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()


def tile_of(sheet: np.ndarray, index: int, *, columns: int, tile_px: int) -> np.ndarray:
    top, left = index // columns * (tile_px + CAPTION_PX), index % columns * tile_px
    return sheet[top : top + tile_px, left : left + tile_px]


# Poses


@pytest.mark.parametrize(
    ("one", "other", "colour"),
    [
        ("right_knee", "right_hip", ORANGE),
        ("left_elbow", "left_wrist", BLUE),
        ("neck", "head_top", WHITE),
        ("right_hip", "left_hip", WHITE),
        ("right_shoulder", "neck", WHITE),
    ],
)
def test_a_limb_has_the_colour_of_its_side(one: str, other: str, colour: tuple[int, ...]) -> None:
    drawn = draw_pose(BLACK, keypoints(**{one: (20, 40), other: (60, 40)}), skeleton=LSP)
    assert is_shade(drawn[40, 40], colour)
    assert not drawn[:35].any()
    assert not drawn[:, :15].any()
    assert not drawn[:, 65:].any()


def test_a_limb_runs_between_its_keypoints() -> None:
    drawn = draw_pose(BLACK, keypoints(neck=(10.25, 20), head_top=(50, 60.75)), skeleton=LSP)
    rows, columns = np.nonzero(drawn[..., 0] > 128)
    assert (rows.min(), columns.min()) == (pytest.approx(20, abs=1), pytest.approx(10, abs=1))
    assert (rows.max(), columns.max()) == (pytest.approx(61, abs=1), pytest.approx(50, abs=1))


@pytest.mark.parametrize("missing", [(np.nan, np.nan), (np.nan, 40), (np.inf, 40)])
def test_a_limb_without_one_of_its_keypoints_is_not_drawn(missing: tuple[float, float]) -> None:
    assert not draw_pose(BLACK, keypoints(neck=(20, 40), head_top=missing), skeleton=LSP).any()
    partly = draw_pose(
        BLACK, keypoints(neck=(20, 40), head_top=missing, left_hip=(20, 60), left_knee=(60, 60)), skeleton=LSP
    )
    assert is_shade(partly[60, 40], BLUE)
    assert not partly[:50].any()


def test_no_keypoints_leave_the_image_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    np.testing.assert_array_equal(draw_pose(picture, np.full((K, 2), np.nan), skeleton=LSP), picture)


def test_drawing_leaves_the_image_given_alone() -> None:
    picture = BLACK.copy()
    assert draw_pose(picture, keypoints(neck=(20, 40), head_top=(60, 40)), skeleton=LSP).any()
    assert not picture.any()


@pytest.mark.parametrize("far", [1e3, 1e6, 1e30, -1e30])
def test_keypoints_far_outside_are_drawn_towards_and_break_nothing(far: float) -> None:
    drawn = draw_pose(BLACK, keypoints(neck=(40, 40), head_top=(far, 40)), skeleton=LSP)
    assert is_shade(drawn[40, 60 if far > 0 else 20], WHITE)


def test_a_skeleton_without_sides_is_drawn_white() -> None:
    sideless = dataclasses.replace(LSP, flip_pairs=())
    drawn = draw_pose(BLACK, keypoints(right_knee=(20, 40), right_hip=(60, 40)), skeleton=sideless)
    assert is_shade(drawn[40, 40], WHITE)


# Sheets


@pytest.mark.parametrize(("count", "rows"), [(0, 1), (1, 1), (3, 1), (4, 2), (7, 3)])
def test_a_sheet_has_a_row_of_tiles_and_captions_for_each_few_images(count: int, rows: int) -> None:
    tiles = [Tile(image=png(BLACK), keypoints=None, caption=str(i)) for i in range(count)]
    sheet = contact_sheet(tiles, skeleton=LSP, columns=3, tile_px=40)
    assert sheet.shape == (rows * (40 + CAPTION_PX), 120, 3)
    assert sheet.dtype == np.uint8


def test_tiles_lie_row_by_row_in_their_order() -> None:
    levels = [200, 150, 100, 50]
    tiles = [Tile(image=png(np.full((9, 9, 3), v, np.uint8)), keypoints=None, caption="") for v in levels]
    sheet = contact_sheet(tiles, skeleton=LSP, columns=3, tile_px=40)
    found = [int(tile_of(sheet, i, columns=3, tile_px=40)[20, 20, 0]) for i in range(4)]
    assert found == levels


@pytest.mark.parametrize("image", [b"", b"text", png(BLACK)[:-20]])
def test_an_unreadable_image_is_a_blank_tile_with_its_caption_and_spoils_no_other(image: bytes) -> None:
    white = png(np.full((9, 9, 3), 255, np.uint8))
    points = keypoints(neck=(20, 40), head_top=(60, 40))
    tiles = [Tile(image=data, keypoints=points, caption="name") for data in (white, image, white)]
    sheet = contact_sheet(tiles, skeleton=LSP, columns=3, tile_px=40)
    blank = tile_of(sheet, 1, columns=3, tile_px=40)
    assert len(colours(blank)) == 1
    caption = sheet[40:, 40:80]
    assert len(colours(caption)) > 1
    np.testing.assert_array_equal(tile_of(sheet, 2, columns=3, tile_px=40), tile_of(sheet, 0, columns=3, tile_px=40))


@pytest.mark.parametrize(("height", "width"), [(30, 60), (60, 30), (1, 1), (1, 500), (500, 1), (900, 900)])
def test_an_image_is_scaled_to_fit_and_centred(height: int, width: int) -> None:
    tile = Tile(image=png(np.full((height, width, 3), 255, np.uint8)), keypoints=None, caption="")
    found = contact_sheet([tile], skeleton=LSP, columns=1, tile_px=42)[:42] == 255
    rows, columns = np.nonzero(found.all(axis=2))
    expected = [max(1, round(side * 40 / max(height, width))) for side in (height, width)]
    assert [np.ptp(rows) + 1, np.ptp(columns) + 1] == expected
    assert [rows.min() + rows.max(), columns.min() + columns.max()] == pytest.approx([41, 41], abs=1)


def test_the_pose_lies_on_the_thumbnail_where_it_lies_on_the_image() -> None:
    picture = np.zeros((400, 800, 3), np.uint8)
    points = keypoints(right_knee=(200, 100), right_hip=(600, 100))
    sheet = contact_sheet([Tile(image=png(picture), keypoints=points, caption="")], skeleton=LSP, tile_px=82, columns=1)
    # 800 pixels become 80: one pixel of frame, and 21 above.
    rows, columns = np.nonzero(is_shade(sheet, ORANGE))
    assert set(rows) <= {30, 31}
    assert (columns.min(), columns.max()) == (pytest.approx(21, abs=1), pytest.approx(61, abs=1))


def test_a_png_holds_the_very_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    np.testing.assert_array_equal(decode_image(encode_png(picture)), picture)
