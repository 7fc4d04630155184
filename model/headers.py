"""Headers of encoded images: format, size, pages and scans, known before anything is decoded.

Source: ITU-T T.81 (JPEG), B.1 and B.2; PNG Third Edition, 11.2.1; RFC 9649 (WebP), 2.3 to 2.7, and RFC 6386 (VP8), 9.1;
TIFF 6.0, 2, and BigTIFF; Windows' BITMAPINFOHEADER and BITMAPCOREHEADER
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from model.errors import ImageError

ImageFormat = Literal["jpg", "png", "webp", "tif", "bmp"]
ByteOrder = Literal["little", "big"]

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION, EXTRA_SAMPLES = 0x0112, 0x0152  # tags of TIFF, and the first of EXIF too

_JPEG_MAGIC = b"\xff\xd8\xff"
# Fill bytes may come before a marker. Left out: stuffed bytes of a scan, and the markers in it that have no length.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\x01\xd0-\xd7\xff]")
_SEQUENTIAL_FRAMES = (0xC0, 0xC1, 0xC9)
_SCAN, _JPEG_END = 0xDA, 0xD9
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_HEADER_END = 33  # signature, then the IHDR chunk, which is the first in every PNG
_WEBP_HEADER_END = 30  # of each of its three kinds
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 0x0100, 0x0101, 0x0142, 0x0143
_TIFF_BYTES = {1: 1, 3: 2, 4: 4, 16: 8}  # of a whole number, by its type
_TILE_SIDE = 1024  # pixels: writers use up to so many, and images may be smaller than their tiles
_BMP_RLE = (1, 2)


class TiffTag(NamedTuple):
    """A tag of TIFF's first directory; its value, where it is one whole number."""

    number: int
    order: ByteOrder
    place: int  # of the value
    num_bytes: int  # of the value; 0 where it is something else
    value: int


def image_format(data: memoryview) -> ImageFormat | None:
    """The format that the first bytes say, which is the usual ending of such a file's name; None for any other."""
    start = bytes(data[:12])
    if start.startswith(_JPEG_MAGIC):
        return "jpg"
    if start.startswith(PNG_MAGIC):
        return "png"
    if start.startswith(b"RIFF") and start[8:] == b"WEBP":
        return "webp"
    if start.startswith(_TIFF_MAGICS):
        return "tif"
    return "bmp" if start.startswith(b"BM") else None


def has_more_scans(data: memoryview, most: int) -> bool:
    """True if a JPEG has more than `most` scans, each of which goes over the whole image.

    Only a progressive JPEG, or one that is not interleaved, has several: of any other just the headers are looked at.
    """
    num_scans, place, num_components = 0, 2, -1  # of a sequential frame
    while num_scans <= most and (found := _JPEG_MARKER.search(data, place)):
        marker, start = data[found.end() - 1], found.end()  # of its segment, which begins with a length of 2 bytes
        if marker == _JPEG_END:
            break
        if marker in _SEQUENTIAL_FRAMES:
            num_components = _number(data, start + 7, 1)
        if marker == _SCAN:
            num_scans += 1
            holds_all = _number(data, start + 2, 1) == num_components
            if num_scans == 1 and (holds_all or bytes(data[start:]).count(b"\xff\xda") < most):  # six times as fast
                break
        place = start + _number(data, start, 2, "big")
    return num_scans > most


def png_size(data: memoryview) -> tuple[int, int]:
    """Width and height.

    Raises:
        ImageError: `undecodable`, as of the others here.
    """
    if len(data) < _PNG_HEADER_END or bytes(data[12:16]) != b"IHDR":
        raise ImageError("undecodable", "PNG without a header")
    return _number(data, 16, 4, "big"), _number(data, 20, 4, "big")


def webp_size(data: memoryview) -> tuple[int, int]:
    """Width and height: of the frame, or of the canvas, which no frame is larger than."""
    kind = bytes(data[12:16])
    if len(data) >= _WEBP_HEADER_END:
        if kind == b"VP8 " and bytes(data[23:26]) == b"\x9d\x01\x2a":
            return _number(data, 26, 2) & 0x3FFF, _number(data, 28, 2) & 0x3FFF
        if kind == b"VP8L" and data[20] == 0x2F:
            bits = _number(data, 21, 4)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8X":
            return _number(data, 24, 3) + 1, _number(data, 27, 3) + 1
    raise ImageError("undecodable", "WebP without a header")


def bmp_size(data: memoryview) -> tuple[int, int]:
    """Width and height; rows from the top down have a negative height in the file."""
    if len(data) >= 26 and _number(data, 14, 4) == 12:
        return _number(data, 18, 2), _number(data, 20, 2)
    if len(data) < 54:
        raise ImageError("undecodable", "BMP without a header")
    if _number(data, 30, 4) in _BMP_RLE:  # where one ends early, the rest would be guessed
        raise ImageError("undecodable", "run-length encoded BMP")
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    return width, abs(height)


def tiff_size(data: memoryview) -> tuple[int, int]:
    """Width and height of the first page; its tiles, each decoded as a whole, may not be much larger."""
    found = dict.fromkeys((_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT), 0)
    for tag in tiff_tags(data):
        if tag.number in found:  # of a tag that comes twice, the largest: decoders disagree on which counts
            found[tag.number] = max(found[tag.number], tag.value)
    width, height, *tile = found.values()
    if not width * height:
        raise ImageError("undecodable", "TIFF without a header")
    if tile[0] * tile[1] > max(width, _TILE_SIDE) * max(height, _TILE_SIDE):
        raise ImageError("undecodable", f"tiles of {tile[0]}x{tile[1]} pixels in a TIFF of {width}x{height}")
    return width, height


def has_more_pages(data: memoryview) -> bool:
    """True if further pages or frames follow the first, the only one that is decoded."""
    kind = image_format(data)
    if kind == "webp":
        return bytes(data[12:16]) == b"VP8X" and len(data) > 20 and bool(data[20] & 2)
    if kind != "tif":
        return False
    order, word, first, num_entries = _directory(data)
    return bool(_number(data, first + num_entries * (4 + 2 * word), word, order))


def tiff_tags(data: memoryview) -> Iterator[TiffTag]:
    """The tags of the first directory of TIFF data that lie within them; none of data that are no TIFF."""
    if bytes(data[:4]) not in _TIFF_MAGICS:
        return
    order, word, first, num_entries = _directory(data)
    size = 4 + 2 * word
    for place in range(first, min(first + size * num_entries, len(data) - size + 1), size):
        count = _number(data, place + 4, word, order)
        num_bytes = _TIFF_BYTES.get(_number(data, place + 2, 2, order), 0) if count == 1 else 0
        at = place + 4 + word
        yield TiffTag(_number(data, place, 2, order), order, at, num_bytes, _number(data, at, num_bytes, order))


def _directory(data: memoryview) -> tuple[ByteOrder, int, int, int]:
    """Byte order of a TIFF, bytes of its offsets, place of the first entry of its first directory, and their number."""
    order: ByteOrder = "little" if data[0] == 0x49 else "big"
    is_big = 0x2B in (data[2], data[3])
    word, count_bytes = (8, 8) if is_big else (4, 2)
    first = _number(data, 8 if is_big else 4, word, order)
    return order, word, first + count_bytes, _number(data, first, count_bytes, order)


def _number(data: memoryview, place: int, num_bytes: int, order: ByteOrder = "little") -> int:
    return int.from_bytes(data[place : place + num_bytes], order)
