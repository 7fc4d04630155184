"""Losses by the values of columns, against a look at all rows; what is no value, and columns that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import scores_table, with_file_ids

from distributed.nightly.slices import MAX_VALUES, sketch_slices
from distributed.storage.location import Location, locate
from distributed.tables.scores import write_part
from distributed.tables.sketch import sketch
from model.errors import InputError


def write(out: Location, losses: list[float | None], *, start: int = 0, **columns: pa.Array) -> str:
    """A part of these rows; its path."""
    count = len(losses)
    rows = scores_table(losses, pool_file=[f"{start}.parquet"] * count, pool_row=list(range(count)))
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    return write_part(out, with_file_ids(rows)).path


def test_losses_by_value_over_several_parts(tmp_path: Path) -> None:
    out, rng = locate(str(tmp_path)), np.random.default_rng(0)
    losses = [rng.normal(size=30).astype(np.float32) for _ in range(2)]
    cameras = [rng.choice(["front", "rear", "ü"], size=30) for _ in range(2)]
    paths = [
        write(out, own.tolist(), start=part, camera=pa.array(names), gain=pa.array(range(30)))
        for part, (own, names) in enumerate(zip(losses, cameras, strict=True))
    ]
    found = sketch_slices(out, paths, ["camera"])
    every, names = np.concatenate(losses), np.concatenate(cameras)
    assert found == {("camera", name): sketch(every[names == name]) for name in ("front", "rear", "ü")}
    assert sketch_slices(out, paths, []) == {}
    assert sketch_slices(out, paths, ["gain"])["gain", "7"].num_values == 2


def test_rows_without_a_value_or_a_loss_are_none(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    path = write(out, [1.0, 2.0, None, 4.0], camera=pa.array(["front", None, "front", "rear"]))
    found = sketch_slices(out, [path], ["camera"])
    assert {key: each.quantiles for key, each in found.items()} == {("camera", "front"): (1,), ("camera", "rear"): (4,)}


def test_of_many_values_those_with_most_rows_are_kept(tmp_path: Path) -> None:
    out, count = locate(str(tmp_path)), MAX_VALUES + 10
    names = [f"v{number:03d}" for number in range(count)] + [f"v{number:03d}" for number in range(20, count)]
    path = write(out, [0.5] * len(names), camera=pa.array(names))
    found = sketch_slices(out, [path], ["camera"])
    kept = [f"v{number:03d}" for number in range(MAX_VALUES - (count - 20))] + [f"v{n:03d}" for n in range(20, count)]
    assert [value for _, value in found] == kept


def test_a_column_of_lists_is_named(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    path = write(out, [1.0], tags=pa.array([["a"]]))
    with pytest.raises(InputError, match=r"--drift-columns tags: expected values that can be text, found list"):
        sketch_slices(out, [path], ["tags"])
