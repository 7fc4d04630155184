"""The order that labelled rows are trained in: each once an epoch, and no window of it unlike the table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows
from scipy.stats import chi2, hypergeom

from distributed.schema import labelled
from distributed.storage.location import locate
from distributed.tables.labelled import COLUMNS, count_labels, freeze_labelled, labels_of
from distributed.tables.manifest import Manifest
from distributed.tables.shuffle import CHUNK_BYTES, plan_chunks, shuffled_rows
from model.skeleton import LSP

LABELS = {"keypoints": [1.0] * 28, "visibility": [2] * 14}


@pytest.fixture
def manifest(write_table: WriteTable) -> Manifest:
    """50 rows in 13 row groups."""
    rows = [{**row, **LABELS} for row in plain_rows(50)]
    return freeze_labelled(locate(write_table("labelled", rows, is_labelled=True, row_group_bytes=400)), skeleton=LSP)


def read(manifest: Manifest, *, batch_size: int, chunk_bytes: int = CHUNK_BYTES, seed: int = 0) -> list[pa.Table]:
    return list(shuffled_rows(manifest, columns=COLUMNS, batch_size=batch_size, chunk_bytes=chunk_bytes, seed=seed))


def ids_of(batches: list[pa.Table]) -> list[str]:
    return [sample_id for batch in batches for sample_id in batch["sample_id"].to_pylist()]


@pytest.mark.parametrize("batch_size", [1, 7, 25, 64])
@pytest.mark.parametrize("chunk_bytes", [1, 6_000, CHUNK_BYTES])
def test_shuffling_gives_every_row_once_in_full_batches(manifest: Manifest, batch_size: int, chunk_bytes: int) -> None:
    batches = read(manifest, batch_size=batch_size, chunk_bytes=chunk_bytes)
    assert sorted(ids_of(batches)) == [f"p{i:04d}" for i in range(50)]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 1 <= len(batches[-1]) <= batch_size
    assert set(COLUMNS) <= set(batches[0].column_names)


def test_the_seed_decides_the_order(manifest: Manifest) -> None:
    def order(seed: int) -> list[str]:
        return ids_of(read(manifest, batch_size=8, chunk_bytes=6_000, seed=seed))

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != sorted(order(1))


@pytest.mark.parametrize("chunk_bytes", [2_000, CHUNK_BYTES])
def test_rows_keep_their_columns_together(manifest: Manifest, chunk_bytes: int) -> None:
    images = {row["sample_id"]: row["image"] for row in plain_rows(50)}
    for batch in read(manifest, batch_size=16, chunk_bytes=chunk_bytes):
        assert [images[sample_id] for sample_id in batch["sample_id"].to_pylist()] == batch["image"].to_pylist()


def test_files_that_differ_in_what_is_left_open_are_shuffled_together(tmp_path: Path) -> None:
    """Another writer's table: other column order, nullable ids, list items of another name."""
    items = pa.list_(pa.field("element", pa.float32(), nullable=False), 28)
    theirs = pa.schema([pa.field("sample_id", pa.string()), pa.field("keypoints", items), *list(labelled(14))[1:5]])
    theirs = theirs.append(labelled(14).field("visibility"))
    for number, schema in enumerate([labelled(14), theirs]):
        rows = [{**row, **LABELS} for row in plain_rows(5, start=5 * number)]
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / f"{number}.parquet")
    found = freeze_labelled(locate(str(tmp_path)), skeleton=LSP)
    (batch,) = read(found, batch_size=10)
    assert sorted(batch["sample_id"].to_pylist()) == [f"p{i:04d}" for i in range(10)]
    assert labels_of(batch).visibility.tolist() == [[2] * 14] * 10
    assert count_labels(found).tolist() == [10] * 14


# Of all tests of a call together, by chance: once in 1,000 calls. Orders are of fixed seeds, but for Ray's.
CHANCE = 1e-3
SIZES = (5_000, 1_000)  # rows of the two files
WINDOW = 50  # rows: a batch
STRETCH = 500  # neighbouring rows of a file


class TwoFiles(NamedTuple):
    """A table of which row number i is called str(i)."""

    manifest: Manifest
    bytes_a_row: int


