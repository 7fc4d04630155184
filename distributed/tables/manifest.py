"""The manifest of a pool: its files, listed once, each inspected, and frozen before anything else reads them.

Ray never sees a file that is not in the manifest: it skips 0-byte files silently and gives up on truncated ones.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distributed.runs.record import unfinished_folders
from distributed.schema import IMAGE, NO_METADATA, POOL, check_schema, pick_metadata
from distributed.storage.location import Location, StoredFile, list_files, read_again, read_versioned
from distributed.storage.threads import ask_at_once
from distributed.tables.ids import Hashes, doubled, hash_ids
from distributed.tables.parquet import hash_footer, open_table
from distributed.tables.references import has_references
from model.errors import DamagedError, InputError, RunFailedError
from model.json_text import parse_json

# From so many files on, or so many bytes, other machines are asked to help, where there are any: the hashes of ten
# million ids are 80 MB.
_MANY_FILES, _MANY_BYTES = 5_000, 2**38
_ID_ROWS, _ID_BYTES = 65_536, 2**26  # ids that are hashed at once
# As many rows are read at once as take no more than these bytes if each has all that is stored: rows may share it.
_READ_ROWS, _READ_BYTES = 4096, 2**30
_LONGEST_ID = 4096  # bytes: what a path may have
REFERENCE_BYTES = 128 * 2**10  # what an image that a row refers to counts as where work is planned

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
    has_references: bool = False  # most images lie elsewhere: the bytes above say little of what a row costs

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.row_group_rows)

    def as_json(self) -> dict[str, object]:
        """The file as it is kept with the run."""
        kept = {name: getattr(self, name) for name in _KEPT}  # asdict() takes a minute for 100,000 files
        return {**kept, "has_references": True} if self.has_references else kept

    @cached_property
    def file_id(self) -> str:
        """Hash of name, version and shape: what was scored of this file holds for no other."""
        identity = [self.path, self.size, self.version, self.row_group_rows]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


_KEPT = [field.name for field in fields(PoolFile) if field.name != "has_references"]


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
        """Uncompressed bytes of the row groups that the segment lies in; of references, about those of the images."""
        if self.file.has_references:
            return (self.stop - self.start) * REFERENCE_BYTES
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
    image_root: Location | None = None  # what references name files of; None: the pool's own folder

    @property
    def images(self) -> Location:
        """The folder that references are below."""
        return self.image_root or self.location

    @property
    def num_rows(self) -> int:
        """Rows of all readable files."""
        return sum(file.num_rows for file in self.files)

    @property
    def segments(self) -> list[Segment]:
        """All rows: a segment for each file that has any."""
        return [Segment(file, 0, file.num_rows) for file in self.files if file.num_rows]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, sizes, versions and row counts: the same pool, the same fingerprint.

        Another image root makes it another pool, where one is named.
        """
        root = {"image_root": self.image_root.absolute_uri} if self.image_root else {}
        return hashlib.sha256(json.dumps({**self.as_json(), **root}, sort_keys=True).encode()).hexdigest()[:16]

    def as_json(self) -> dict[str, object]:
        """The files, for the fingerprint."""
        return {
            "files": [file.as_json() for file in self.files],
            "bad_files": [asdict(file) for file in self.bad_files],
        }

    def as_bytes(self) -> bytes:
        """The manifest as it is kept with the run, in JSON; `read_manifest` reads it."""
        metadata = base64.b64encode(self.metadata.serialize().to_pybytes()).decode()
        return json.dumps({**self.as_json(), "metadata": metadata}).encode()


def read_manifest(file: Location, location: Location) -> Manifest | None:
    """The manifest of the pool at `location` that a run kept in a file.

    None where there is none, or another version of this code wrote it: then all files are looked into.

    Raises:
        RunFailedError: the store failed.
    """
    found = read_versioned(file)
    try:
        kept = parse_json(found[0]) if found else {}
        return Manifest(
            location=location,
            files=tuple(map(_parse_file, kept["files"])),
            bad_files=tuple(BadFile(**each) for each in kept["bad_files"]),
            metadata=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(kept["metadata"]))),
        )
    except (KeyError, TypeError, ValueError):  # Arrow's and JSON's errors are ValueErrors
        return None


