"""The pool as a manifest, frozen before anything else reads it, and the reader of its row groups.

Ray never sees a file that is not in the manifest: it skips 0-byte files silently and gives up on truncated ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import fs

from distributed.runs import unfinished_folders
from distributed.schema import POOL, check_schema
from distributed.storage import Location, list_files
from distributed.tables import open_table
from model.errors import InputError, RunFailedError

READ_ROWS = 256  # rows of a batch that is read at once: some MB of JPEG
BIN_BYTES = 128 * 2**20  # of a read task, uncompressed: Ray Data's own block target


@dataclass(frozen=True, kw_only=True)
class PoolFile:
    """A readable file of the pool as it was when the manifest was frozen."""

    path: str  # below the pool's location
    size: int  # bytes
    modified_ns: int
    row_group_rows: tuple[int, ...]
    row_group_bytes: tuple[int, ...]  # uncompressed

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_group_rows)


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that cannot be read at all, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a run reads: these files as they were, and nothing that comes later."""

    location: Location  # the folder that the paths are below
    files: tuple[PoolFile, ...]
    bad_files: tuple[BadFile, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all readable files."""
        return sum(file.num_rows for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes, times and row counts: the same pool, the same fingerprint."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, object]:
        """The manifest as it is kept with the run."""
        return {
            "files": [asdict(file) for file in self.files],
            "bad_files": [asdict(file) for file in self.bad_files],
        }


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Row groups of one file that one task reads."""

    file: PoolFile
    first_group: int
    num_groups: int

    @property
    def num_rows(self) -> int:
        """Rows of the bin."""
        return sum(self.file.row_group_rows[self.first_group : self.first_group + self.num_groups])

    @property
    def num_bytes(self) -> int:
        """Uncompressed bytes of the bin."""
        return sum(self.file.row_group_bytes[self.first_group : self.first_group + self.num_groups])


def freeze_pool(location: Location, *, schema: pa.Schema = POOL, may_be_empty: bool = False) -> Manifest:
    """Lists the files once and reads their footers; a file that cannot be read is recorded with its reason.

    Raises:
        InputError: nothing is there, no file is readable, a column is missing or of another type, there is no row,
            a sample_id occurs twice, or an output of ours at or below the location is unfinished.
    """
    location, infos = _list_tables(location)
    good: list[PoolFile] = []
    bad: list[BadFile] = []
    for info in infos:
        entry = _read_footer(location, info, schema)
        if isinstance(entry, PoolFile):
            good.append(entry)
        else:
            bad.append(entry)
    if not good:
        raise InputError(f"{location.uri}: no readable file; {bad[0].path}: {bad[0].reason}")
    manifest = Manifest(location=location, files=tuple(good), bad_files=tuple(bad))
    if manifest.num_rows:
        _check_unique_ids(manifest)
    elif not may_be_empty:
        raise InputError(f"{location.uri}: expected at least one row, found none in {len(good)} files")
    return manifest


def _list_tables(location: Location) -> tuple[Location, list[fs.FileInfo]]:
    """The folder and the Parquet files below it; a file given by name may be called anything."""
    infos = list_files(location, suffix="")
    if [info.path for info in infos] == [location.path]:
        return location.parent, infos
    unfinished = [location.uri + folder[len(location.path) :] for folder in unfinished_folders(infos)]
    if unfinished:
        raise InputError(f"{unfinished[0]}: expected a finished table, found an unfinished ingest: run it again")
    infos = [info for info in infos if info.path.endswith(".parquet")]
    if not infos:
        raise InputError(f"{location.uri}: expected Parquet files, found none")
    return location, infos


def _read_footer(location: Location, info: fs.FileInfo, schema: pa.Schema) -> PoolFile | BadFile:
    path = info.path[len(location.path) + 1 :]
    if not info.size:
        return BadFile(path=path, reason="empty file")
    try:
        with open_table(Location(location.filesystem, info.path, path)) as reader:
            found, footer = reader.schema_arrow, reader.metadata
            groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    except InputError as error:
        return BadFile(path=path, reason=str(error).removeprefix(f"{path}: "))
    check_schema(found, schema, where=path)
    if footer.num_rows != sum(group.num_rows for group in groups):  # footers have no checksum, and pyarrow reads on
        return BadFile(path=path, reason="damaged: the footer's row count is not that of its row groups")
    return PoolFile(
        path=path,
        size=info.size,
        modified_ns=info.mtime_ns or 0,
        row_group_rows=tuple(group.num_rows for group in groups),
        row_group_bytes=tuple(group.total_byte_size for group in groups),
    )


def _check_unique_ids(manifest: Manifest) -> None:
    """Compares 64-bit hashes (8 bytes a row), and the ids themselves only where two hashes agree."""
    hashes = np.concatenate([_id_hashes(ids) for _, ids in _iter_ids(manifest)])
    values, counts = np.unique(hashes, return_counts=True)
    suspects = values[counts > 1]
    if not len(suspects):
        return
    seen: dict[str, str] = {}
    for path, ids in _iter_ids(manifest):
        for sample_id in np.asarray(ids, dtype=object)[np.isin(_id_hashes(ids), suspects)]:
            if sample_id in seen:
                raise InputError(
                    f"{manifest.location.uri}: column 'sample_id': expected unique values, "
                    f"found {sample_id!r} twice ({seen[sample_id]}, {path})"
                )
            seen[sample_id] = path


def _iter_ids(manifest: Manifest) -> Iterator[tuple[str, list[str]]]:
    for file in manifest.files:
        for table in read_file(manifest, file, columns=["sample_id"]):
            if table["sample_id"].null_count:
                raise InputError(f"{file.path}: column 'sample_id': expected no nulls, found some")
            try:
                yield file.path, table["sample_id"].to_pylist()
            except UnicodeDecodeError as error:
                raise InputError(f"{file.path}: column 'sample_id': expected UTF-8, found {error.object!r}") from error


def _id_hashes(ids: list[str]) -> np.ndarray:
    hashes: np.ndarray = pd.util.hash_array(np.asarray(ids, dtype=object), categorize=False)
    return hashes


def plan_bins(manifest: Manifest, *, max_bytes: int = BIN_BYTES) -> list[Bin]:
    """Row groups packed into read tasks of at most `max_bytes` (a larger row group alone), never across files.

    Bins without a row are left out: a read task that gives no block fails the run under Ray.
    """
    bins: list[Bin] = []
    for file in manifest.files:
        start, filled = 0, 0
        for group, size in enumerate(file.row_group_bytes):
            if group > start and filled + size > max_bytes:
                bins.append(Bin(file=file, first_group=start, num_groups=group - start))
                start, filled = group, 0
            filled += size
        if start < len(file.row_group_bytes):
            bins.append(Bin(file=file, first_group=start, num_groups=len(file.row_group_bytes) - start))
    return [bin_ for bin_ in bins if bin_.num_rows]


def read_file(manifest: Manifest, file: PoolFile, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a file; see `read_bin`."""
    return read_bin(
        manifest.location, Bin(file=file, first_group=0, num_groups=len(file.row_group_rows)), columns=columns
    )


def read_bin(location: Location, bin_: Bin, *, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a bin with `pool_file` and `pool_row` added, `READ_ROWS` at a time, page checksums verified.

    Args:
        location: the frozen pool's.
        bin_: which row groups; one at a time is in memory.
        columns: which columns, and in which order.

    Raises:
        InputError: a page is damaged.
        RunFailedError: the file is not the one that the manifest froze, or the store failed.
    """
    where = location.join(*bin_.file.path.split("/"))
    _check_unchanged(where, bin_.file)
    row = sum(bin_.file.row_group_rows[: bin_.first_group])
    for table in _rebatched(_read_groups(where, bin_, columns)):
        yield _with_origin(table, bin_.file.path, row)
        row += len(table)


def _read_groups(where: Location, bin_: Bin, columns: Sequence[str]) -> Iterator[pa.Table]:
    with open_table(where) as reader:
        for group in range(bin_.first_group, bin_.first_group + bin_.num_groups):
            found, expected = 0, bin_.file.row_group_rows[group]
            # One call a row group: pyarrow keeps what it has fetched until the call is over.
            for batch in reader.iter_batches(READ_ROWS, row_groups=[group], columns=list(columns)):
                found += len(batch)
                yield pa.Table.from_batches([batch]).select(columns)
            if found != expected:  # a damaged footer may hide rows of a column chunk and read well
                raise InputError(f"{where.uri}: damaged: expected {expected} rows in row group {group}, found {found}")


def _rebatched(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows `READ_ROWS` at a time, across row groups: small ones must not make small batches."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = pa.concat_tables([waiting, table]) if waiting else table
        while len(waiting) >= READ_ROWS:
            yield waiting.slice(0, READ_ROWS)
            waiting = waiting.slice(READ_ROWS)
    if waiting:
        yield waiting


def _with_origin(table: pa.Table, path: str, first_row: int) -> pa.Table:
    origin = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([path], pa.string()))
    rows = pa.array(np.arange(first_row, first_row + len(table), dtype=np.int64))
    return table.append_column("pool_file", origin).append_column("pool_row", rows)


def _check_unchanged(where: Location, file: PoolFile) -> None:
    info = where.info()
    if (info.size, info.mtime_ns or 0) != (file.size, file.modified_ns):
        found = "none" if info.type == fs.FileType.NotFound else f"{info.size} B of another time"
        raise RunFailedError(f"{where.uri}: expected the file of {file.size} B that the run froze, found {found}")
