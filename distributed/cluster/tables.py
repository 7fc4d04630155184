"""Tables through Ray Data, by read tasks of our own.

Ray's own Parquet reader can't verify page checksums, skips 0-byte files and hides which row a row was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from distributed.storage.location import Location
from distributed.tables.manifest import Manifest
from distributed.tables.shuffle import CHUNK_BYTES, Chunk, plan_chunks, read_chunk


def read_shuffled(
    manifest: Manifest, *, columns: Sequence[str], seed: int, chunk_bytes: int = CHUNK_BYTES
) -> ray.data.Dataset:
    """All rows of a table, a block a chunk, in another random order each time the dataset runs: once an epoch.

    A chunk is in random order and has rows from everywhere: whichever worker takes it, and when, there is no need for
    another shuffle.

    Args:
        manifest: the table.
        columns: of it.
        seed: of all orders.
        chunk_bytes: see `plan_chunks`; a task has twice as much in memory.
    """

    def plan(order: int) -> list[_Piece]:
        return [
            _Piece(
                partial(_read_alone, manifest.location, chunk, columns, manifest.images),
                len(chunk.rows),
                chunk.num_bytes,
            )
            for chunk in plan_chunks(manifest, chunk_bytes=chunk_bytes, seed=order)
        ]

    return _dataset(plan, seed=seed)


class _Piece(NamedTuple):
    """Rows that one task reads."""

    read: Callable[[], Iterable[pa.Table]]
    num_rows: int
    num_bytes: int  # uncompressed


class _TableSource(Datasource):
    """Reads pieces of a table, planned for each run of the dataset from a seed of its own."""

    def __init__(self, plan: Callable[[int], list[_Piece]], *, seed: int) -> None:
        super().__init__()
        self._plan = plan
        self._rng = np.random.default_rng(seed)
        self.sizes = [piece.num_bytes for piece in plan(0)]  # as many pieces whatever the seed

    def estimate_inmemory_data_size(self) -> int:
        """Uncompressed bytes of all pieces."""
        return sum(self.sizes)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a piece, whatever the parallelism."""
        del parallelism, data_context
        return [
            ReadTask(
                read,
                BlockMetadata(num_rows=num_rows, size_bytes=num_bytes, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for read, num_rows, num_bytes in self._plan(int(self._rng.integers(2**63)))
        ]


def _dataset(plan: Callable[[int], list[_Piece]], *, seed: int) -> ray.data.Dataset:
    source = _TableSource(plan, seed=seed)
    return ray.data.read_datasource(source, override_num_blocks=len(source.sizes))  # else Ray cuts blocks to crumbs


def _read_alone(location: Location, chunk: Chunk, columns: Sequence[str], images: Location) -> list[pa.Table]:
    return [read_chunk(location, chunk, columns=columns, images=images)]
