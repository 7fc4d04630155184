"""Where Ray Data's scores end: each write task leaves one part, which says itself what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from ray.data.block import BlockAccessor
from ray.data.datasource import Datasink

from distributed.tables.scores import ScoresPart

WritePart = Callable[[pa.Table], ScoresPart | None]


class ScoresSink(Datasink[None]):
    """Writes what a write task is given, as soon as it is given: what is written is never scored again.

    A retried task writes the same rows, and so the same part, again. What was written is found out afterwards from
    storage, the same way after a run that was killed.
    """

    def __init__(self, write: WritePart) -> None:
        self._write = write

    def write(self, blocks: Iterable[Any], ctx: Any) -> None:
        """One part from all blocks of a task."""
        del ctx
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        with_rows = [table for table in tables if len(table)]  # one without has no columns either, in Ray Data
        if with_rows:
            self._write(pa.concat_tables(with_rows))
