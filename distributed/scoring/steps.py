"""The two ends of the line: a bin is read, a part is written. Imports neither Ray nor torch: workers start fast."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow as pa

from distributed.runs.logbook import Log
from distributed.schema import in_flight_schema
from distributed.storage.location import Location
from distributed.tables.reader import Bin, salvage_bin
from distributed.tables.scores import write_part


def read_rows(location: Location, metadata: pa.Schema, log: Log, bin_: Bin) -> Iterator[pa.Table]:
    """The rows of a bin; one table without rows where there is none to score: Ray wants something."""
    tables = iter(()) if log.must_stop() else salvage_bin(location, bin_, on_bad_file=log.fail_file, metadata=metadata)
    seconds, num_tables, started = 0.0, 0, time.perf_counter()
    for rows in tables:
        seconds, num_tables = seconds + time.perf_counter() - started, num_tables + 1
        yield rows
        started = time.perf_counter()
    if not num_tables:
        yield in_flight_schema(metadata).empty_table()
    log.add_seconds("read", seconds)


def write_scores(out: Location, log: Log, rows: pa.Table) -> None:
    """A part of the rows, if there are any."""
    if len(rows):
        started = time.perf_counter()
        write_part(out, rows)
        log.add_seconds("write", time.perf_counter() - started)
