"""The manifest of a pool: its files, listed once, each inspected, and frozen before anything else reads them.

Ray never sees a file that is not in the manifest: it skips 0-byte files silently and gives up on truncated ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed.runs.record import unfinished_folders
from distributed.schema import NO_METADATA, POOL, check_schema, pick_metadata
from distributed.storage.location import Location, StoredFile, list_files, read_again
from distributed.tables.parquet import hash_footer, open_table
from model.errors import DamagedError, InputError, RunFailedError

_THREADS = 16  # footers are small and stores are far: 50,000 files one after another would take an hour on S3
_ID_ROWS = 65_536  # ids that are read at once

ExpectSchema = Callable[[pa.Schema, str], pa.Schema]
Picked = TypeVar("Picked")


@dataclass(frozen=True, kw_only=True)
class PoolFile:
    """A readable file of the pool as it was when the manifest was frozen."""

    path: str  # below the pool's location
    size: int  # bytes
    version: str  # the store's: another one, another content
    row_group_rows: tuple[int, ...]
    row_group_bytes: tuple[int, ...]  # uncompressed
    footer: str  # hash of what the footer says: readers compare, since footers have no checksum

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_group_rows)

    @cached_property
    def file_id(self) -> str:
        """Hash of name, version and shape: what was scored of this file holds for no other."""
        identity = [self.path, self.size, self.version, self.row_group_rows]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class BadFile:
    """A file that cannot be read at all, and the reason."""

    path: str
    reason: str


class Segment(NamedTuple):
    """Consecutive rows of one file."""

    file: PoolFile
    start: int
    stop: int  # exclusive

    @property
    def num_bytes(self) -> int:
        """Uncompressed bytes of the row groups that the segment lies in."""
        return sum(self.file.row_group_bytes[group] for group, _, _ in self.pieces())

    def pieces(self) -> Iterator[tuple[int, int, int]]:
        """(row group, first row, end) of the parts that lie in one row group, rows counted in the group."""
        end = 0
        for group, num_rows in enumerate(self.file.row_group_rows):
            begin, end = end, end + num_rows
            first, last = max(self.start, begin), min(self.stop, end)
            if first < last:
                yield group, first - begin, last - begin


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files that a run reads, as they were when it began; later ones are not in it."""

    location: Location  # the folder that the paths are below
    files: tuple[PoolFile, ...]
    bad_files: tuple[BadFile, ...]
    metadata: pa.Schema = NO_METADATA  # further columns of all files that are of interest

    @property
    def num_rows(self) -> int:
        """Rows of all readable files."""
        return sum(file.num_rows for file in self.files)

    @property
    def segments(self) -> list[Segment]:
        """All rows: a segment for each file that has any."""
        return [Segment(file, 0, file.num_rows) for file in self.files if file.num_rows]

    @property
    def fingerprint(self) -> str:
        """Hash of names, sizes, versions and row counts: the same pool, the same fingerprint."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, object]:
        """The manifest as it is kept with the run."""
        return {
            "files": [asdict(file) for file in self.files],
            "bad_files": [asdict(file) for file in self.bad_files],
        }


class _Inspected(NamedTuple):
    file: PoolFile
    id_hashes: np.ndarray  # (rows,) uint64
    metadata: pa.Schema


class UnusablePoolError(InputError):
    """A pool of which nothing can be scored: not one row can be read, or the ids are not what ids must be."""


def freeze_pool(
    location: Location,
    *,
    schema: pa.Schema | ExpectSchema = POOL,
    metadata: Sequence[str] = (),
    may_be_empty: bool = False,
    files: Sequence[StoredFile] | None = None,
) -> Manifest:
    """Lists the files once and inspects the footer and the ids of each; an unusable file is recorded with its reason.

    A file that fails a checksum, or is shorter than it was listed, is read again before it counts as damaged. Eight
    bytes a row are in memory while ids are compared.

    Args:
        location: a folder of Parquet files, or one file.
        schema: columns that each file must have; or a function that says which, from those that it has and its path.
        metadata: further columns that each must have, of the type that they have in the first.
        may_be_empty: without a row it is a pool too.
        files: the files to freeze, as they were listed; None: all. One that is gone since is bad.

    Raises:
        UnusablePoolError: no file can be used, there is no row, or a sample_id is null or no text or occurs twice.
        InputError: nothing is there, or an output of ours at or below the location is unfinished.
        RunFailedError: the store failed.
    """
    location, stored = _list_tables(location) if files is None else (location, list(files))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="freeze") as threads:
        found = list(threads.map(lambda file: _inspect(location, file, schema=schema, metadata=metadata), stored))
    found = _agreeing_on_metadata(found)
    good = [each for each in found if isinstance(each, _Inspected)]
    bad = [each for each in found if isinstance(each, BadFile)]
    if not good:
        raise UnusablePoolError(f"{location.uri}: no readable file; {bad[0].path}: {bad[0].reason}")
    manifest = Manifest(
        location=location, files=tuple(each.file for each in good), bad_files=tuple(bad), metadata=good[0].metadata
    )
    if not manifest.num_rows and not may_be_empty:
        raise UnusablePoolError(f"{location.uri}: expected at least one row, found none in {len(good)} files")
    _check_unique_ids(location, good)
    return manifest


def _list_tables(location: Location) -> tuple[Location, list[StoredFile]]:
    """The folder and the Parquet files below it; a file given by name may be called anything."""
    stored = list_files(location, suffix="")
    if [file.path for file in stored] == [location.path]:
        return location.parent, stored
    unfinished = [location.uri + folder[len(location.path) :] for folder in unfinished_folders(stored)]
    if unfinished:
        raise InputError(f"{unfinished[0]}: expected a finished table, found an unfinished ingest: run it again")
    tables = [file for file in stored if file.path.endswith(".parquet")]
    if not tables:
        raise InputError(f"{location.uri}: expected Parquet files, found none")
    return location, tables


def _agreeing_on_metadata(found: list[_Inspected | BadFile]) -> list[_Inspected | BadFile]:
    """The inspected files; those whose metadata has other types than the first file's are turned into bad ones."""
    first = next((each for each in found if isinstance(each, _Inspected)), None)
    if first is None:
        return found
    return [
        each
        if isinstance(each, BadFile) or each.metadata.equals(first.metadata)
        else BadFile(path=each.file.path, reason=f"metadata: expected types as in {first.file.path}, found others")
        for each in found
    ]


