"""The pool rows of a selection: found by file and row, row groups pruned, checksums verified, ids compared.

A file that is gone, damaged or another one costs its own rows, each with the reason; a store that fails ends the call.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distributed.evaluation.slices import is_sliceable
from distributed.runs.progress import Progress
from distributed.schema import POOL, check_schema
from distributed.storage.location import Location, read_again
from distributed.tables.manifest import PoolFile, Segment, describe_file
from distributed.tables.parquet import open_table
from distributed.tables.reader import Bin, read_bin
from model.errors import InputError, RunFailedError

INDEX = "index"  # column: which of the selected rows this is
_ROWS = 64
_NOT_METADATA = {*POOL.names, "keypoints", "visibility", "embedding"}


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Where the images of a selection lie."""

    location: Location
    footers: Mapping[str, str] = field(default_factory=dict)  # by file, what the hash of its footer must be, if known


@dataclass
class Missing:
    """Selected rows whose pool rows were not found, and why."""

    reasons: dict[int, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Rows by reason, the most frequent first."""
        return dict(sorted(Counter(self.reasons.values()).items(), key=lambda item: (-item[1], item[0])))


def read_rows(pools: list[Pool], selected: pa.Table, *, missing: Missing, progress: Progress) -> Iterator[pa.Table]:
    """The pool rows of the selected ones, some at a time, file by file: `POOL`, metadata and `INDEX`.

    Each row is looked for in all pools until one has its id at its place; `missing` learns of those that none has.

    Raises:
        RunFailedError: the store failed.
    """
    found = np.zeros(len(selected), bool)
    for pool in pools:
        for rows in _gathered(_read_pool(pool, selected, np.flatnonzero(~found), missing)):
            found[rows[INDEX].to_numpy()] = True
            for index in rows[INDEX].to_pylist():  # now: whoever reads them may find their images unreadable
                missing.reasons.pop(index, None)
            progress("images", int(found.sum()), len(selected))
            yield rows


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, at least `_ROWS` at a time where files agree on their columns: a model computes whole batches."""
    waiting: list[pa.Table] = []
    for table in tables:
        if waiting and not waiting[0].schema.equals(table.schema):
            yield pa.concat_tables(waiting)
            waiting = []
        waiting.append(table)
        if sum(map(len, waiting)) >= _ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _read_pool(pool: Pool, selected: pa.Table, wanted: NDArray[np.int64], missing: Missing) -> Iterator[pa.Table]:
    paths = selected["pool_file"].to_pylist()
    ordered = sorted(wanted.tolist(), key=lambda index: paths[index] or "")
    for path, group in itertools.groupby(ordered, key=lambda index: paths[index]):
        indices = pa.array([*group], pa.int64())
        yield from _read_file(pool, path or "", selected.take(indices).append_column(INDEX, indices), missing)


def _read_file(pool: Pool, path: str, own: pa.Table, missing: Missing) -> Iterator[pa.Table]:
    """The rows of one file; those that are not found are noted."""
    left = set(own[INDEX].to_pylist())
    reason = "another sample is in its place"
    try:
        for rows in _matching(_Source(pool, path), own):
            left -= set(rows[INDEX].to_pylist())
            yield rows
    except InputError as error:
        reason = str(error)
    except RunFailedError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        reason = "the file is gone"
    missing.reasons.update(dict.fromkeys(left, f"{path}: {reason}"))


def _matching(source: _Source, own: pa.Table) -> Iterator[pa.Table]:
    """The rows of a file that are the wanted ones, by number and id."""
    names = ("pool_row", "sample_id", INDEX)
    wanted = {
        (number, name): index for number, name, index in zip(*(own[name].to_pylist() for name in names), strict=True)
    }
    bin_ = Bin(segments=tuple(source.segments(np.unique(own["pool_row"].to_numpy()))))
    for rows in read_bin(source.pool.location, bin_, columns=[*POOL.names, *source.metadata]):
        keys = zip(rows["pool_row"].to_pylist(), rows["sample_id"].to_pylist(), strict=True)
        indices = pa.array([wanted.get(key) for key in keys], pa.int64())
        if indices.null_count < len(indices):
            hits = rows.drop_columns(["pool_file", "pool_row"]).append_column(INDEX, indices)
            yield hits.filter(indices.is_valid())


@dataclass(frozen=True)
class _Source:
    """A file of a pool as it is now; checked against what it was where that is known."""

    pool: Pool
    path: str

    @cached_property
    def _opened(self) -> tuple[PoolFile, list[str]]:
        names = self.path.split("/")
        if set(names) & {"", ".", ".."}:
            raise InputError("expected a path below the pool")
        where = self.pool.location.join(*names)
        stored = where.stat()
        if stored is None:
            raise InputError("the file is gone")

        def read(where: Location) -> tuple[PoolFile, list[str]]:
            with open_table(where, size=stored.size) as reader:
                check_schema(reader.schema_arrow, POOL, where=self.path)
                file = describe_file(reader.metadata, stored, path=self.path)
                return file, metadata_columns(reader.schema_arrow)

        file, metadata = read_again(read, where)
        if self.pool.footers.get(self.path, file.footer) != file.footer:
            raise InputError("the file has changed since it was scored")
        return file, metadata

    @property
    def metadata(self) -> list[str]:
        """Further columns."""
        return self._opened[1]

    def segments(self, numbers: NDArray[np.int64]) -> Iterator[Segment]:
        """The row groups that hold any of these rows, adjacent ones as one."""
        file = self._opened[0]
        ends = np.cumsum(file.row_group_rows)
        groups = np.unique(np.searchsorted(ends, numbers[numbers < file.num_rows], side="right"))
        for run in np.split(groups, np.flatnonzero(np.diff(groups) > 1) + 1):
            if len(run):
                yield Segment(file, int(ends[run[0]] - file.row_group_rows[run[0]]), int(ends[run[-1]]))


def metadata_columns(schema: pa.Schema) -> list[str]:
    """The columns beside the contract's that have values to show."""
    return [field.name for field in schema if field.name not in _NOT_METADATA and is_sliceable(field.type)]
