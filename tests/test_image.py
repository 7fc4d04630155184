"""Odd and broken images, and crops that can be undone."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageError
from model.headers import has_more_pages, tiff_tags
from model.image import (
    MAX_PIXELS,
    MAX_SCANS,
    PLAIN,
    Crop,
    View,
    crop_to_input,
    decode_crop,
    decode_image,
    image_size,
    invert_affine,
    transform_points,
)

# Colour types of the PNG format.
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: np.ndarray, *, colour: int, extra: bytes = b"", claimed: tuple[int, int] | None = None) -> bytes:
    """A PNG of (H, W, channels) uint8 or uint16, by the format's own rules; `claimed`: width, height of the header."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", *(claimed or (width, height)), 8 * pixels.itemsize, colour, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(pixels.dtype.newbyteorder(">")))
    return PNG_MAGIC + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def claim_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its frame header."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def smooth(height: int = 48, width: int = 64) -> np.ndarray:
    """A colourful image (H, W, 3) that a JPEG at quality 95 keeps within a few grey levels."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


PIXELS = smooth()
JPEG = simplejpeg.encode_jpeg(PIXELS, quality=95, colorsubsampling="444")
PNG = png(PIXELS, colour=RGB)
EXIF_ROTATED = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)  # orientation 6: a quarter turn


def reason_of(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    return caught.value.reason


# Decoding


def test_a_png_is_decoded_to_its_very_pixels() -> None:
    np.testing.assert_array_equal(decode_image(PNG), PIXELS)
    assert image_size(PNG) == (64, 48)


def test_a_jpeg_is_decoded_to_about_its_pixels() -> None:
    np.testing.assert_allclose(decode_image(JPEG).astype(int), PIXELS, atol=8)  # quality 95 loses that much
    assert image_size(JPEG) == (64, 48)


def test_grey_images_become_three_equal_channels() -> None:
    grey = np.ascontiguousarray(PIXELS[..., :1])
    expected = np.repeat(grey, 3, axis=2)
    np.testing.assert_array_equal(decode_image(png(grey, colour=GREY)), expected)
    jpeg = simplejpeg.encode_jpeg(grey, quality=100, colorspace="GRAY", colorsubsampling="Gray")
    np.testing.assert_allclose(decode_image(jpeg).astype(int), expected, atol=2)


def test_alpha_is_dropped_and_not_blended() -> None:
    clear = np.zeros((48, 64, 1), np.uint8)
    np.testing.assert_array_equal(decode_image(png(np.dstack([PIXELS, clear]), colour=RGBA)), PIXELS)
    grey = PIXELS[..., :1]
    found = decode_image(png(np.dstack([grey, clear]), colour=GREY_ALPHA))
    np.testing.assert_array_equal(found, np.repeat(grey, 3, axis=2))


def test_palette_images_are_looked_up_with_and_without_transparency() -> None:
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    index = PIXELS[..., :1]
    for transparency in (b"", chunk(b"tRNS", bytes(256))):
        data = png(index, colour=PALETTE, extra=chunk(b"PLTE", palette.tobytes()) + transparency)
        np.testing.assert_array_equal(decode_image(data), palette[index[..., 0]])


@pytest.mark.parametrize("colour", [GREY, RGB])
def test_16_bits_a_channel_keep_the_upper_8(colour: int) -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (5, 7, CHANNELS[colour]), np.uint16)
    expected = np.broadcast_to(deep // 256, (5, 7, 3))
    found = decode_image(png(deep, colour=colour))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=1)  # decoders round or truncate


def test_cmyk_is_read_as_adobe_writes_it_with_255_for_no_ink() -> None:
    inks = {(255, 255, 255, 255): (255, 255, 255), (0, 255, 255, 255): (0, 255, 255), (255, 255, 255, 0): (0, 0, 0)}
    for cmyk, rgb in inks.items():
        flat = np.broadcast_to(np.array(cmyk, np.uint8), (16, 16, 4))
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(flat), quality=100, colorspace="CMYK")
        found = decode_image(jpeg)
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found.astype(int), np.broadcast_to(rgb, (16, 16, 3)), atol=3)


def test_exif_orientation_is_ignored() -> None:
    segment = b"Exif\0\0" + EXIF_ROTATED
    jpeg = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + JPEG[2:]
    np.testing.assert_array_equal(decode_image(jpeg), decode_image(JPEG))
    np.testing.assert_array_equal(decode_image(png(PIXELS, colour=RGB, extra=chunk(b"eXIf", EXIF_ROTATED))), PIXELS)


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
@pytest.mark.parametrize("garbage", [b"\0" * 3000, b"x" * 7, JPEG], ids=["zeros", "text", "another image"])
def test_what_follows_the_end_of_an_image_is_ignored(data: bytes, garbage: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data + garbage), decode_image(data))


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
def test_the_signed_buffers_of_arrow_are_read_like_bytes(data: bytes) -> None:
    buffer = memoryview(pa.array([b"", data], pa.large_binary())[1].as_buffer())
    assert buffer.format == "b"
    np.testing.assert_array_equal(decode_image(buffer), decode_image(data))
    assert image_size(buffer) == image_size(data)


# Images that can't be decoded


@pytest.mark.parametrize("data", [b"", memoryview(b"")])
def test_no_bytes_are_empty(data: bytes) -> None:
    assert reason_of(data) == "empty"


def test_a_jpeg_or_png_cut_anywhere_is_undecodable() -> None:
    for data in (JPEG, PNG):
        cuts = {1, 2, 3, 7, 8, 12, 16, 20, 23, 24, 32, 33, *range(40, len(data), 97), *range(len(data) - 16, len(data))}
        assert {reason_of(data[:cut]) for cut in cuts} == {"undecodable"}


def test_the_size_of_a_cut_header_is_not_guessed() -> None:
    for cut in range(1, 33):
        with pytest.raises(ImageError, match="undecodable"):
            image_size(PNG[:cut])


def test_a_png_whose_middle_is_damaged_is_undecodable_wherever_the_damage_lies() -> None:
    for place in range(45, len(PNG) - 16, 41):
        damaged = PNG[:place] + bytes([PNG[place] ^ 0x55]) + PNG[place + 1 :]
        assert reason_of(damaged) == "undecodable"


def test_a_jpeg_whose_scan_ends_in_its_middle_is_undecodable() -> None:
    middle = len(JPEG) // 2
    assert reason_of(JPEG[:middle] + b"\xff\xd9" + JPEG[middle + 2 :]) == "undecodable"


@given(st.binary(max_size=80), st.sampled_from([b"", JPEG[:3], JPEG[:200], PNG_MAGIC, PNG[:16], PNG[:33]]))
def test_random_bytes_give_a_reason_and_never_another_exception(data: bytes, start: bytes) -> None:
    assert reason_of(start + data) in {"empty", "undecodable", "too_large"}


@pytest.mark.parametrize("data", [b"GIF89a\1\0\1\0", b"BM\0\0", b"RIFF\0\0\0\0WEBPVP8 ", b"<svg/>"])
def test_other_formats_are_undecodable(data: bytes) -> None:
    assert reason_of(data) == "undecodable"


@pytest.mark.parametrize("claimed", [(64, 0), (0, 5), (640, 480)])
def test_a_size_of_zero_or_of_more_pixels_than_there_are_is_undecodable(claimed: tuple[int, int]) -> None:
    assert reason_of(png(PIXELS, colour=RGB, claimed=claimed)) == "undecodable"
    assert reason_of(claim_size(JPEG, *claimed)) == "undecodable"


@pytest.mark.parametrize(
    "data", [png(PIXELS, colour=RGB, claimed=(20_000, 20_000)), claim_size(JPEG, 20_000, 20_000)], ids=["png", "jpeg"]
)
def test_a_bomb_is_refused_from_its_header_without_decoding(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
    monkeypatch.setattr(cv2, "imdecode", decode)
    assert reason_of(data) == "too_large"


def test_the_limit_itself_is_allowed() -> None:
    width = MAX_PIXELS // 10_000
    assert image_size(png(PIXELS, colour=RGB, claimed=(width, 10_000))) == (width, 10_000)
    with pytest.raises(ImageError, match="too_large"):
        image_size(png(PIXELS, colour=RGB, claimed=(width, 10_001)))


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def many_scans(count: int, *, between: bytes = b"") -> bytes:
    """A sound progressive JPEG, grey, whose scans but the first say with four bytes that nothing changes."""
    tables = segment(0xDB, bytes(1) + bytes([1] * 64))
    tables += segment(0xC4, bytes([0, 0, 1, *[0] * 14, 0])) + segment(0xC4, bytes([0x10, 0, 1, *[0] * 14, 0x30]))
    frame = segment(0xC2, struct.pack(">BHHB", 8, 16, 16, 1) + bytes([1, 0x11, 0]))
    first = segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes([0])  # two bits a block, of four blocks
    other = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + bytes([0b0000_0111])  # to the end of the image: 8 + 0 blocks
    return b"\xff\xd8" + tables + frame + first + between + other * (count - 1) + b"\xff\xd9"


@pytest.mark.parametrize("between", [b"", b"\xff\x01", b"\xff\xd0", b"\xff\xff\xff\xfe\0\6\xff\xd9\xff\xd9"])
def test_a_jpeg_of_more_scans_than_anybody_writes_is_refused_without_decoding(
    between: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one believed to have few that hides them behind markers without a length, or a comment with an end."""
    assert decode_image(many_scans(MAX_SCANS)).shape == (16, 16, 3)
    monkeypatch.delattr(simplejpeg, "decode_jpeg")
    assert reason_of(many_scans(MAX_SCANS + 1, between=between)) == "too_large"


