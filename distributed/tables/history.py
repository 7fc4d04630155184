"""The history of a triage: a table of one row a night, replaced whole, so that readers see all of it or none.

Triage writes it and compares a night with those before; reports show them. `HISTORY` in `schema` has its columns.
"""

from __future__ import annotations

import datetime
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distributed.schema import HISTORY, check_schema
from distributed.storage.location import Location, read_versioned, write_if
from distributed.tables.parquet import damage_reported
from model.errors import RunFailedError

HISTORY_FILE = "history.parquet"
_ATTEMPTS = 5

Row = dict[str, Any]  # a row of `HISTORY`


def read_history(location: Location) -> list[Row]:
    """The rows, by date; none if there is no history yet.

    Raises:
        InputError: the file is damaged, or no history.
    """
    return _read(location)[0]


def nights_before(rows: list[Row], night: datetime.date | None, *, bundle_id: str) -> list[Row]:
    """The nights before one (None: all), by date, whose losses compare with it: those of the same bundle."""
    return [row for row in rows if row["bundle_id"] == bundle_id and (night is None or row["night"] < night)]


def record_night(location: Location, row: Row) -> None:
    """Inserts the row of a night, or replaces the earlier row of the same night. Whole or not at all.

    Raises:
        InputError: what lies there is damaged, or no history.
        RunFailedError: others kept changing it.
    """
    for _ in range(_ATTEMPTS):
        rows, version = _read(location)
        changed = sorted([*(each for each in rows if each["night"] != row["night"]), row], key=_night)
        if changed == rows or write_if(location, _dump(changed), version=version) is not None:
            return
    raise RunFailedError(f"{location.uri}: others changed it {_ATTEMPTS} times meanwhile")


def _night(row: Row) -> datetime.date:
    night: datetime.date = row["night"]
    return night


def _read(location: Location) -> tuple[list[Row], str | None]:
    found = read_versioned(location)
    if found is None:
        return [], None
    with damage_reported(location.uri):
        table = pq.read_table(io.BytesIO(found[0]), page_checksum_verification=True)
    check_schema(table.schema, HISTORY, where=location.uri)
    return table.select(HISTORY.names).to_pylist(), found[1]


def _dump(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, HISTORY), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
