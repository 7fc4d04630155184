"""Columns of pool rows as the arrays and buffers that `model` works on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from model.predictor import Box


def image_buffers(rows: pa.Table) -> list[memoryview]:
    """The encoded images without a copy; a null image is an empty one."""
    return [memoryview(value.as_buffer() or b"").cast("B") for value in rows["image"]]


def boxes(rows: pa.Table) -> list[Box]:
    """The boxes x0, y0, x1, y1, None where null."""
    column = rows["box"].combine_chunks()
    values = iter(np.asarray(column.flatten(), np.float32).reshape(-1, 4))  # flatten passes over null boxes
    return [next(values) if is_valid else None for is_valid in column.is_valid().to_pylist()]
