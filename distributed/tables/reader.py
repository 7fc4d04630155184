"""Rows of the frozen files: read in bins, page checksums verified, each with its pool file and its number there.

Rows that refer to an image come without it from `read_stored` and `salvage_bin`; `read_bin` gives all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed.schema import DAMAGED, FILE_ID, IMAGE, NO_METADATA, POOL, READ_ERROR, REFERENCE, in_flight_schema
from distributed.storage.location import Location, pause_before_retry, read_again
from distributed.tables.manifest import REFERENCE_BYTES, Manifest, PoolFile, Segment
from distributed.tables.parquet import damage_reported, hash_footer, open_table
from distributed.tables.references import stored_columns, with_images
from model.errors import DamagedError, InputError, RunFailedError

if TYPE_CHECKING:
    from model.predictor import Box  # a worker that reads needs no torch

READ_ROWS = 256  # rows of a batch that is read at once: some MB of JPEG
BIN_BYTES = 128 * 2**20  # of a read task, uncompressed: Ray Data's own block target


class FileChangedError(RunFailedError):
    """A file is no longer the one that the manifest froze."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The rows that one task reads."""

    segments: tuple[Segment, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the bin."""
        return sum(stop - start for _, start, stop in self.segments)

    @property
    def num_bytes(self) -> int:
        """Uncompressed bytes of the row groups that the bin lies in."""
        return sum(segment.num_bytes for segment in self.segments)

    @property
    def name(self) -> str:
        """Names the bin among all of one plan: its first row."""
        return f"{self.segments[0].file.path}:{self.segments[0].start}"


def plan_bins(
    segments: Iterable[Segment],
    *,
    max_bytes: int | Callable[[int], int] = BIN_BYTES,
    reference_bytes: int = REFERENCE_BYTES,
    most_rows: int | None = None,
) -> list[Bin]:
    """The rows of the segments packed into bins of at most `max_bytes` (a larger row group alone), in order.

    Small files share a bin; else 50,000 files of ten rows were 50,000 tasks.

    Args:
        segments: the rows.
        max_bytes: of each bin, uncompressed; or a function that gives them for the bytes of all bins before.
        reference_bytes: what a row counts as whose image lies elsewhere.
        most_rows: a row group of more rows is cut, and will be read once for each of its pieces; None: only one of
            references is, of which each row is read by itself.
    """
    limit_after = max_bytes if callable(max_bytes) else lambda _: max_bytes
    bins: list[Bin] = []
    waiting: list[Segment] = []
    filled, planned, limit = 0, 0, limit_after(0)
    for segment, num_bytes in _pieces(segments, reference_bytes=reference_bytes, most_rows=most_rows):
        if waiting and filled + num_bytes > limit:
            bins.append(Bin(segments=tuple(waiting)))
            planned += filled
            waiting, filled, limit = [], 0, limit_after(planned)
        if waiting and waiting[-1].file is segment.file and waiting[-1].stop == segment.start:
            waiting[-1] = waiting[-1]._replace(stop=segment.stop)
        else:
            waiting.append(segment)
        filled += num_bytes
    return [*bins, Bin(segments=tuple(waiting))] if waiting else bins


def _pieces(
    segments: Iterable[Segment], *, reference_bytes: int, most_rows: int | None
) -> Iterator[tuple[Segment, int]]:
    """The rows of each row group, or pieces of it, and their bytes."""
    for segment in segments:
        row = segment.start
        if segment.file.has_references:
            for start in range(row, segment.stop, READ_ROWS):
                piece = Segment(segment.file, start, min(segment.stop, start + READ_ROWS))
                yield piece, (piece.stop - start) * reference_bytes
            continue
        for group, first, last in segment.pieces():
            num_bytes = segment.file.row_group_bytes[group]
            for start in range(first, last, most_rows or last - first):
                num_rows = min(most_rows or last, last - start)
                yield Segment(segment.file, row, row + num_rows), num_bytes * num_rows // (last - first)
                row += num_rows


def read_file(manifest: Manifest, file: PoolFile, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a file; see `read_bin`."""
    bin_ = Bin(segments=(Segment(file, 0, file.num_rows),))
    return read_bin(manifest.location, bin_, columns=columns, images=manifest.images)


def read_bin(
    location: Location, bin_: Bin, *, columns: Sequence[str], images: Location | None = None
) -> Iterator[pa.Table]:
    """The rows of a bin with `pool_file` and `pool_row` added, page checksums verified, images fetched.

    Rows that may have references come with `read_error` too, see `with_images`, and fewer at a time.

    Args:
        location: the frozen pool's.
        bin_: which rows; one row group at a time is in memory.
        columns: which columns, and in which order.
        images: the folder that references are below; None: the pool's own.

    Raises:
        InputError: a page is damaged.
        FileChangedError: the file is not the one that the manifest froze.
        RunFailedError: the store failed.
    """
    for rows in read_stored(location, bin_, columns=columns):
        yield from with_images(rows, images or location, columns=[*columns, "pool_file", "pool_row"])


def read_stored(location: Location, bin_: Bin, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The same rows, `READ_ROWS` at a time, as their files have them: references are further columns."""
    return rebatched(
        rows for segment in bin_.segments for rows in _read_segment(location, segment, columns, on_damage=None)
    )


def salvage_bin(
    location: Location, bin_: Bin, *, on_bad_file: Callable[[str, str], None], metadata: pa.Schema = NO_METADATA
) -> Iterator[pa.Table]:
    """The rows of a bin as `in_flight_schema`; rows whose images can't be read have ids, nulls and a `read_error`.

    References are further columns, which `with_images` takes away. A page is damaged if reading it again does not help.
    A file that changed, or whose ids can't be read either, is reported with the reason to `on_bad_file`, and its other
    rows must not be used.

    Raises:
        RunFailedError: the store failed.
    """
    schema = in_flight_schema(metadata)
    columns = [*POOL.names, *metadata.names]

    def read(segment: Segment) -> Iterator[pa.Table]:
        where = location.join(*segment.file.path.split("/"))
        try:
            for rows in _read_segment(location, segment, columns, on_damage=_without_images):
                yield _in_flight(rows, segment.file, schema)
            _check_unchanged(where, segment.file)
        except RunFailedError as error:
            if not isinstance(error, FileChangedError) and not isinstance(error.__cause__, FileNotFoundError):
                raise
            on_bad_file(segment.file.path, "changed during the run")
        except InputError as error:
            on_bad_file(segment.file.path, str(error).removeprefix(f"{where.uri}: "))

    return rebatched(rows for segment in bin_.segments for rows in read(segment))


def _in_flight(rows: pa.Table, file: PoolFile, schema: pa.Schema) -> pa.Table:
    file_id = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), pa.array([file.file_id]))
    if READ_ERROR not in rows.column_names:
        rows = rows.append_column(READ_ERROR, pa.nulls(len(rows), pa.string()))
    if IMAGE not in rows.column_names:
        rows = rows.append_column(IMAGE, pa.nulls(len(rows), pa.large_binary()))
    further = [each for each in REFERENCE if each.name in rows.column_names and each.name not in schema.names]
    whole = pa.schema([*schema, *further])
    return rows.append_column(FILE_ID, file_id).select(whole.names).cast(whole)


_OnDamage = Callable[[Location, PoolFile, int, Sequence[str]], pa.Table]


def _read_segment(
    location: Location, segment: Segment, columns: Sequence[str], *, on_damage: _OnDamage | None
) -> Iterator[pa.Table]:
    """The rows of a segment; a read that fails and may be tried again goes on at the next row."""
    file, row, stop = segment
    where = location.join(*file.path.split("/"))
    _check_unchanged(where, file)
    attempt = 0
    while row < stop:
        try:
            for rows in _read_on(where, Segment(file, row, stop), columns):
                yield _with_origin(rows, file.path, row)
                row, attempt = row + len(rows), 0
        except (DamagedError, RunFailedError) as error:
            try:
                pause_before_retry(error, attempt)
                where, attempt = where.anew(), attempt + 1
            except DamagedError:
                if on_damage is None:
                    raise
                group, first, last = next(Segment(file, row, stop).pieces())
                rows = on_damage(where, file, group, columns).slice(first, last - first)
                yield _with_origin(rows, file.path, row)
                row, attempt = row + len(rows), 0


def _read_on(where: Location, segment: Segment, columns: Sequence[str]) -> Iterator[pa.Table]:
    with _open_frozen(where, segment.file) as reader:
        for group, first, last in segment.pieces():
            yield from _read_group(reader, group, first, last=last, file=segment.file, columns=columns)


@contextmanager
def _open_frozen(where: Location, file: PoolFile) -> Iterator[pq.ParquetFile]:
    with open_table(where, size=file.size) as reader:
        if hash_footer(reader.metadata) != file.footer:  # pyarrow would read on, and give other values
            raise DamagedError(f"{where.uri}: damaged: the footer is not the one that the run froze")
        yield reader


def _read_group(
    reader: pq.ParquetFile, group: int, first: int, *, last: int, file: PoolFile, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Rows `first` to `last` of a row group, a batch at a time."""
    found, expected = 0, file.row_group_rows[group]
    columns = stored_columns(reader.schema_arrow, columns)
    # One call a row group: pyarrow keeps what it has fetched until the call is over.
    for batch in reader.iter_batches(READ_ROWS, row_groups=[group], columns=columns):
        rows = pa.Table.from_batches([batch]).select(columns)
        if found + len(rows) > first and found < last:
            yield rows.slice(max(0, first - found), last - max(first, found))
        found += len(rows)
    if found != expected:  # a damaged footer may hide rows of a column chunk and read well
        raise pa.ArrowInvalid(f"expected {expected} rows in row group {group}, found {found}")


def _without_images(where: Location, file: PoolFile, group: int, columns: Sequence[str]) -> pa.Table:
    """The rows of a row group with what can still be read of them: the ids at least."""

    def read(where: Location) -> pa.Table:
        with _open_frozen(where, file) as reader:
            return _read_sound_columns(reader, group, columns)

    return read_again(read, where)


def _read_sound_columns(reader: pq.ParquetFile, group: int, columns: Sequence[str]) -> pa.Table:
    found, expected = reader.read_row_group(group, columns=["sample_id"]), reader.metadata.row_group(group).num_rows
    if len(found) != expected:  # a damaged page may hide rows and read well
        raise DamagedError(f"damaged: expected {expected} ids in row group {group}, found {len(found)}")
    columns = stored_columns(reader.schema_arrow, columns)
    for name in columns:
        if name in ("sample_id", IMAGE):
            continue
        try:
            with damage_reported(name):  # a store that fails is no damage
                found = found.append_column(name, reader.read_row_group(group, columns=[name])[name])
        except InputError:
            continue
    schema = pa.schema([reader.schema_arrow.field(name).with_nullable(True) for name in columns])
    values = [
        found[name] if name in found.column_names else pa.nulls(len(found), schema.field(name).type) for name in columns
    ]
    return pa.table(values, schema=schema).append_column(READ_ERROR, pa.array([DAMAGED] * len(found), pa.string()))


def rebatched(tables: Iterable[pa.Table], *, num_rows: int = READ_ROWS) -> Iterator[pa.Table]:
    """The same rows so many at a time, across row groups: small ones must not make small batches."""
    waiting: pa.Table | None = None
    for table in tables:
        # Files may differ in what the contract leaves open: nullability, and the names of list items.
        waiting = pa.concat_tables([waiting, table], promote_options="default") if waiting else table
        while len(waiting) >= num_rows:
            yield waiting.slice(0, num_rows)
            waiting = waiting.slice(num_rows)
    if waiting:
        yield waiting


def _with_origin(table: pa.Table, path: str, first_row: int) -> pa.Table:
    origin = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([path], pa.string()))
    rows = pa.array(np.arange(first_row, first_row + len(table), dtype=np.int64))
    return table.append_column("pool_file", origin).append_column("pool_row", rows)


def _check_unchanged(where: Location, file: PoolFile) -> None:
    found = where.stat()
    if found is None or (found.size, found.version) != (file.size, file.version):
        what = "none" if found is None else f"{found.size} B of another version"
        raise FileChangedError(f"{where.uri}: expected the file of {file.size} B that the run froze, found {what}")


def image_buffers(rows: pa.Table) -> list[memoryview]:
    """The encoded images of pool rows, not copied; a null image is an empty one."""
    return [memoryview(value.as_buffer() or b"").cast("B") for value in rows[IMAGE]]


def boxes(rows: pa.Table) -> list[Box]:
    """The boxes x0, y0, x1, y1 of pool rows, None where null."""
    column = rows["box"].combine_chunks()
    values = iter(np.asarray(column.flatten(), np.float32).reshape(-1, 4))  # flatten passes over null boxes
    return [next(values) if is_valid else None for is_valid in column.is_valid().to_pylist()]
