"""Metadata of a folder's images: a CSV or Parquet table with a row for each path.

path         below the folder; it may begin with the folder's own path or URI
group        text; where it is empty, or there is none, the folder that the image lies in
captured_at  ISO 8601, or a timestamp; UTC where it names no zone
box          x0, y0, x1, y1 image pixels: four numbers in a text, or a list
others       metadata columns of the pool
"""

from __future__ import annotations

import datetime
import hashlib
import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from distributed.ingest.reference import Corners
from distributed.storage.location import Location, first_line, read_bytes
from model.errors import InputError

_PATH, _OWN = "path", ("group", "captured_at", "box")
_TAKEN = ("sample_id", "image", "keypoints", "visibility")  # columns of tables that no metadata may have
_MOST_BYTES = 2**30  # that types are told by
_BETWEEN = re.compile(r"[\s,;]+")
_UTC = pa.timestamp("us", tz="UTC")


class Entry(NamedTuple):
    """A row of the table."""

    group: str | None
    captured_at: datetime.datetime | None
    box: Corners | None
    metadata: dict[str, Any]


class Sidecar(NamedTuple):
    """The table."""

    entries: dict[str, Entry]  # by path below the folder
    columns: tuple[pa.Field, ...]  # of the metadata
    fingerprint: str


def read_sidecar(place: Location, *, folder: Location) -> Sidecar:
    """The table that lies there, for the images of a folder.

    Raises:
        InputError: it is no such table, a path occurs twice, or a value can't be read: names the row, counted from 1.
    """
    data = read_bytes(place)
    table = _read_table(data, where=place.uri)
    _check_names(table.column_names, where=place.uri)
    further = [name for name in table.column_names if name not in (_PATH, *_OWN)]
    columns = tuple(_plain(table.schema.field(name)) for name in further)
    try:
        paths = _texts(table, _PATH)
        own = zip(_texts(table, "group"), _times(table), _boxes(table), strict=True)
        metadata = zip(*(table[name].to_pylist() for name in further), strict=True) if further else [()] * len(table)
        entries: dict[str, Entry] = {}
        starts = ("./", f"{folder.uri.rstrip('/')}/", f"{folder.absolute_uri}/")
        for number, (path, values, more) in enumerate(zip(paths, own, metadata, strict=True), start=1):
            if not path:
                raise ValueError(f"row {number}: {_PATH}: expected a path, found none")
            below = next((path.removeprefix(start) for start in starts if path.startswith(start)), path)
            if below in entries:
                raise ValueError(f"row {number}: {_PATH}: expected each once, found {path!r} again")
            entries[below] = Entry(*values, dict(zip(further, more, strict=True)))
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{place.uri}: {first_line(error)}") from error
    return Sidecar(entries, columns, hashlib.sha256(data).hexdigest()[:16])


def _read_table(data: bytes, *, where: str) -> pa.Table:
    try:
        if data.startswith(b"PAR1"):
            return pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read()
        return csv.read_csv(
            io.BytesIO(data),
            read_options=csv.ReadOptions(block_size=min(max(len(data), 1), _MOST_BYTES)),
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys((_PATH, *_OWN), pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: expected a CSV or Parquet table, found none: {first_line(error)}") from error


def _check_names(names: Sequence[str], *, where: str) -> None:
    if _PATH not in names:
        raise InputError(f"{where}: expected a column {_PATH!r}, found {list(names)[:8]}")
    wrong = [name for name in names if name in _TAKEN or names.count(name) > 1]
    if wrong:
        kind = "metadata" if wrong[0] in _TAKEN else "each column once"
        raise InputError(f"{where}: expected {kind}, found a column {wrong[0]!r}")


def _plain(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.field(field.name, pa.string() if pa.types.is_null(kind) else kind)


def _texts(table: pa.Table, name: str) -> list[str | None]:
    if name not in table.column_names:
        return [None] * len(table)
    return [value or None for value in table[name].cast(pa.string()).to_pylist()]


def _times(table: pa.Table) -> list[datetime.datetime | None]:
    if "captured_at" not in table.column_names:
        return [None] * len(table)
    found = table["captured_at"]
    if pa.types.is_temporal(found.type):
        return found.cast(pa.timestamp("us", tz=getattr(found.type, "tz", None)), safe=False).cast(_UTC).to_pylist()
    return [_time(value, f"row {number}") for number, value in enumerate(found.to_pylist(), start=1)]


def _time(value: Any, where: str) -> datetime.datetime | None:
    if value in (None, ""):
        return None
    try:
        found = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: captured_at: expected ISO 8601 (2026-11-28T17:05:00Z), found {value!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _boxes(table: pa.Table) -> list[Corners | None]:
    if "box" not in table.column_names:
        return [None] * len(table)
    return [_box(value, f"row {number}") for number, value in enumerate(table["box"].to_pylist(), start=1)]


def _box(value: Any, where: str) -> Corners | None:
    if value in (None, ""):
        return None
    try:
        sides = _BETWEEN.split(value.strip(" []()")) if isinstance(value, str) else value
        x0, y0, x1, y1 = map(float, sides)
        if x1 > x0 and y1 > y0 and all(map(math.isfinite, (x0, y0, x1, y1))):
            return x0, y0, x1, y1
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{where}: box: expected x0, y0, x1, y1 with x0 < x1 and y0 < y1, found {value!r}")
