"""Where Ray Data's scores end: each write task leaves one part and tells the driver what is in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink, WriteResult

from distributed.scores import ScoresPart, write_part
from distributed.storage import Location

PART_ROWS = 1_000_000  # about 40 MB: few enough files to list, small enough to sort in a task


class ScoresSink(Datasink[ScoresPart]):
    """Writes parts under one attempt's folder. A retried task writes the same name again, so nothing counts twice."""

    def __init__(self, out: Location, *, attempt: str) -> None:
        self._out = out
        self._attempt = attempt
        self.parts: list[ScoresPart] = []  # on the driver, when the write is complete

    def write(self, blocks: Iterable[Any], ctx: Any) -> ScoresPart:
        """One part from all blocks of a task."""
        rows = pa.concat_tables([BlockAccessor.for_block(block).to_arrow() for block in blocks])
        return write_part(self._out, f"{self._attempt}/part-{ctx.task_idx:06d}.parquet", rows)

    def on_write_complete(self, write_result: WriteResult[ScoresPart]) -> None:
        """Keeps what the successful attempt of each task wrote."""
        self.parts = list(write_result.write_returns)

    @property
    def min_rows_per_write(self) -> int:
        """Rows that Ray gathers for a task."""
        return PART_ROWS
