"""Pool rows in, scores rows out: Arrow around the predictor. Imports without Ray, so that debugging needs none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from distributed.bundles import read_bundle
from distributed.schema import SCORES
from distributed.storage import Location
from model.predictor import Box, Predictor


class LossScorer:
    """Predicts the loss of every row of a batch; an actor's class under Ray, a plain object without.

    Args:
        model: where the bundle lies; loaded here, on the machine that computes, rather than shipped.
        batch_size: rows of one forward pass.
        device: where to compute.
        decode_threads: threads that decode images while the device computes.
        count_rows: told after each batch how many rows were done, and how many of them failed.
    """

    def __init__(
        self,
        model: Location,
        *,
        batch_size: int,
        device: str = "cpu",
        decode_threads: int = 2,
        count_rows: Callable[[int, int], None] | None = None,
    ) -> None:
        bundle = read_bundle(model)
        self._predictor = Predictor(bundle, device=device, batch_size=batch_size, decode_threads=decode_threads)
        self._count_rows = count_rows

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One scores row for each pool row, in order: a predicted loss or the reason why there is none."""
        predictions = self._predictor.predict(image_buffers(rows), boxes(rows))
        failed = np.isnan(predictions.predicted_loss)
        if self._count_rows is not None:
            self._count_rows(len(rows), int(failed.sum()))
        return pa.table(
            [
                rows["sample_id"],
                rows["group"],
                pa.array(predictions.predicted_loss, mask=failed),
                pa.array(predictions.confidence, mask=failed),
                pa.array(predictions.errors, pa.string()),
                rows["pool_file"],
                rows["pool_row"],
            ],
            schema=SCORES,
        )


def image_buffers(rows: pa.Table) -> list[memoryview]:
    """The encoded images without a copy; a null image is an empty one."""
    return [memoryview(value.as_buffer() or b"").cast("B") for value in rows["image"]]


def boxes(rows: pa.Table) -> list[Box]:
    """The boxes x0, y0, x1, y1, None where null."""
    column = rows["box"].combine_chunks()
    values = iter(np.asarray(column.flatten(), np.float32).reshape(-1, 4))  # flatten passes over null boxes
    return [next(values) if is_valid else None for is_valid in column.is_valid().to_pylist()]
