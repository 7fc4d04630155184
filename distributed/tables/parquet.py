"""Parquet by the contract: bounded row groups, unique ids, page checksums written and verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from distributed.storage.location import Location, WholeReads, first_line, open_atomic, read_again, reported
from distributed.storage.ranges import Ranges
from model.errors import DamagedError, InputError

ROW_GROUP_BYTES = 64 * 2**20  # of images: the unit that is read at once
FILE_BYTES = 1 * 2**30
# Values between two looks at the size of a page, which is to be 1 MiB: pyarrow's 1024 images are 10 MB and more, and
# one damaged byte costs all the rows from its page on.
_PAGE_ROWS = 64
_END_BYTES = 64 * 2**10  # what is read first of a file: most footers fit in
_MAGIC = b"PAR1"
_ROW_GROUP_ROWS = 100_000  # tiny images: a row group stays readable in one go

Row = dict[str, Any]
Result = TypeVar("Result")


def write_rows(out: Location, rows: Iterable[Row], schema: pa.Schema, *, row_group_bytes: int = ROW_GROUP_BYTES) -> int:
    """Writes rows as Parquet files below a location and returns how many.

    Raises:
        InputError: a sample_id occurs twice, or there is no row.
    """
    return write_groups(out, _row_groups(rows, schema, row_group_bytes=row_group_bytes), schema)


def write_groups(out: Location, groups: Iterable[pa.Table], schema: pa.Schema, *, file_bytes: int = FILE_BYTES) -> int:
    """Writes each table as one row group, in files of about `file_bytes`; returns the number of rows.

    Raises:
        InputError: there is no row.
    """
    waiting = iter(groups)
    group = next(waiting, None)
    num_rows = num_files = 0
    while group is not None:
        written = 0
        with (
            open_atomic(out.join(f"part-{num_files:05d}.parquet")) as stream,
            pq.ParquetWriter(
                stream,
                schema,
                write_page_checksum=True,
                write_batch_size=_PAGE_ROWS,
                **_encoding(schema),
            ) as writer,
        ):
            while group is not None and written < file_bytes:
                writer.write_table(group, row_group_size=len(group))
                written += group.nbytes
                num_rows += len(group)
                group = next(waiting, None)
        num_files += 1
    if not num_rows:
        raise InputError(f"{out.uri}: expected at least one row to write, found none")
    return num_rows


@contextmanager
def open_table(location: Location, *, size: int | None = None, version: str = "") -> Iterator[pq.ParquetFile]:
    """A Parquet file to read in the block, its page checksums and the lengths of all reads verified.

    Args:
        location: of the file.
        size: its bytes, if they are known.
        version: of the file, if it is known, with its size, and little is to be read: of an object, a read is then one
            request, and opening it none.

    Raises:
        DamagedError: the file, or what came of it, is not what was written, or no Parquet.
        RunFailedError: the store failed.
    """
    if version and size is not None and not location.is_local:
        with reported(location.uri), damage_reported(location.uri):
            ranges = Ranges(location, size=size, version=version)
            yield pq.ParquetFile(pa.PythonFile(ranges, mode="r"), page_checksum_verification=True)
        return
    with open_stream(location) as stream:
        if size not in (None, stream.size()):
            raise DamagedError(f"{location.uri}: damaged: expected {size} B, found {stream.size()} B")
        yield pq.ParquetFile(stream, page_checksum_verification=True)


@contextmanager
def open_stream(location: Location) -> Iterator[pa.NativeFile]:
    """The bytes of a Parquet file to read in the block; short reads raise errors.

    Of a disk Arrow's own readers see to that, without Python: several threads read at once.

    Raises:
        DamagedError: what came of the file is no Parquet.
        RunFailedError: the store failed.
    """
    with (
        reported(location.uri),
        location.filesystem.open_input_file(location.path) as stream,
        damage_reported(location.uri),
    ):
        yield stream if location.is_local else pa.PythonFile(WholeReads(stream), mode="r")


def read_table(location: Location) -> pa.Table:
    """All rows of a Parquet file, page checksums verified.

    Raises:
        InputError: the file is damaged, or no Parquet.
        RunFailedError: the store failed.
    """

    def read(where: Location) -> pa.Table:
        with open_table(where) as reader:
            return reader.read()

    return read_again(read, location)


def read_of(reader: pq.ParquetFile, location: Location, read: Callable[[pq.ParquetFile], Result]) -> Result:
    """Reads from an open table; where that fails and may be tried again, from the table opened anew.

    Raises:
        DamagedError: the file is damaged.
        RunFailedError: the store failed.
    """

    def attempt(where: Location) -> Result:
        if where is location:
            with reported(where.uri), damage_reported(where.uri):
                return read(reader)
        with open_table(where) as opened:
            return read(opened)

    return read_again(attempt, location)


def read_footer(stream: pa.NativeFile) -> bytes:
    """The footer of a Parquet file as it is stored, with its length and the closing mark; of no Parquet, the end."""
    size = stream.size()
    end = stream.read_at(min(size, _END_BYTES), max(0, size - _END_BYTES))
    length = int.from_bytes(end[-8:-4], "little") + 8
    if len(end) < length <= size:
        return bytes(stream.read_at(length, size - length))
    return bytes(end[-length:])


def hash_stored_footer(footer: bytes) -> str:
    """The hash that `hash_footer` gives of this footer before it is stored, and after, by the same version of Arrow."""
    return hashlib.sha256(_MAGIC + footer).hexdigest()[:16]


def hash_footer(footer: pq.FileMetaData) -> str:
    """Hash of all that a Parquet footer says."""
    sink = pa.BufferOutputStream()
    footer.write_metadata_file(sink)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


@contextmanager
def damage_reported(uri: str) -> Iterator[None]:
    """Turns errors of damaged files into ours, with the file's name; errors of a failing store pass as they are.

    Raises:
        InputError: what was read is damaged.
    """
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error, MemoryError) or _is_from_store(error):
            raise
        raise DamagedError(f"{uri}: damaged: {first_line(error)}") from error


def _is_from_store(error: Exception) -> bool:
    # pyarrow raises a plain OSError for a wrong checksum too; a store's has a number, or AWS's name.
    return isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error))


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """Encoded images as they are: compressed already, never alike, and useless as statistics."""
    others = [name for name in schema.names if name != "image"]
    return {
        "compression": {"image": "none", **dict.fromkeys(others, "zstd")},
        "use_dictionary": others,
        "write_statistics": others,
    }


def _row_groups(rows: Iterable[Row], schema: pa.Schema, *, row_group_bytes: int) -> Iterator[pa.Table]:
    seen: set[str] = set()
    group: list[Row] = []
    size = 0
    for row in rows:
        if row["sample_id"] in seen:
            raise InputError(f"column 'sample_id': expected unique values, found {row['sample_id']!r} twice")
        seen.add(row["sample_id"])
        image_bytes = len(row.get("image") or b"")
        if group and (size + image_bytes > row_group_bytes or len(group) >= _ROW_GROUP_ROWS):
            yield pa.Table.from_pylist(group, schema)
            group, size = [], 0
        group.append(row)
        size += image_bytes
    if group:
        yield pa.Table.from_pylist(group, schema)