def _parse_file(kept: dict[str, Any]) -> PoolFile:
    rows, sizes = (tuple(map(int, kept[name])) for name in ("row_group_rows", "row_group_bytes"))
    return PoolFile(**{**kept, "row_group_rows": rows, "row_group_bytes": sizes})


class _Inspected(NamedTuple):
    file: PoolFile
    metadata: pa.Schema


class Spread(Protocol):
    """Ways to look into many files at once: in this process, or by tasks on a cluster.

    A function is given some of the items, and gives what it found of each, in order.
    """

    def inspect(
        self, function: Callable[[Sequence[Any]], tuple[list[Any], Hashes]], items: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """The function's findings for all items; and the hashes of ids, wherever they are."""

    def doubles(self, hashes: Sequence[Any], *, num_rows: int) -> Hashes:
        """The hashes, of those that `inspect` gave, that occur more than once."""

    def run(self, function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:
        """The function's findings for all items."""


class Here:
    """The same in this process."""

    def inspect(  # noqa: D102 - see Spread, as for all of these
        self, function: Callable[[Sequence[Any]], tuple[list[Any], Hashes]], items: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        found, hashes = function(items)
        return found, [hashes]

    def doubles(self, hashes: Sequence[Any], *, num_rows: int) -> Hashes:  # noqa: D102
        del num_rows
        return doubled(hashes)

    def run(self, function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]) -> list[Any]:  # noqa: D102
        return function(items)


class UnusablePoolError(InputError):
    """A pool of which nothing can be scored: not one row can be read, or the ids are not what ids must be."""


def freeze_pool(
    location: Location,
    *,
    schema: pa.Schema | ExpectSchema = POOL,
    metadata: Sequence[str] = (),
    may_be_empty: bool = False,
    may_repeat: bool = False,
    files: Sequence[StoredFile] | None = None,
    earlier: Manifest | None = None,
    spread: Callable[[], Spread] = Here,
    image_root: Location | None = None,
) -> Manifest:
    """Lists the files once and inspects the footer and the ids of each; an unusable file is recorded with its reason.

    A file that fails a checksum, or is shorter than it was listed, is read again before it counts as damaged. Ids are
    compared by hashes: eight bytes a row, in this process or, of a large pool, wherever `spread` has them.

    Args:
        location: a folder of Parquet files, or one file.
        schema: columns that each file must have; or a function that says which, from those that it has and its path.
        metadata: further columns that each must have, of the type that they have in the first.
        may_be_empty: without a row it is a pool too.
        may_repeat: so it is with an id that occurs twice.
        files: the files to freeze, as they were listed; None: all. One that is gone since is bad.
        earlier: a manifest of this pool. Where none but its files are there, unchanged, no file is opened. Else all
            are: the ids of new files are compared with those of the others.
        spread: gives the ways to look into many files; asked once, for a large pool.
        image_root: the folder that references are below; None: the pool's own.

    Raises:
        UnusablePoolError: no file can be used, there is no row, or a sample_id is null, too long, no text or there
                twice.
        InputError: nothing is there, or an output of ours at or below the location is unfinished.
        RunFailedError: the store failed.
    """
    location, stored = _list_tables(location) if files is None else (location, list(files))
    known = _unchanged(location, stored, earlier, metadata)
    unknown = [file for file in stored if file.path not in known]
    is_large = len(unknown) >= _MANY_FILES or sum(file.size for file in unknown) >= _MANY_BYTES
    ways = spread() if is_large else Here()
    inspect = partial(_inspect_all, location, schema=schema, metadata=metadata)
    looked_into, hashes = ways.inspect(inspect, unknown)
    if known and any(isinstance(each, _Inspected) for each in looked_into):
        others = [file for file in stored if file.path in known]
        inspected, more = ways.inspect(inspect, others)
        known, hashes = dict(zip((file.path for file in others), inspected, strict=True)), [*hashes, *more]
    known |= zip((file.path for file in unknown), looked_into, strict=True)
    found = _agreeing_on_metadata([known[file.path] for file in stored])
    good = [each for each in found if isinstance(each, _Inspected)]
    bad = [each for each in found if isinstance(each, BadFile)]
    if not good:
        raise UnusablePoolError(f"{location.uri}: no readable file; {bad[0].path}: {bad[0].reason}")
    manifest = Manifest(
        location=location,
        files=tuple(each.file for each in good),
        bad_files=tuple(bad),
        metadata=good[0].metadata,
        image_root=image_root,
    )
    if not manifest.num_rows and not may_be_empty:
        raise UnusablePoolError(f"{location.uri}: expected at least one row, found none in {len(good)} files")
    if not may_repeat and len(suspects := ways.doubles(hashes, num_rows=manifest.num_rows)):
        _refuse_doubles(manifest, suspects, ways)
    return manifest


def _unchanged(
    location: Location, stored: Sequence[StoredFile], earlier: Manifest | None, metadata: Sequence[str]
) -> dict[str, _Inspected | BadFile]:
    """The files that the earlier manifest has as they are, by full path."""
    if earlier is None or earlier.metadata.names != list(metadata):
        return {}
    versions = {file.path: (file.size, file.version) for file in stored}
    known = ((f"{location.path}/{file.path}", file) for file in earlier.files)
    return {
        path: _Inspected(file, earlier.metadata)
        for path, file in known
        if versions.get(path) == (file.size, file.version)
    }


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


def _inspect_all(
    location: Location, stored: Sequence[StoredFile], *, schema: pa.Schema | ExpectSchema, metadata: Sequence[str]
) -> tuple[list[_Inspected | BadFile], Hashes]:
    """The files as they are, in order; and the hashes of the ids of all, sorted."""

    def inspect(file: StoredFile) -> tuple[_Inspected | BadFile, Hashes]:
        return _inspect(location, file, schema=schema, metadata=metadata)

    inspected = ask_at_once(location, inspect, stored)
    hashes = np.concatenate([np.empty(0, np.uint64), *(each for _, each in inspected)])
    hashes.sort()
    return [each for each, _ in inspected], hashes


def _inspect(
    location: Location, stored: StoredFile, *, schema: pa.Schema | ExpectSchema, metadata: Sequence[str]
) -> tuple[_Inspected | BadFile, Hashes]:
    path, none = stored.path[len(location.path) + 1 :], np.empty(0, np.uint64)
    if not stored.size:
        return BadFile(path=path, reason="empty file"), none

    def pick(reader: pq.ParquetFile) -> tuple[pa.Schema, Hashes]:
        return pick_metadata(reader.schema_arrow, metadata, where=path), _read_hashes(reader, path)

    try:
        file, (kept, hashes) = freeze_file(
            Location(location.filesystem, stored.path, path), stored, path=path, schema=schema, pick=pick
        )
        return _Inspected(file, kept), hashes
    except _UnusableIdError:
        raise
    except InputError as error:
        return BadFile(path=path, reason=str(error).removeprefix(f"{path}: ")), none
    except RunFailedError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return BadFile(path=path, reason="no longer there"), none


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
        with open_table(where, size=stored.size, version=stored.version) as reader:
            expected = schema if isinstance(schema, pa.Schema) else schema(reader.schema_arrow, path)
            check_schema(reader.schema_arrow, expected, where=path)
            return _describe(reader, stored, path=path), pick(reader)

    return read_again(look, where)


def _describe(reader: pq.ParquetFile, stored: StoredFile, *, path: str) -> PoolFile:
    footer = reader.metadata
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    image_bytes = sum(_stored_bytes(reader, IMAGE))
    if footer.num_rows != sum(group.num_rows for group in groups):  # footers have no checksum, and pyarrow reads on
        raise DamagedError("damaged: the footer's row count is not that of its row groups")
    return PoolFile(
        path=path,
        size=stored.size,
        version=stored.version,
        row_group_rows=tuple(group.num_rows for group in groups),
        row_group_bytes=tuple(group.total_byte_size for group in groups),
        footer=hash_footer(footer),
        has_references=has_references(reader.schema_arrow, num_rows=footer.num_rows, image_bytes=image_bytes),
    )


class _UnusableIdError(UnusablePoolError):
    """An id that no row may have: the writer is at fault, not the disk."""


def _read_hashes(reader: pq.ParquetFile, path: str) -> Hashes:
    """(rows,) hashes of the ids of a file."""
    parts = [np.empty(0, np.uint64)]
    for found in _read_ids(reader):
        if found.null_count:
            raise _UnusableIdError(f"{path}: column 'sample_id': expected no nulls, found some")
        if (longest := pc.max(pc.binary_length(found)).as_py()) > _LONGEST_ID:
            raise _UnusableIdError(f"{path}: column 'sample_id': expected at most {_LONGEST_ID} B, found {longest} B")
        ids = found.combine_chunks()
        _check_text(ids, path)
        parts.append(hash_ids(ids))
    hashes = np.concatenate(parts)
    if len(hashes) != reader.metadata.num_rows:  # a damaged footer may hide rows of a column chunk and read well
        raise DamagedError(f"damaged: expected {reader.metadata.num_rows} ids, found {len(hashes)}")
    return hashes


def _read_ids(reader: pq.ParquetFile) -> Iterator[pa.ChunkedArray]:
    """All ids of a file, `_ID_ROWS` at a time, or fewer where they are long."""
    at_once = min(_READ_ROWS, 1 + _READ_BYTES // (1 + max(_stored_bytes(reader, "sample_id"), default=0)))
    waiting: list[pa.Array] = []
    num_rows = num_bytes = 0
    for batch in reader.iter_batches(at_once, columns=["sample_id"]):
        waiting.append(batch["sample_id"])
        num_rows, num_bytes = num_rows + len(batch), num_bytes + batch.nbytes
        if num_rows >= _ID_ROWS or num_bytes >= _ID_BYTES:
            yield pa.chunked_array(waiting)
            waiting, num_rows, num_bytes = [], 0, 0
    if waiting:
        yield pa.chunked_array(waiting)


def _stored_bytes(reader: pq.ParquetFile, column: str) -> list[int]:
    """Bytes of a column in each row group, uncompressed, as the footer says."""
    leaves = [i for i in range(len(reader.schema)) if reader.schema.column(i).path == column]
    groups = map(reader.metadata.row_group, range(reader.num_row_groups))
    return [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]


def _check_text(ids: pa.Array, path: str) -> None:
    try:
        ids.validate(full=True)
    except pa.ArrowInvalid as invalid:
        try:
            ids.to_pylist()
        except UnicodeDecodeError as error:
            raise _UnusableIdError(
                f"{path}: column 'sample_id': expected UTF-8, found {bytes(error.object)!r}"
            ) from error
        raise DamagedError(f"damaged: {invalid}") from invalid


def _refuse_doubles(manifest: Manifest, suspects: Hashes, ways: Spread) -> None:
    """Compares the ids themselves, of those whose hashes agree.

    Raises:
        UnusablePoolError: an id occurs twice.
    """
    location, seen = manifest.location, dict[str, str]()
    find = partial(_find_suspects, location, suspects=suspects)
    for path, ids in ways.run(find, [file.path for file in manifest.files]):
        for sample_id in ids:
            if sample_id in seen:
                raise _UnusableIdError(
                    f"{location.uri}: column 'sample_id': expected unique values, "
                    f"found {sample_id!r} twice ({seen[sample_id]}, {path})"
                )
            seen[sample_id] = path


def _find_suspects(location: Location, paths: Sequence[str], *, suspects: Hashes) -> list[tuple[str, list[str]]]:
    """Ids of each file whose hashes are among the suspects, by path."""

    def read(where: Location) -> list[str]:
        found: list[str] = []
        with open_table(where) as reader:
            for ids in _read_ids(reader):
                is_suspect = np.isin(hash_ids(ids.combine_chunks()), suspects)
                found += ids.filter(pa.array(is_suspect)).to_pylist()
        return found

    def find(path: str) -> tuple[str, list[str]]:
        return path, read_again(read, location.join(*path.split("/")))

    return ask_at_once(location, find, paths)
