"""EXIF orientations of JPEG, PNG and WebP are taken away, and nothing else; damaged ones are left alone."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from model.image import decode_image
from model.orientation import as_stored, orientation

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 20, 3)).astype(np.uint8)
JPEG = simplejpeg.encode_jpeg(PIXELS)
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()
WEBP = cv2.imencode(".webp", PIXELS)[1].tobytes()


def tiff(value: int, order: str) -> bytes:
    def number(size: int, content: int) -> bytes:
        return content.to_bytes(size, "big" if order == "MM" else "little")

    other = number(2, 0x0131) + number(2, 2) + number(4, 1) + b"a\0\0\0"  # the software, which comes later by rights
    own = number(2, 0x0112) + number(2, 3) + number(4, 1) + number(2, value) + b"\0\0"
    return order.encode() + number(2, 42) + number(4, 8) + number(2, 2) + other + own + number(4, 0)


def turned(image: bytes, value: int, order: str) -> bytes:
    block = tiff(value, order)
    if image is PNG:
        chunk = b"eXIf" + block
        return PNG[:33] + len(block).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + PNG[33:]
    if image is WEBP:
        extended = b"VP8X" + (10).to_bytes(4, "little") + b"\x08\0\0\0" + b"\x13\0\0\x0b\0\0"  # 20 x 12 pixels, EXIF
        body = b"WEBP" + extended + WEBP[12:] + b"EXIF" + len(block).to_bytes(4, "little") + block
        return b"RIFF" + len(body).to_bytes(4, "little") + body
    segment = b"Exif\0\0" + block
    return JPEG[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + JPEG[2:]


@pytest.mark.parametrize("image", [JPEG, PNG, WEBP], ids=["jpeg", "png", "webp"])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("value", [1, 3, 6, 8])
def test_a_viewer_that_obeys_exif_shows_the_pixels_as_stored(image: bytes, order: str, value: int) -> None:
    data = turned(image, value, order)
    assert orientation(data) == value
    upright = as_stored(data)
    assert orientation(upright) == 1
    shown = cv2.imdecode(np.frombuffer(upright, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(shown, decode_image(data))
    assert len(upright) == len(data)
    assert sum(a != b for a, b in zip(upright, data, strict=True)) <= (0 if value == 1 else 5 if image is PNG else 1)


@pytest.mark.parametrize("image", [JPEG, PNG, WEBP, b"", b"\xff\xd8", b"GIF89a"])
def test_an_image_without_an_orientation_stays_as_it_is(image: bytes) -> None:
    assert as_stored(memoryview(image)) == image
    assert orientation(image) == 1


@given(data=st.binary(max_size=80), image=st.sampled_from([JPEG, PNG, WEBP]), order=st.sampled_from(["II", "MM"]))
def test_damaged_bytes_are_no_error(data: bytes, image: bytes, order: str) -> None:
    whole = turned(image, 6, order)
    for hostile in (whole[: 2 + len(data)], whole[:20] + data + whole[20 + len(data) :], image[:8] + data):
        assert len(as_stored(hostile)) == len(hostile)
