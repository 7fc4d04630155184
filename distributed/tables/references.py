"""References: rows that name their image's file rather than hold its bytes, and the one place where they become bytes.

Only files below a root are read, which a user names: a table's writer must not choose what a machine opens.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from distributed.schema import IMAGE, POOL, READ_ERROR, REFERENCE
from distributed.storage import s3
from distributed.storage.location import Location, locate, read_again, read_versioned
from distributed.storage.threads import in_threads
from model.errors import DamagedError, InputError, RunFailedError

MISSING, FORBIDDEN, CHANGED, OUTSIDE, TOO_LARGE = "missing", "forbidden", "changed", "outside_root", "too_large"
FETCH_ROWS = 32  # whose images are in memory at once, and asked for at once
MAX_IMAGE_BYTES = 64 * 2**20  # of 50 million pixels, a JPEG has less
_NO_FILE = {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}  # a name under which no file can be read
_URI = REFERENCE.names[0]


class ImageReference(NamedTuple):
    """Reference of a row to its image's file."""

    uri: bytes  # as it is stored: a damaged one may be no text
    size: int | None  # bytes; None: not known
    etag: str | None  # of an object in a store; None: not known


class Fetched(NamedTuple):
    """The content of a file, or the reason why there is none."""

    image: bytes | None
    reason: str | None = None


def find_root(uri: str | None) -> Location | None:
    """The folder that references may name files of; None where the user names none.

    Raises:
        InputError: it is no folder.
    """
    if uri is None:
        return None
    root = locate(uri)
    if root.info().type != fs.FileType.Directory:
        raise InputError(f"--image-root {uri}: expected a folder, found {'a file' if root.exists else 'nothing'}")
    return root


def stored_columns(found: pa.Schema, columns: Sequence[str]) -> list[str]:
    """The columns to read of a file: those that are asked for, and the references where images are among them."""
    if IMAGE not in columns or _URI not in found.names:
        return list(columns)
    asked = [name for name in columns if name != IMAGE or IMAGE in found.names]
    return [*asked, *(name for name in REFERENCE.names if name in found.names and name not in asked)]


def has_references(found: pa.Schema, *, num_rows: int, image_bytes: int) -> bool:
    """True for a file whose rows are references, or mostly so.

    Args:
        found: its columns.
        num_rows: its rows.
        image_bytes: that its images take, uncompressed.
    """
    return _URI in found.names and image_bytes < 1024 * num_rows


