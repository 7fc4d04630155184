"""EXIF orientation of encoded images, taken away without touching a pixel.

Browsers, and so labelling tools, turn an image as its EXIF says; the model and all coordinates refer to the pixels as
they are stored. Anything that is not understood here stays as it is.

Source: CIPA DC-008 (Exif 2.32), 4.6.2 and tag 0x0112; PNG Third Edition, 11.3.4.5 (eXIf)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal

from model.image import Bytes

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_EXIF = b"Exif\x00\x00"
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers of JPEG without a length
_TAG, _UPRIGHT = 0x0112, 1


def orientation(data: Bytes) -> int:
    """1, as stored, to 8: how a browser turns or mirrors an image. Of several the first counts."""
    found = [value for _, _, value in _orientations(bytes(data))]
    return found[0] if found else _UPRIGHT


def as_stored(data: Bytes) -> bytes:
    """The image with the orientation 1: the same bytes where that is what it has."""
    source = bytes(data)
    changed = bytearray(source)
    for place, order, value in _orientations(source):
        if value != _UPRIGHT:
            changed[place : place + 2] = _UPRIGHT.to_bytes(2, order)
    if source[:8] == _PNG and bytes(changed) != source:
        for start, size in _chunks(source):
            if source[start + 4 : start + 8] == b"eXIf":
                checksum = zlib.crc32(changed[start + 4 : start + 8 + size])
                changed[start + 8 + size : start + 12 + size] = checksum.to_bytes(4, "big")
    return bytes(changed)


_Order = Literal["little", "big"]


def _orientations(data: bytes) -> Iterator[tuple[int, _Order, int]]:
    """Place, byte order and value of each orientation."""
    if data[:2] == _JPEG:
        blocks = list(_exif_of_jpeg(data))
    elif data[:8] == _PNG:
        blocks = [(start + 8, size) for start, size in _chunks(data) if data[start + 4 : start + 8] == b"eXIf"]
    else:
        return
    for start, size in blocks:
        yield from _tags(data[start : start + size], start)


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


def _chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and size of the data of each chunk of a PNG that is whole."""
    place = len(_PNG)
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if place + 12 + size > len(data):
            return
        yield place, size
        place += 12 + size


def _tags(tiff: bytes, start: int) -> Iterator[tuple[int, _Order, int]]:
    """Orientations of the first directory of TIFF data, which begins at `start`."""
    order: _Order = "little" if tiff[:2] == b"II" else "big"
    if tiff[:2] not in (b"II", b"MM"):
        return
    first = int.from_bytes(tiff[4:8], order)
    num_entries = int.from_bytes(tiff[first : first + 2], order)
    for place in range(first + 2, min(first + 2 + 12 * num_entries, len(tiff) - 11), 12):
        if int.from_bytes(tiff[place : place + 2], order) == _TAG:
            value = int.from_bytes(tiff[place + 8 : place + 10], order)
            yield start + place + 8, order, value
