"""Tables as Ray Data sources: a pool in order, a read task a bin; a labelled table in random order, a task a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from distributed.storage.location import Location
from distributed.tables.manifest import Manifest
from distributed.tables.reader import Bin
from distributed.tables.shuffle import CHUNK_BYTES, Chunk, plan_chunks, read_chunk

ReadBin = Callable[[Bin], Iterator[pa.Table]]


class PoolSource(Datasource):
    """Reads bins of a manifest, and nothing else.

    Ray's own Parquet reader can't verify page checksums, skips 0-byte files and hides which row a row was. Use it with
    `override_num_blocks=source.num_bins`, else Ray cuts the blocks to crumbs.

    Args:
        bins: one read task each.
        read: gives the rows of a bin; travels to the workers, with all it holds.
    """

    def __init__(self, bins: Sequence[Bin], *, read: ReadBin) -> None:
        super().__init__()
        self._bins = list(bins)
        self._read = read

    @property
    def num_bins(self) -> int:
        """How many read tasks there are."""
        return len(self._bins)

    def estimate_inmemory_data_size(self) -> int:
        """Uncompressed bytes of all bins."""
        return sum(bin_.num_bytes for bin_ in self._bins)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a bin, whatever the parallelism: the bins decide it."""
        del parallelism, data_context
        return [
            ReadTask(
                partial(self._read, bin_),
                BlockMetadata(num_rows=bin_.num_rows, size_bytes=bin_.num_bytes, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for bin_ in self._bins
        ]


class ShuffledSource(Datasource):
    """Reads a table in chunks, planned anew each time that the dataset runs, which is once an epoch of training.

    A chunk is in random order and has rows from everywhere: whoever takes it, and when, needs no shuffle behind it.

    Args:
        manifest: the table; travels to where the dataset is run.
        columns: of it.
        seed: of all orders.
        chunk_bytes: see `plan_chunks`; a task has twice as much in memory.
    """

    def __init__(
        self, manifest: Manifest, *, columns: Sequence[str], seed: int, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        super().__init__()
        self._manifest, self._columns, self._chunk_bytes = manifest, list(columns), chunk_bytes
        self._rng = np.random.default_rng(seed)
        self.num_bins = len(plan_chunks(manifest, chunk_bytes=chunk_bytes, seed=0))  # as many whatever the seed

    def estimate_inmemory_data_size(self) -> int:
        """Uncompressed bytes of the table."""
        return sum(sum(file.row_group_bytes) for file in self._manifest.files)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a chunk of an order of this call's own."""
        del parallelism, data_context
        seed = int(self._rng.integers(2**63))
        return [
            ReadTask(
                partial(_read_alone, self._manifest.location, chunk, self._columns),
                BlockMetadata(num_rows=len(chunk.rows), size_bytes=chunk.num_bytes, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for chunk in plan_chunks(self._manifest, chunk_bytes=self._chunk_bytes, seed=seed)
        ]


def _read_alone(location: Location, chunk: Chunk, columns: Sequence[str]) -> list[pa.Table]:
    return [read_chunk(location, chunk, columns=columns)]