def with_images(rows: pa.Table, root: Location, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The same rows with the images that they refer to, `FETCH_ROWS` at a time where they have references.

    A row's own bytes come before its reference. Of a row whose image can't be had, `image` is null and `read_error` the
    reason; of one with neither bytes nor reference both are null.

    Args:
        rows: as `stored_columns` reads them.
        root: what the URIs are below, or relative to.
        columns: of the result; rows that may have references get `read_error` too.

    Raises:
        RunFailedError: the store failed.
    """
    if _URI not in rows.column_names or IMAGE not in columns:
        yield rows
        return
    for piece in pieces_to_fetch([rows]):
        yield _with_images(piece, root, columns=columns)


def pieces_to_fetch(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, `FETCH_ROWS` at a time where they may have references."""
    for rows in tables:
        size = FETCH_ROWS if _URI in rows.column_names else max(1, len(rows))
        yield from (rows.slice(start, size) for start in range(0, len(rows), size))


def _with_images(rows: pa.Table, root: Location, *, columns: Sequence[str]) -> pa.Table:
    images = rows[IMAGE].to_pylist() if IMAGE in rows.column_names else [None] * len(rows)
    errors = read_errors(rows)
    wanted = [
        reference if reference.uri and image is None and error is None else None
        for reference, image, error in zip(_references(rows), images, errors, strict=True)
    ]
    distinct = list(dict.fromkeys(each for each in wanted if each))  # persons of one image share its file
    # A disk gives thousands a second to one thread; threads in each other's way took half a millisecond of CPU each.
    num_threads = 1 if root.is_local else FETCH_ROWS
    found = dict(zip(distinct, in_threads(partial(fetch, root), distinct, num_threads=num_threads), strict=True))
    for row, reference in enumerate(wanted):
        if reference:
            images[row], errors[row] = found[reference]
    values = {name: rows[name] for name in rows.column_names}
    values[IMAGE] = pa.array(images, POOL.field(IMAGE).type)
    values[READ_ERROR] = pa.array(errors, pa.string())
    return pa.table({name: values[name] for name in dict.fromkeys([*columns, READ_ERROR])})


def read_errors(rows: pa.Table) -> list[str | None]:
    """The reasons why rows have no image; None of those that have one, or whose image is null by itself."""
    return rows[READ_ERROR].to_pylist() if READ_ERROR in rows.column_names else [None] * len(rows)


def _references(rows: pa.Table) -> Iterator[ImageReference]:
    nulls = pa.nulls(len(rows))
    uris, sizes, etags = (rows[name] if name in rows.column_names else nulls for name in REFERENCE.names)
    texts = (each.cast(pa.binary()).to_pylist() for each in (uris, etags))  # as they are: a text may be none
    for (uri, etag), size in zip(zip(*texts, strict=True), sizes.to_pylist(), strict=True):
        yield ImageReference(uri or b"", size, etag and etag.decode(errors="replace").strip('"'))


def fetch(root: Location, reference: ImageReference) -> Fetched:
    """The file that a reference names.

    What is missing, forbidden or another file than the reference says is asked for again before it is believed.

    Raises:
        RunFailedError: the store failed, or refuses the credentials; or this machine does not have the root.
    """
    place = find_below(root, reference.uri)
    if place is None:
        return Fetched(None, OUTSIDE)
    try:
        found = read_again(partial(_read, reference), place)
        if found.reason in (MISSING, FORBIDDEN):
            s3.back_off(0)
            found = read_again(partial(_read, reference), place.anew())
    except DamagedError:
        return Fetched(None, CHANGED)
    if found.reason == MISSING and root.is_local and not os.path.isdir(root.path):
        raise RunFailedError(f"{root.uri}: expected the folder that images lie in, found none on this machine")
    return found


def find_below(root: Location, uri: bytes) -> Location | None:
    """The location that a URI names below a root, absolute or relative to it; None where it would be elsewhere.

    Names are taken as they are: nothing is decoded, and `..`, `.` and empty names lead nowhere.
    """
    try:
        text = uri.decode()
    except UnicodeDecodeError:
        return None
    below = text.removeprefix(f"{root.absolute_uri.rstrip('/')}/")
    names = below.split("/")
    if "://" in below or "\0" in below or set(names) & {"", ".", ".."}:
        return None
    place = root.join(*names)
    if not place.is_local:
        return place
    real, top = os.path.realpath(place.path), os.path.realpath(root.path)
    return place._replace(path=real) if real.startswith(f"{top.rstrip('/')}/") else None


def _read(reference: ImageReference, place: Location) -> Fetched:
    """The file, in one look.

    Raises:
        DamagedError: it has another size or ETag than the reference says.
        RunFailedError: the store failed.
    """
    try:
        found = read_versioned(place, most_bytes=MAX_IMAGE_BYTES)
    except RunFailedError as error:
        cause = error.__cause__
        if isinstance(cause, PermissionError):
            return Fetched(None, FORBIDDEN)
        if isinstance(cause, OSError) and cause.errno == errno.EFBIG:
            return Fetched(None, TOO_LARGE)
        if isinstance(cause, OSError) and cause.errno in _NO_FILE:
            return Fetched(None, MISSING)
        raise
    if found is None:
        return Fetched(None, MISSING)
    image, version = found
    is_other = not place.is_local and reference.etag not in (None, version)  # a copy on a disk has no ETag
    if is_other or reference.size not in (None, len(image)):
        raise DamagedError(f"{place.uri}: expected the file that the row names, found another")
    return Fetched(image)