def write_two_files(folder: Path, *, group_rows: int) -> TwoFiles:
    for number, size in enumerate(SIZES):
        ids = [str(sum(SIZES[:number]) + i) for i in range(size)]
        rows = [{"sample_id": sample_id, "image": b"x" * 20, **LABELS} for sample_id in ids]
        table = pa.Table.from_pylist(rows, labelled(14))
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=group_rows, use_dictionary=False)
    found = freeze_labelled(locate(str(folder)), skeleton=LSP)
    return TwoFiles(found, sum(sum(file.row_group_bytes) for file in found.files) // sum(SIZES))


def check_mixed(windows: list[np.ndarray], *, num_epochs: int, is_exact: bool = True) -> None:
    """Passes if neither one window nor all together depart from the table's shares by more than chance.

    Each window's rows of the smaller file: both tails of the hypergeometric distribution. All windows against files,
    and against stretches of neighbouring rows if the order is exact: chi-squared. The threshold is CHANCE over the
    number of these tests.

    Args:
        windows: row numbers; those of an epoch are the table.
        num_epochs: of how many.
        is_exact: the table was not parted; else neighbours meet a little more often than by chance.
    """
    threshold = CHANCE / (len(windows) + 2)
    total, smaller = sum(SIZES), SIZES[1]
    is_smaller = np.array([(window >= SIZES[0]).sum() for window in windows])
    sizes = np.array([len(window) for window in windows])
    tails = np.minimum(
        hypergeom.cdf(is_smaller, total, smaller, sizes), hypergeom.sf(is_smaller - 1, total, smaller, sizes)
    )
    assert 2 * tails.min() > threshold
    by_file = (np.array(SIZES) / total, lambda window: (window >= SIZES[0]).astype(int))
    by_stretch = (np.full(total // STRETCH, STRETCH / total), lambda window: window // STRETCH)
    for shares, group_of in [by_file, by_stretch] if is_exact else [by_file]:
        counts = np.array([np.bincount(group_of(window), minlength=len(shares)) for window in windows])
        expected = sizes[:, None] * shares
        statistic = ((counts - expected) ** 2 / expected).sum()
        freedom = (len(windows) - num_epochs) * (len(shares) - 1)
        assert chi2.sf(statistic, freedom) > threshold


def windows_of(order: list[int]) -> Iterator[np.ndarray]:
    return (np.array(order[start : start + WINDOW]) for start in range(0, len(order), WINDOW))


@pytest.mark.parametrize(
    ("group_rows", "chunk_rows", "num_epochs"),
    [
        (10_000, 10_000, 5),
        (10_000, 512, 5),
        (250, 10_000, 5),
        (250, 512, 5),
        (50, 512, 3),  # three parts: not exact
        pytest.param(250, 512, 20, marks=pytest.mark.nightly),
    ],
)
def test_no_window_of_an_epoch_is_of_one_file_or_of_neighbours(
    tmp_path: Path, group_rows: int, chunk_rows: int, num_epochs: int
) -> None:
    table = write_two_files(tmp_path, group_rows=group_rows)
    windows: list[np.ndarray] = []
    for epoch in range(num_epochs):
        batches = read(table.manifest, batch_size=64, chunk_bytes=chunk_rows * table.bytes_a_row, seed=epoch)
        order = [int(sample_id) for sample_id in ids_of(batches)]
        assert sorted(order) == list(range(sum(SIZES)))
        windows += windows_of(order)
    check_mixed(windows, num_epochs=num_epochs, is_exact=group_rows != 50)


def test_a_row_group_is_read_four_times_at_most(tmp_path: Path) -> None:
    table = write_two_files(tmp_path, group_rows=50)
    chunks = plan_chunks(table.manifest, chunk_bytes=512 * table.bytes_a_row, seed=0)
    reads = sum(chunk.bin.num_rows for chunk in chunks) / sum(SIZES)
    assert reads <= 4
    assert max(len(chunk.rows) for chunk in chunks) <= 550  # parts differ by a row group or two
    assert {len(plan_chunks(table.manifest, chunk_bytes=512 * table.bytes_a_row, seed=i)) for i in range(5)} == {
        len(chunks)
    }


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_on_ray_each_epoch_has_all_rows_in_another_order(manifest: Manifest) -> None:
    from distributed.cluster.tables import read_shuffled

    dataset = read_shuffled(manifest, columns=["sample_id"], seed=0, chunk_bytes=1_000)
    (shard,) = dataset.streaming_split(1, equal=True)
    epochs = [
        [row for batch in shard.iter_batches(batch_format="pyarrow") for row in batch["sample_id"].to_pylist()]
        for _ in range(3)
    ]
    assert [sorted(epoch) for epoch in epochs] == [[f"p{number:04d}" for number in range(50)]] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(("group_rows", "chunk_rows"), [(10_000, 10_000), (250, 512)])
def test_no_window_of_a_worker_is_of_one_file_or_of_neighbours(
    tmp_path: Path, group_rows: int, chunk_rows: int
) -> None:
    """Two workers, three epochs."""
    import ray

    from distributed.cluster.tables import read_shuffled

    table = write_two_files(tmp_path, group_rows=group_rows)
    chunk_bytes = chunk_rows * table.bytes_a_row
    dataset = read_shuffled(table.manifest, columns=["sample_id"], seed=0, chunk_bytes=chunk_bytes)

    def read_epochs(shard: Any) -> list[list[str]]:  # nested, so that it travels by value
        batches = (list(shard.iter_batches(batch_size=64, batch_format="pyarrow")) for _ in range(3))
        return [[sample_id for batch in epoch for sample_id in batch["sample_id"].to_pylist()] for epoch in batches]

    remote = ray.remote(num_cpus=0)(read_epochs)
    workers = ray.get([remote.remote(shard) for shard in dataset.streaming_split(2, equal=True)])
    windows: list[np.ndarray] = []
    for first, second in zip(*workers, strict=True):
        assert len(first) == len(second) == len({*first, *second}) / 2 == sum(SIZES) / 2
        windows += [window for ids in (first, second) for window in windows_of([int(sample_id) for sample_id in ids])]
    check_mixed(windows, num_epochs=3)
