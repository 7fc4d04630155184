"""EXIF orientation of encoded images, taken away without touching a pixel.

Browsers, and so labelling tools, turn an image as its EXIF says; the model and all coordinates refer to the pixels as
they are stored. Anything that is not understood here stays as it is.

Source: CIPA DC-008 (Exif 2.32), 4.6.2 and tag 0x0112; PNG Third Edition, 11.3.4.5 (eXIf); RFC 9649 (WebP), 2.7.1.5
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from model.headers import ORIENTATION, PNG_MAGIC, TiffTag, image_format, tiff_tags
from model.image import Bytes

_EXIF = b"Exif\x00\x00"
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers of JPEG without a length
_UPRIGHT = 1


def orientation(data: Bytes) -> int:
    """1, as stored, to 8: how a browser turns or mirrors an image. Of several the first counts."""
    return next((tag.value for tag in _orientations(bytes(data))), _UPRIGHT)


def as_stored(data: Bytes) -> bytes:
    """The image with the orientation 1: the same bytes where that is what it has."""
    source = bytes(data)
    changed = bytearray(source)
    for tag in _orientations(source):
        if tag.value != _UPRIGHT:
            changed[tag.place : tag.place + tag.num_bytes] = _UPRIGHT.to_bytes(tag.num_bytes, tag.order)
    if source.startswith(PNG_MAGIC) and bytes(changed) != source:
        for start, size in _chunks(source):
            if source[start + 4 : start + 8] == b"eXIf":
                checksum = zlib.crc32(changed[start + 4 : start + 8 + size])
                changed[start + 8 + size : start + 12 + size] = checksum.to_bytes(4, "big")
    return bytes(changed)


def _orientations(data: bytes) -> Iterator[TiffTag]:
    """The tag of each orientation, with its place in the image."""
    kind = image_format(memoryview(data))
    if kind == "jpg":
        blocks = list(_exif_of_jpeg(data))
    elif kind == "png":
        blocks = [(start + 8, size) for start, size in _chunks(data) if data[start + 4 : start + 8] == b"eXIf"]
    elif kind == "webp":
        blocks = list(_exif_of_webp(data))
    else:
        blocks = [(0, len(data))] if kind == "tif" else []
    for start, size in blocks:
        for tag in tiff_tags(memoryview(data)[start : start + size]):
            if tag.number == ORIENTATION and tag.num_bytes:
                yield tag._replace(place=start + tag.place)


def _exif_of_jpeg(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and size of the TIFF data of each EXIF segment before the first scan."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF or marker in _ALONE:
            place += 1 if marker == 0xFF else 2
            continue
        if marker == _START_OF_SCAN:
            return
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        if size < 2:
            return
        if marker == _APP1 and data[place + 4 : place + 10] == _EXIF:
            yield place + 10, size - 8
        place += 2 + size


def _exif_of_webp(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and size of the TIFF data of each EXIF chunk, with or without the words that begin it in JPEGs."""
    place = 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        if data[place : place + 4] == b"EXIF":
            extra = len(_EXIF) if data[place + 8 :].startswith(_EXIF) else 0
            yield place + 8 + extra, size - extra
        place += 8 + size + size % 2


def _chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and size of the data of each chunk of a PNG that is whole."""
    place = len(PNG_MAGIC)
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + size > len(data):
            return
        yield place, size
        place += 12 + size