@pytest.mark.parametrize("frame", [b"\xff\xc0", b"\xff\xc9"], ids=["huffman", "arithmetic"])
def test_sequential_jpegs_whose_scans_repeat_are_refused_too(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    one = segment(0xDA, bytes([1, 1, 0, 0, 63, 0]))
    end = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 63, 0]))  # all components at once, which ends nothing here
    start = JPEG[: JPEG.index(b"\xff\xda")].replace(b"\xff\xc0", frame)
    monkeypatch.delattr(simplejpeg, "decode_jpeg")
    assert reason_of(start + one + end + one * MAX_SCANS + b"\xff\xd9") == "too_large"


def test_scans_of_a_preview_and_behind_the_end_are_not_counted() -> None:
    scans = b"\xff\xda\0\2" * 2 * MAX_SCANS
    progressive = cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    for jpeg in (JPEG, progressive):
        dressed = jpeg[:2] + segment(0xE1, b"Exif\0\0" + scans) + jpeg[2:] + scans
        assert np.array_equal(decode_image(dressed), decode_image(jpeg))


def test_a_bomb_behind_another_chunk_is_not_believed_to_be_small() -> None:
    bomb = png(PIXELS, colour=RGB, claimed=(20_000, 20_000))
    hidden = PNG_MAGIC + chunk(b"tEXt", struct.pack(">II", 4, 4) + bytes(20)) + bomb[8:]
    with pytest.raises(ImageError, match="undecodable"):
        image_size(hidden)


