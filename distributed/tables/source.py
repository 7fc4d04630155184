"""The pool as a Ray Data source: one read task a bin of the frozen manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from distributed.tables.reader import Bin

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


class ShuffledSource(PoolSource):
    """Reads the same bins in another order each time that the dataset runs, which is once an epoch of training.

    Rows inside bins keep their order, and a bin its neighbours in time: shuffle within a buffer behind it.

    Args:
        bins: one read task each; small ones shuffle better.
        read: gives the rows of a bin.
        seed: of all orders.
    """

    def __init__(self, bins: Sequence[Bin], *, read: ReadBin, seed: int) -> None:
        super().__init__(bins, read=read)
        self._rng = np.random.default_rng(seed)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a bin, in an order of this call's own."""
        tasks = super().get_read_tasks(parallelism, per_task_row_limit, data_context)
        return [tasks[index] for index in self._rng.permutation(len(tasks))]
