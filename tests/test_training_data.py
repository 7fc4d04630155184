"""Training batches of labelled rows: decoded and augmented by seed, epoch and id; unreadable images are counted."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import pyarrow as pa
import pytest
import torch

from distributed.ingest.fleet import row_of
from distributed.schema import labelled
from distributed.training.data import Collator
from distributed.training.teaching import is_in_share
from model.example import AUGMENTATIONS
from model.fit import Batch
from model.pose_model import make_spec
from model.skeleton import LSP
from model.synthetic import Sample

SPEC = make_spec("hourglass-small", method="ll++conv", skeleton=LSP)


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def rows(samples: list[Sample]) -> pa.Table:
    return pa.Table.from_pylist([row_of(sample) for sample in samples[:8]], labelled(14))


def collator(threads: Executor, *, seed: int = 0, epoch: int = 0) -> Collator:
    return Collator(
        spec=SPEC,
        augmentation=AUGMENTATIONS["paper"],
        seed=seed,
        epoch=epoch,
        threads=threads,
    )


def is_same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(left.nan_to_num(), right.nan_to_num()) for left, right in zip(one, other, strict=True))


def test_a_batch_holds_crops_and_labels(threads: Executor, rows: pa.Table) -> None:
    batch = collator(threads)(rows).batch
    assert (batch.pixels.shape, batch.pixels.dtype) == ((8, 64, 64, 3), torch.uint8)
    assert (batch.keypoints.shape, batch.labelled.shape) == ((8, 14, 2), (8, 14))
    assert batch.labelled.any()


def test_seed_epoch_and_id_alone_decide_the_augmentation(threads: Executor, rows: pa.Table) -> None:
    batch = collator(threads, epoch=1)(rows).batch
    assert is_same(batch, collator(threads, epoch=1)(rows).batch)
    assert not is_same(batch, collator(threads, epoch=2)(rows).batch)
    assert not is_same(batch, collator(threads, seed=1, epoch=1)(rows).batch)
    renamed = rows.set_column(0, rows.schema.field(0), pa.array([f"x{i}" for i in range(8)]))
    assert not is_same(batch, collator(threads, epoch=1)(renamed).batch)


def test_the_rest_of_the_batch_does_not_change_an_example(threads: Executor, rows: pa.Table) -> None:
    batch = collator(threads, epoch=3)(rows).batch
    order = [5, 2, 7]
    part = collator(threads, epoch=3)(rows.take(pa.array(order))).batch
    assert is_same(part, Batch(*(values[order] for values in batch)))


def test_unreadable_images_are_skipped_and_counted(threads: Executor, samples: list[Sample]) -> None:
    broken = [row_of(sample) for sample in samples[:40]]
    for row in broken[::2]:
        row["image"] = b"x"
    broken[1]["image"] = None
    broken[3]["box"] = [1, 1, 1, 1]
    batch, num_rows, unreadable = collator(threads)(pa.Table.from_pylist(broken, labelled(14)))
    assert (len(batch.pixels), num_rows) == (18, 40)
    assert unreadable == {"undecodable": 20, "empty": 1, "bad_box": 1}
    readable = pa.Table.from_pylist([broken[i] for i in range(5, 40, 2)], labelled(14))
    assert is_same(batch, collator(threads)(readable).batch)


def test_a_share_of_keys_is_drawn_evenly() -> None:
    assert sum(is_in_share(f"key {number}", share=0.3) for number in range(4000)) == pytest.approx(1200, rel=0.07)
    assert not is_in_share("key", share=0.0)
    assert is_in_share("key", share=1.0)


def test_a_batch_without_a_readable_image_teaches_nothing(threads: Executor, rows: pa.Table) -> None:
    blank = rows.set_column(1, rows.schema.field(1), pa.nulls(8, pa.large_binary()))
    for nothing in (blank, rows.slice(0, 0)):
        batch = collator(threads)(nothing).batch
        assert batch.pixels.shape == (1, 64, 64, 3)
        assert not batch.labelled.any()