# WebP, TIFF and BMP


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


WEBP, LOSSY = saved(PIXELS, "WEBP", lossless=True), saved(PIXELS, "WEBP", quality=90)
WEBP_X = saved(PIXELS, "WEBP", lossless=True, exif=EXIF_ROTATED)
TIFF, BMP = saved(PIXELS, "TIFF"), saved(PIXELS, "BMP")
FURTHER = {"webp": WEBP, "lossy": LOSSY, "extended": WEBP_X, "tiff": TIFF, "bmp": BMP}
RGBA_PIXELS = np.dstack([PIXELS, np.zeros((48, 64, 1), np.uint8)])


@pytest.mark.parametrize(
    "data",
    [
        *FURTHER.values(),
        *(saved(PIXELS, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "packbits")),
        saved(PIXELS, "TIFF", big_tiff=True),
        *(saved(PIXELS, "TIFF", tiffinfo={0x112: turn}) for turn in range(2, 9)),
        saved(RGBA_PIXELS, "TIFF"),
        saved(RGBA_PIXELS, "WEBP", lossless=True, exact=True),
        saved(RGBA_PIXELS, "BMP"),
        saved(PIXELS, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
        saved(PIXELS, "WEBP", lossless=True, save_all=True, append_images=[Image.new("RGB", (64, 48))]),
    ],
)
def test_the_pixels_of_other_formats_are_those_that_are_stored(data: bytes) -> None:
    """First page, whatever the compression, not turned, alpha dropped and not blended."""
    np.testing.assert_allclose(decode_image(data).astype(int), PIXELS, atol=20 if data is LOSSY else 0)
    assert image_size(data) == (64, 48)


def test_16_bits_of_a_tiff_keep_the_upper_8_and_floats_are_undecodable() -> None:
    deep = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), np.uint16)
    found = decode_image(cv2.imencode(".tiff", deep[..., ::-1])[1].tobytes())
    np.testing.assert_allclose(found.astype(int), deep // 256, atol=1)
    grey = saved(deep[..., 0], "TIFF")
    np.testing.assert_allclose(decode_image(grey).astype(int), (deep[..., :1] // 256).repeat(3, axis=2), atol=1)
    assert reason_of(cv2.imencode(".tiff", deep.astype(np.float32))[1].tobytes()) == "undecodable"


def test_further_pages_are_known_from_the_header() -> None:
    more = [saved(PIXELS, kind, save_all=True, append_images=[Image.new("RGB", (64, 48))]) for kind in ("TIFF", "WEBP")]
    assert [has_more_pages(memoryview(data)) for data in (*more, *FURTHER.values(), PNG, JPEG, b"")] == [True] * 2 + [
        False
    ] * 8


@pytest.mark.parametrize("data", FURTHER.values(), ids=FURTHER)
def test_other_formats_cut_anywhere_are_undecodable(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    end = {id(WEBP_X): len(WEBP)}.get(id(data), len(data))  # what comes after the pixels is not needed
    for cut in {*range(4, 64), *range(64, end, 211), *range(end - 9, end)}:
        assert reason_of(data[:cut]) == "undecodable", cut
    assert capfd.readouterr().err == ""


def claimed(data: bytes, place: int, value: int, num_bytes: int) -> bytes:
    return data[:place] + value.to_bytes(num_bytes, "little") + data[place + num_bytes :]


TIFF_WIDTH = next(tag.place for tag in tiff_tags(memoryview(TIFF)) if tag.number == 0x100)
BOMBS = {
    "vp8": claimed(claimed(LOSSY, 26, 16_000, 2), 28, 16_000, 2),
    "vp8l": claimed(WEBP, 21, (1 << 28) - 1, 4),
    "vp8x": claimed(WEBP_X, 24, (1 << 48) - 1, 6),
    "tiff": claimed(TIFF, TIFF_WIDTH, 2_000_000, 4),
    "bmp": claimed(BMP, 18, 2_000_000, 4),
    "a bmp from the top down": claimed(BMP, 22, 2**32 - 2_000_000, 4),
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_of_other_formats_are_refused_from_their_headers(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", None)
    assert reason_of(data) == "too_large"


@pytest.mark.parametrize(
    "data",
    [
        claimed(WEBP_X, 24, 3, 3),  # a canvas of 4 pixels around a frame of 64
        claimed(TIFF, TIFF_WIDTH, 640, 4),
        claimed(TIFF, TIFF_WIDTH - 8, 0x142, 2),  # no width, but a tile's
        claimed(BMP, 18, 640, 4),
        claimed(BMP, 30, 1, 4),  # run lengths
        png(PIXELS, colour=RGB, claimed=(2_000_000, 20)),  # a side beyond OpenCV's bounds
    ],
)
def test_headers_that_lie_are_undecodable(data: bytes) -> None:
    assert reason_of(data) == "undecodable"


@given(st.binary(max_size=80), st.sampled_from([data[:cut] for data in FURTHER.values() for cut in (4, 12, 30, 90)]))
def test_random_bytes_in_other_formats_give_a_reason(data: bytes, start: bytes) -> None:
    assert reason_of(start + data) in {"undecodable", "too_large"}


# Cropping: geometry

COORDINATES = st.floats(-300, 300)
VIEWS = st.builds(
    View,
    shift=st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)),
    scale=st.floats(0.5, 2),
    rotation_deg=st.floats(-180, 180),
    is_flipped=st.booleans(),
)


@given(
    points=st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=4),
    corner=st.tuples(st.floats(-20, 60), st.floats(-20, 40)),
    size=st.tuples(st.floats(1, 500), st.floats(1, 500)),
    view=VIEWS,
)
def test_points_come_back_from_any_crop(
    points: list[tuple[float, float]], corner: tuple[float, float], size: tuple[float, float], view: View
) -> None:
    start = np.maximum(corner, 1 - np.array(size))  # touches the image
    box = np.concatenate([start, start + size])
    crop = crop_to_input(PIXELS, box, input_size=16, margin=1.75, view=view)
    there = transform_points(np.array(points), invert_affine(crop.to_image))
    np.testing.assert_allclose(transform_points(there, crop.to_image), points, atol=1e-6)


def test_points_that_are_nan_stay_nan() -> None:
    moved = transform_points(np.array([[np.nan, np.nan], [1.0, 2.0]]), np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]]))
    assert np.isnan(moved[0]).all()
    assert moved[1].tolist() == [4.0, 6.0]


