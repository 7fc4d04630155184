"""Pools for the benchmarks: as many rows as wanted of a few synthetic images, each with an id of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from distributed.ingest.fleet import row_of
from distributed.schema import POOL
from distributed.storage.location import locate
from distributed.tables.parquet import write_groups
from model.synthetic import generate_fleet

_NUM_IMAGES = 1000  # different ones: enough that no cache holds what decoding needs
_ROW_GROUP_ROWS = 4000  # of about 12 KiB: 48 MiB


def make_pool(folder: Path, *, num_rows: int, num_files: int) -> str:
    """Writes a pool of `num_rows` rows in `num_files` files, unless it is there already; returns its location."""
    rows = [row_of(sample) for sample in generate_fleet(seed=0, num_samples=_NUM_IMAGES, unreadable_share=0.0)]
    images = pa.Table.from_pylist([{name: row.get(name) for name in POOL.names} for row in rows], POOL)
    for index in range(num_files):
        place = folder / f"part-{index:04d}"
        if not place.exists():
            write_groups(locate(str(place)), _groups(images, num_rows // num_files, prefix=f"f{index:04d}"), POOL)
    return str(folder)


def _groups(images: pa.Table, num_rows: int, *, prefix: str) -> Iterator[pa.Table]:
    for start in range(0, num_rows, _ROW_GROUP_ROWS):
        numbers = range(start, min(start + _ROW_GROUP_ROWS, num_rows))
        ids = pa.array([f"{prefix}-{number:08d}" for number in numbers])
        yield images.take(pa.array([number % len(images) for number in numbers])).set_column(0, POOL.field(0), ids)
