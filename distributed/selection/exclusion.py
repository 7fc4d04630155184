"""Ids that must not be selected: read once from tables of any kind that name samples, looked up exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.storage.location import Location, read_again
from distributed.tables.manifest import Manifest, PoolFile, freeze_pool
from distributed.tables.parquet import hash_footer, open_table
from model.errors import DamagedError, InputError

_THREADS = 16  # that read files of ids
_HASHED_ROWS = 65_536  # ids that are Python objects at a time

_IDS = pa.schema([pa.field("sample_id", pa.string())])


def freeze_ids(location: Location) -> Manifest:
    """The files of a table that names samples: pools, labelled tables, selections.

    Raises:
        InputError: there is none, or one of its files can't be read or has no sample_id.
    """
    manifest = freeze_pool(location, schema=_IDS, may_be_empty=True)
    for file in manifest.bad_files:  # its ids are unknown, and might be selected again
        raise InputError(f"{location.uri}: expected only readable files to exclude, found {file.path}: {file.reason}")
    return manifest


def read_ids(tables: Sequence[Manifest]) -> IdSet:
    """The ids of some tables.

    Raises:
        InputError: a file is damaged, or is not the one that was frozen.
        RunFailedError: the store failed.
    """
    files = [(manifest.location, file) for manifest in tables for file in manifest.files]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ids") as threads:
        chunks = threads.map(lambda each: _read_ids_of(*each), files)
        return IdSet(ids for chunk in chunks for ids in chunk.chunks)


def _read_ids_of(location: Location, file: PoolFile) -> pa.ChunkedArray:
    def read(where: Location) -> pa.ChunkedArray:
        with open_table(where) as reader:
            if hash_footer(reader.metadata) != file.footer:
                raise DamagedError(f"{where.uri}: expected the file as it was when the run began, found another")
            ids = reader.read(columns=["sample_id"])["sample_id"]
        if len(ids) != file.num_rows:
            raise DamagedError(f"{where.uri}: damaged: expected {file.num_rows} ids, found {len(ids)}")
        return ids

    return read_again(read, location.join(*file.path.split("/")))


class IdSet:
    """Ids, hashed and sorted once: a look-up costs the same for ten ids and for ten million.

    Holds the texts and 16 bytes an id. Hashes only say where to look; the texts decide.
    """

    def __init__(self, chunks: Iterable[pa.Array]) -> None:
        texts, hashes = [pa.array([], pa.large_string())], [np.empty(0, np.int64)]
        for ids in chunks:
            texts.append(ids.cast(pa.large_string()))
            hashes += [_hash(ids.slice(start, _HASHED_ROWS)) for start in range(0, len(ids), _HASHED_ROWS)]
        self._ids = pa.concat_arrays(texts)
        found = np.concatenate(hashes)
        self._order = np.argsort(found, kind="stable")
        self._hashes = found[self._order]

    def __len__(self) -> int:
        """How many, repeated ones counted each time."""
        return len(self._ids)

    def contains(self, sample_ids: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
        """Of each id, whether it is one of these."""
        if not len(self._ids):
            return np.zeros(len(sample_ids), dtype=np.bool_)
        wanted = _hash(sample_ids)
        first = np.searchsorted(self._hashes, wanted)
        is_hit: NDArray[np.bool_] = self._hashes[np.minimum(first, len(self._hashes) - 1)] == wanted
        if is_hit.any():
            start, end = first[is_hit], np.searchsorted(self._hashes, wanted[is_hit], side="right")
            known = self._ids.take(self._order[np.unique(_ranges(start, end - start))])
            hits = sample_ids.filter(pa.array(is_hit)).cast(pa.large_string())
            is_hit[is_hit] = pc.is_in(hits, value_set=known).to_numpy(zero_copy_only=False)
        return is_hit


def _ranges(start: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … of each, `count` long."""
    before = np.cumsum(count) - count
    numbers: NDArray[np.int64] = np.repeat(start - before, count) + np.arange(count.sum())
    return numbers


def _hash(sample_ids: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Python's own hash of the bytes: it differs from process to process, and never leaves one."""
    values = sample_ids.cast(pa.large_binary()).to_pylist()
    return np.fromiter(map(hash, values), np.int64, len(values))