def test_a_square_image_at_its_own_size_is_left_as_it_is() -> None:
    square = smooth(32, 32)
    crop = crop_to_input(square, None, input_size=32, margin=1.75)
    np.testing.assert_array_equal(crop.pixels, square)
    np.testing.assert_allclose(crop.to_image, [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_without_a_box_the_whole_image_is_centred_and_the_margin_not_applied() -> None:
    wide = smooth(16, 32)
    crop = crop_to_input(wide, None, input_size=32, margin=3.0)
    np.testing.assert_array_equal(crop.pixels[8:24], wide)
    assert not crop.pixels[:8].any()
    assert not crop.pixels[24:].any()


def test_the_margin_is_the_side_of_the_crop_over_the_longer_side_of_the_box() -> None:
    crop = crop_to_input(PIXELS, np.array([20.0, 10.0, 40.0, 20.0]), input_size=32, margin=1.5)
    corners = transform_points(np.array([[-0.5, -0.5], [31.5, 31.5]]), crop.to_image)
    np.testing.assert_allclose(corners, [[15, 0], [45, 30]])


def test_a_flipped_view_mirrors_the_pixels_exactly() -> None:
    plain = crop_to_input(PIXELS, np.array([20.0, 10.0, 40.0, 26.0]), input_size=32, margin=1.6)
    flipped = crop_to_input(
        PIXELS, np.array([20.0, 10.0, 40.0, 26.0]), input_size=32, margin=1.6, view=View(is_flipped=True)
    )
    np.testing.assert_array_equal(flipped.pixels, plain.pixels[:, ::-1])


def test_a_shifted_view_looks_further_right_and_down() -> None:
    square = smooth(32, 32)
    crop = crop_to_input(square, None, input_size=32, margin=1, view=View(shift=(0.25, 0.125)))
    np.testing.assert_array_equal(crop.pixels[:28, :24], square[4:, 8:])
    assert not crop.pixels[28:].any()


def test_a_scale_above_one_makes_the_content_smaller() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    crop = crop_to_input(white, None, input_size=32, margin=1, view=View(scale=2))
    assert (crop.pixels[..., 0] > 127).sum() == 16 * 16


def test_a_quarter_turn_turns_the_pixels() -> None:
    square = smooth(32, 32)
    crop = crop_to_input(square, None, input_size=32, margin=1, view=View(rotation_deg=90))
    # Crop x runs down the image, so that the image's top row becomes the crop's left column.
    np.testing.assert_array_equal(crop.pixels, np.rot90(square))


def image_with_dot(height: int, width: int, x: float, y: float, *, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    dot = np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / radius**2)
    return np.repeat((255 * dot).round().astype(np.uint8)[..., None], 3, axis=2)


def centroid(pixels: np.ndarray) -> np.ndarray:
    weights = pixels[..., 0].astype(float)
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()


@given(view=VIEWS, x=st.floats(90, 110), y=st.floats(70, 90), side=st.floats(70, 190))
def test_pixels_and_points_move_alike_in_any_view(view: View, x: float, y: float, side: float) -> None:
    picture = image_with_dot(160, 200, x, y, radius=3)
    box = np.array([100 - side / 2, 80 - side / 2, 100 + side / 2, 80 + side / 2])
    crop = crop_to_input(picture, box, input_size=48, margin=1.5, view=view)
    expected = transform_points(np.array([x, y]), invert_affine(crop.to_image))
    if ((expected > 8) & (expected < 39)).all():  # the whole dot is in the crop
        np.testing.assert_allclose(centroid(crop.pixels), expected, atol=0.5)


@pytest.mark.parametrize("side", [100, 150, 400, 1000, 1003])
@pytest.mark.parametrize("rotation_deg", [0, 30])
def test_shrinking_keeps_the_place_of_a_dot(side: int, rotation_deg: float) -> None:
    picture = image_with_dot(side, side, 0.3 * side, 0.6 * side, radius=side / 25)
    crop = crop_to_input(picture, None, input_size=32, margin=1, view=View(rotation_deg=rotation_deg))
    expected = transform_points(np.array([0.3, 0.6]) * side, invert_affine(crop.to_image))
    np.testing.assert_allclose(centroid(crop.pixels), expected, atol=0.1)


@pytest.mark.parametrize("factor", [4, 6.5, 17, 40])
def test_a_fine_checkerboard_shrinks_to_an_even_grey(factor: float) -> None:
    side = round(16 * factor)
    board = 255 * (np.indices((side, side)).sum(axis=0) % 2).astype(np.uint8)
    crop = crop_to_input(np.repeat(board[..., None], 3, axis=2), None, input_size=16, margin=1)
    assert np.ptp(crop.pixels[1:-1, 1:-1].astype(int)) <= 8
    np.testing.assert_allclose(crop.pixels[1:-1, 1:-1].mean(), 127.5, atol=4)


@pytest.mark.parametrize("rotation_deg", [0, 45, 90])
def test_a_white_image_stays_white_to_its_border_however_much_it_shrinks(rotation_deg: float) -> None:
    white = np.full((700, 700, 3), 255, np.uint8)
    box = np.array([200.0, 200.0, 500.0, 500.0])
    crop = crop_to_input(white, box, input_size=16, margin=1, view=View(rotation_deg=rotation_deg))
    assert crop.pixels.min() == 255


# Cropping: boxes


@pytest.mark.parametrize(
    "box",
    [
        (np.nan, 0, 10, 10),
        (0, 0, np.inf, 10),
        (-np.inf, 0, 10, 10),
        (np.nan,) * 4,
        (5, 5, 5, 20),
        (5, 5, 20, 5),
        (20, 5, 5, 20),
        (64, 0, 80, 10),
        (0, 48, 10, 60),
        (-20, 0, -1, 10),
        (0, -20, 10, -1),
    ],
)
def test_a_box_without_area_or_outside_the_image_is_bad(box: tuple[float, ...]) -> None:
    with pytest.raises(ImageError) as caught:
        crop_to_input(PIXELS, np.array(box, np.float32), input_size=16, margin=1.75)
    assert caught.value.reason == "bad_box"


def test_what_lies_outside_the_image_is_black() -> None:
    white = np.full((32, 32, 3), 255, np.uint8)
    crop = crop_to_input(white, np.array([-16.5, -16.5, 15.5, 15.5]), input_size=32, margin=1)
    assert (crop.pixels[16:, 16:] == 255).all()
    assert not crop.pixels[:16].any()
    assert not crop.pixels[:, :16].any()


def test_a_view_shifted_off_the_image_is_black() -> None:
    crop = crop_to_input(PIXELS, np.array([0.0, 0.0, 4.0, 4.0]), input_size=16, margin=1, view=View(shift=(-9.0, 0.0)))
    assert not crop.pixels.any()


@pytest.mark.parametrize("size", [1e4, 1e9, 1e30, 3e38])
def test_a_huge_box_gives_a_crop_that_can_be_undone(size: float) -> None:
    crop = crop_to_input(PIXELS, np.array([-size, -size, size, size], np.float32), input_size=16, margin=1.75)
    assert crop.pixels.shape == (16, 16, 3)
    points = np.array([[3.0, 4.0]])
    back = transform_points(transform_points(points, invert_affine(crop.to_image)), crop.to_image)
    np.testing.assert_allclose(back, points, atol=1e-6 + size * 1e-13)


def test_a_box_of_less_than_a_pixel_shows_that_pixel() -> None:
    crop = crop_to_input(PIXELS, np.array([30.0, 20.0, 30.001, 20.001]), input_size=8, margin=1)
    np.testing.assert_allclose(crop.pixels.astype(int), np.broadcast_to(PIXELS[20, 30], (8, 8, 3)), atol=1)


@pytest.mark.parametrize("view", [PLAIN, View(rotation_deg=33, scale=1.3, is_flipped=True)])
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (900, 1, 3)])
def test_images_of_one_pixel_and_of_one_line_have_crops(view: View, shape: tuple[int, ...]) -> None:
    crop = crop_to_input(np.full(shape, 200, np.uint8), None, input_size=16, margin=1.75, view=view)
    assert crop.pixels.shape == (16, 16, 3)