def _inspect(
    location: Location, stored: StoredFile, *, schema: pa.Schema | ExpectSchema, metadata: Sequence[str]
) -> _Inspected | BadFile:
    path = stored.path[len(location.path) + 1 :]
    if not stored.size:
        return BadFile(path=path, reason="empty file")

    def pick(reader: pq.ParquetFile) -> tuple[pa.Schema, np.ndarray]:
        return pick_metadata(reader.schema_arrow, metadata, where=path), _hash_ids(reader, path)

    try:
        file, (kept, hashes) = freeze_file(
            Location(location.filesystem, stored.path, path), stored, path=path, schema=schema, pick=pick
        )
        return _Inspected(file, hashes, kept)
    except _UnusableIdError:
        raise
    except InputError as error:
        return BadFile(path=path, reason=str(error).removeprefix(f"{path}: "))
    except RunFailedError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return BadFile(path=path, reason="no longer there")


def freeze_file(
    where: Location,
    stored: StoredFile,
    *,
    path: str,
    schema: pa.Schema | ExpectSchema,
    pick: Callable[[pq.ParquetFile], Picked],
) -> tuple[PoolFile, Picked]:
    """The file as it is now, and what `pick` takes of it while it is open. A read that fails is tried again.

    Raises:
        InputError: the file is damaged, its footer contradicts itself, or it lacks a column of the schema.
        RunFailedError: the store failed.
    """

    def look(where: Location) -> tuple[PoolFile, Picked]:
        with open_table(where, size=stored.size) as reader:
            expected = schema if isinstance(schema, pa.Schema) else schema(reader.schema_arrow, path)
            check_schema(reader.schema_arrow, expected, where=path)
            return _describe(reader.metadata, stored, path=path), pick(reader)

    return read_again(look, where)


def _describe(footer: pq.FileMetaData, stored: StoredFile, *, path: str) -> PoolFile:
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    if footer.num_rows != sum(group.num_rows for group in groups):  # footers have no checksum, and pyarrow reads on
        raise DamagedError("damaged: the footer's row count is not that of its row groups")
    return PoolFile(
        path=path,
        size=stored.size,
        version=stored.version,
        row_group_rows=tuple(group.num_rows for group in groups),
        row_group_bytes=tuple(group.total_byte_size for group in groups),
        footer=hash_footer(footer),
    )


class _UnusableIdError(UnusablePoolError):
    """An id that no row may have: the writer is at fault, not the disk."""


def _hash_ids(reader: pq.ParquetFile, path: str) -> np.ndarray:
    parts = [np.empty(0, np.uint64)]
    for batch in reader.iter_batches(_ID_ROWS, columns=["sample_id"]):
        if batch["sample_id"].null_count:
            raise _UnusableIdError(f"{path}: column 'sample_id': expected no nulls, found some")
        try:
            parts.append(_id_hashes(batch["sample_id"].to_pylist()))
        except UnicodeDecodeError as error:
            raise _UnusableIdError(
                f"{path}: column 'sample_id': expected UTF-8, found {bytes(error.object)!r}"
            ) from error
    hashes = np.concatenate(parts)
    if len(hashes) != reader.metadata.num_rows:  # a damaged footer may hide rows of a column chunk and read well
        raise DamagedError(f"damaged: expected {reader.metadata.num_rows} ids, found {len(hashes)}")
    return hashes


def _id_hashes(ids: list[str]) -> np.ndarray:
    """(rows,) 64-bit hashes that hold in this process alone."""
    return np.fromiter(map(hash, ids), np.int64, len(ids)).view(np.uint64)


def _check_unique_ids(location: Location, inspected: Sequence[_Inspected]) -> None:
    """Compares 64-bit hashes, and the ids themselves only where two hashes agree."""
    hashes = np.concatenate([each.id_hashes for each in inspected])
    hashes.sort()
    suspects = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
    if not len(suspects):
        return
    seen: dict[str, str] = {}
    with_suspects = [each.file.path for each in inspected if np.isin(each.id_hashes, suspects).any()]
    for path, sample_id in _iter_suspects(location, with_suspects, suspects):
        if sample_id in seen:
            raise _UnusableIdError(
                f"{location.uri}: column 'sample_id': expected unique values, "
                f"found {sample_id!r} twice ({seen[sample_id]}, {path})"
            )
        seen[sample_id] = path


def _iter_suspects(location: Location, paths: Iterable[str], suspects: np.ndarray) -> Iterator[tuple[str, str]]:
    def read(where: Location) -> list[str]:
        found = []
        with open_table(where) as reader:
            for batch in reader.iter_batches(_ID_ROWS, columns=["sample_id"]):
                ids = batch["sample_id"].to_pylist()
                found += [ids[index] for index in np.flatnonzero(np.isin(_id_hashes(ids), suspects))]
        return found

    for path in paths:
        for sample_id in read_again(read, location.join(*path.split("/"))):
            yield path, sample_id
