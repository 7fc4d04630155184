"""Rows from Ray Data: each once an epoch, in another order each time, with one worker and with two."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from conftest import WriteTable, plain_rows

from distributed.cluster.tables import read_shuffled
from distributed.storage.location import locate
from distributed.tables.manifest import freeze_pool
from distributed.tables.shuffle import plan_chunks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

EPOCHS = 3


@pytest.fixture
def dataset(write_table: WriteTable) -> Any:
    manifest = freeze_pool(locate(write_table("pool", plain_rows(60), row_group_bytes=700)))
    dataset = read_shuffled(manifest, columns=["sample_id"], seed=0, chunk_bytes=1_000)
    assert len(plan_chunks(manifest, chunk_bytes=1_000, seed=0)) > 8
    return dataset


def ids_of(rows: Any) -> list[str]:
    return [
        sample_id for batch in rows.iter_batches(batch_format="pyarrow") for sample_id in batch["sample_id"].to_pylist()
    ]


def test_each_epoch_has_all_rows_in_another_order(dataset: Any) -> None:
    (shard,) = dataset.streaming_split(1, equal=True)
    epochs = [ids_of(shard) for _ in range(EPOCHS)]
    assert [sorted(epoch) for epoch in epochs] == [[f"p{number:04d}" for number in range(60)]] * EPOCHS
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS


def test_two_shards_have_as_many_rows_and_none_twice(dataset: Any) -> None:
    def read_epochs(shard: Any) -> list[list[str]]:  # nested, so that it travels by value
        batches = (list(shard.iter_batches(batch_format="pyarrow")) for _ in range(EPOCHS))
        return [[sample_id for batch in epoch for sample_id in batch["sample_id"].to_pylist()] for epoch in batches]

    remote = ray.remote(num_cpus=0)(read_epochs)
    first, second = ray.get([remote.remote(shard) for shard in dataset.streaming_split(2, equal=True)])
    for one, other in zip(first, second, strict=True):
        assert len(one) == len(other) == 30
        assert len({*one, *other}) == 60
    assert len({frozenset(epoch) for epoch in first}) > 1  # other rows each time
