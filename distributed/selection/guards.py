"""What a row must be to be selected at all: of a loss within bounds, as a condition says, and not excluded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.conditions import condition_columns, parse_condition
from distributed.selection.exclusion import IdSet, read_ids
from distributed.tables.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What must hold of a row; travels to other processes.

    Bounds are inclusive and, like the losses, float32: a loss that is shown as 0.1 is not under 0.1.
    """

    min_loss: float | None = None
    max_loss: float | None = None
    where: str | None = None
    excluded: tuple[Manifest, ...] = ()  # tables of ids
    taken: pa.ChunkedArray | None = None  # ids that were selected before

    @property
    def columns(self) -> list[str]:
        """The columns that decide."""
        columns = ["predicted_loss", "error", *([] if self.where is None else condition_columns(self.where))]
        if self.excluded or self.taken is not None:
            columns.append("sample_id")
        return list(dict.fromkeys(columns))


class Screen:
    """A guard at work in one process, on tables of one schema.

    Args:
        guard: what must hold.
        schema: of the tables.
        excluded: the ids of the guard's tables, where they are read already.

    Raises:
        InputError: the condition is none or names a column that is not there, or an excluded table is damaged.
    """

    def __init__(self, guard: Guard, *, schema: pa.Schema, excluded: IdSet | None = None) -> None:
        self.columns = guard.columns
        self.min_loss = np.float32(-np.inf if guard.min_loss is None else guard.min_loss)
        self._max_loss = np.float32(np.inf if guard.max_loss is None else guard.max_loss)
        self._condition = None if guard.where is None else parse_condition(guard.where, schema)
        taken = IdSet([] if guard.taken is None else guard.taken.chunks)
        self._id_sets = [ids for ids in (taken, read_ids(guard.excluded) if excluded is None else excluded) if len(ids)]

    def passes_loss(self, loss: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Of each loss, whether it is a number within the bounds."""
        result: NDArray[np.bool_] = (loss >= self.min_loss) & (loss <= self._max_loss)  # NaN is not
        return result

    def keep(self, rows: pa.Table) -> pa.Table:
        """The rows that were scored and pass, in their order."""
        is_within = self.passes_loss(rows["predicted_loss"].to_numpy())  # a null becomes NaN
        rows = rows.filter(pc.and_(pa.array(is_within), rows["error"].is_null()))
        if self._condition is not None:
            rows = rows.filter(self._condition)
        for ids in self._id_sets:
            rows = rows.filter(pa.array(~ids.contains(rows["sample_id"])))
        return rows