def test_an_image_of_one_pixel_fills_the_crop_around_its_middle() -> None:
    crop = crop_to_input(np.full((1, 1, 3), 200, np.uint8), None, input_size=15, margin=1)
    assert crop.pixels[7, 7].tolist() == [200, 200, 200]


def test_images_wider_than_opencv_can_warp_are_cropped() -> None:
    strip = np.full((2, 40_000, 3), 200, np.uint8)
    assert crop_to_input(strip, None, input_size=16, margin=1).pixels.shape == (16, 16, 3)
    crop = crop_to_input(strip, np.array([39_000.0, 0.0, 39_010.0, 2.0]), input_size=16, margin=1)
    assert crop.pixels[7, 7].tolist() == [200, 200, 200]


@pytest.mark.parametrize("view", [PLAIN, View(rotation_deg=20, is_flipped=True)])
def test_cropping_leaves_the_image_as_it_was(view: View) -> None:
    before = PIXELS.copy()
    crop_to_input(PIXELS, None, input_size=16, margin=1, view=view)
    np.testing.assert_array_equal(PIXELS, before)


def test_a_jpeg_of_unknown_chroma_subsampling_is_undecodable() -> None:
    data = bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
    start_of_frame = bytes(data).index(b"\xff\xc0")
    data[start_of_frame + 11] = 0x14  # luma sampled once across and four times down: simplejpeg has no name for it
    with pytest.raises(ImageError, match="undecodable"):
        decode_image(bytes(data))


