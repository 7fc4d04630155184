"""Trials of a store, each small and by itself, below a scratch folder: what a store may get wrong unnoticed.

Conditions that it ignores, uploads whose framing it keeps, parts that it can't serve, names and bytes that it changes.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable

import pyarrow as pa

from distributed.storage.location import (
    Location,
    delete_files,
    list_files,
    open_atomic,
    read_bytes,
    reported,
    write_bytes,
    write_if,
)
from distributed.tables.parquet import open_table, write_groups

_LARGE_BYTES = 12 * 2**20  # more than the 10 MiB that pyarrow uploads in one part
_ODD_NAMES = ("a b.bin", "ünï-日本.bin", "100%.bin", "a%20b.bin", "a+b.bin", "date=2026-11-22/x.bin", "x'y.bin")
_FRAMING_FIX = "the store keeps the framing of uploads: AWS_REQUEST_CHECKSUM_CALCULATION=when_required may help"
_CHANGED_FIX = "bytes change on their way or at rest: use another store"


class WrongError(Exception):
    """The store did something else than it should; `fix` says what to do."""

    def __init__(self, found: str, *, fix: str) -> None:
        super().__init__(found)
        self.fix = fix


def _put_and_get(scratch: Location) -> str:
    small = scratch.join("small.bin")
    for data in (b"first", b"second, and longer", b""):
        write_bytes(small, data)
        found = read_bytes(small)
        if found != data:
            raise WrongError(f"expected the {len(data)} B just written, found {len(found)} others", fix=_FRAMING_FIX)
    return "what was written is read"


def _conditional_create(scratch: Location) -> str:
    record = scratch.join("created.json")
    if write_if(record, b"first", version=None) is None:
        raise _wrong_condition("a put where nothing is (If-None-Match: *) to pass, found it refused")
    if write_if(record, b"second", version=None) is not None:
        raise _wrong_condition("a second put (If-None-Match: *) to be refused, found it accepted")
    return "the second of two is refused"


def _conditional_replace(scratch: Location) -> str:
    record = scratch.join("replaced.json")
    first = write_if(record, b"first", version=None)
    if first is None or write_if(record, b"second", version=first) is None:
        raise _wrong_condition("a put on the right version (If-Match) to pass, found it refused")
    if write_if(record, b"third", version=first) is not None:
        raise _wrong_condition("a put on a stale version (If-Match) to be refused, found it accepted")
    return "a stale version is refused"


def _wrong_condition(what: str) -> WrongError:
    return WrongError(f"expected {what}", fix="two runs of one output can't be kept apart here: use another store")


def _large_file(scratch: Location) -> str:
    location, data = scratch.join("large.bin"), _noise()
    start = time.monotonic()
    with open_atomic(location) as stream:
        stream.write(data)
    written = time.monotonic()
    found = read_bytes(location)
    read = time.monotonic()
    if len(found) != len(data):
        raise WrongError(f"expected {len(data)} B, found {len(found)} B", fix=_FRAMING_FIX)
    if found != data:
        raise WrongError("expected the bytes written, found others", fix=_CHANGED_FIX)
    megabytes = len(data) / 1e6
    return f"written {megabytes / (written - start):.0f} MB/s, read {megabytes / (read - written):.0f} MB/s"


def _ranges(scratch: Location) -> str:
    location, data = scratch.join("large.bin"), _noise()
    with reported(location.uri), location.filesystem.open_input_file(location.path) as stream:
        for start, size in ((0, 10), (5_000_000, 70_000), (len(data) - 8, 8)):
            stream.seek(start)
            if stream.read(size) != data[start : start + size]:
                fix = "this store can't serve parts of files: use another"
                raise WrongError(f"expected {size} B from byte {start}, found others", fix=fix)
    return "parts are read"


def _table(scratch: Location) -> str:
    rows = pa.table({"id": pa.array(range(50_000), pa.int64()), "text": [f"row {i * i}" for i in range(50_000)]})
    write_groups(scratch.join("table"), [rows.slice(0, 25_000), rows.slice(25_000)], rows.schema)
    with open_table(scratch.join("table", "part-00000.parquet")) as reader:
        found = reader.read()
    if not found.equals(rows):
        raise WrongError("expected the rows written, found others", fix=_CHANGED_FIX)
    return "page checksums hold"


def _listing(scratch: Location) -> str:
    folder = scratch.join("names")
    for name in _ODD_NAMES:
        write_bytes(folder.join(*name.split("/")), name.encode())
    found = {stored.path[len(folder.path) + 1 :] for stored in list_files(folder, suffix="")}
    if found != set(_ODD_NAMES):
        wrong = sorted(found ^ set(_ODD_NAMES))
        fix = "use plain names only, or another store"
        raise WrongError(f"expected the {len(_ODD_NAMES)} names written, differing {wrong}", fix=fix)
    return f"{len(_ODD_NAMES)} odd names are found"


def _delete(scratch: Location) -> str:
    doomed = scratch.join("doomed.bin")
    write_bytes(doomed, b"x")
    delete_files(scratch, ["doomed.bin"])
    if doomed.stat() is not None:
        raise WrongError("expected a deleted file to be gone, found it there", fix="is this a store without deletion?")
    return "what is deleted is gone"


@functools.cache
def _noise() -> bytes:
    return random.Random(0).randbytes(_LARGE_BYTES)  # noqa: S311


# Name -> trial, which returns what it found. The first is what all others need.
TRIALS: dict[str, Callable[[Location], str]] = {
    "put and get": _put_and_get,
    "conditional create": _conditional_create,
    "conditional replace": _conditional_replace,
    "file of 12 MiB": _large_file,
    "parts of a file": _ranges,
    "Parquet": _table,
    "names": _listing,
    "delete": _delete,
}