# Large frames


def frame(width: int, height: int) -> np.ndarray:
    """A frame with detail of every size from a dozen pixels on."""
    rng = np.random.default_rng(1)
    scales = [rng.integers(0, 256, (height // step, width // step, 3), np.uint8) for step in (160, 48, 12)]
    layers = [cv2.resize(scale, (width, height), interpolation=cv2.INTER_CUBIC) for scale in scales]
    return np.mean(layers, axis=0).astype(np.uint8)


def both_crops(data: bytes, box: np.ndarray | None, **options: Any) -> tuple[Crop, Crop]:
    """The crop of the frame as it is, and that of the frame decoded at reduced scale."""
    given = {"input_size": 64, "margin": 1.5, **options}
    return crop_to_input(decode_image(data), box, **given), decode_crop(data, box, **given)


@pytest.mark.parametrize("size", [(1280, 720), (1923, 1081)])
@pytest.mark.parametrize("box", [(200, 100, 400, 500), (900.5, 300.25, 1400, 719), None])
def test_a_large_jpeg_at_reduced_scale_gives_the_same_crop_but_for_a_few_grey_levels(
    size: tuple[int, int], box: tuple[float, ...] | None
) -> None:
    data = simplejpeg.encode_jpeg(frame(*size), quality=90, colorsubsampling="420")
    full, reduced = both_crops(data, None if box is None else np.array(box), view=View(rotation_deg=10))
    np.testing.assert_array_equal(reduced.to_image, full.to_image)
    difference = np.abs(reduced.pixels.astype(int) - full.pixels)
    shifted = np.abs(np.roll(full.pixels, 1, axis=1).astype(int) - full.pixels).mean()
    assert 0 < difference.mean() < shifted / 3


@pytest.mark.parametrize(
    ("data", "box"),
    [
        (JPEG, None),  # small
        (simplejpeg.encode_jpeg(frame(1280, 720)), (10, 10, 60, 90)),  # the person is
        (png(frame(1280, 720), colour=RGB), None),
    ],
)
def test_frames_that_reduction_does_not_suit_are_cropped_as_ever(data: bytes, box: tuple[float, ...] | None) -> None:
    full, found = both_crops(data, None if box is None else np.array(box))
    np.testing.assert_array_equal(found.pixels, full.pixels)


def test_a_truncated_large_jpeg_is_undecodable_at_reduced_scale_too() -> None:
    data = simplejpeg.encode_jpeg(frame(1280, 720))
    with pytest.raises(ImageError, match="undecodable"):
        decode_crop(data[: len(data) // 2], None, input_size=64, margin=1.5)
