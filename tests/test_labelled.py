"""Labelled rows as labels and as training batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import WriteTable, plain_rows

from distributed.ingest.fleet import row_of
from distributed.schema import labelled
from distributed.storage.location import locate
from distributed.tables.labelled import (
    Collator,
    count_labels,
    freeze_labelled,
    is_in_share,
    labels_of,
)
from model.errors import InputError
from model.example import AUGMENTATIONS
from model.fit import Batch
from model.pose_model import make_spec
from model.skeleton import LSP
from model.synthetic import Sample

NAN = float("nan")
SPEC = make_spec("hourglass-small", method="ll++conv", skeleton=LSP)
TWO_KEYPOINTS = labelled(2).remove(1)  # no image


def label_rows(*rows: tuple[Any, Any]) -> pa.Table:
    columns = [{"sample_id": str(i), "keypoints": row[0], "visibility": row[1]} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(columns, TWO_KEYPOINTS)


def test_labels_are_those_of_the_rows() -> None:
    labels = labels_of(label_rows(([1, 2, 3, 4], [2, 1]), ([5, 6, 7, 8], [0, 2])))
    assert labels.keypoints.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert labels.visibility.tolist() == [[2, 1], [0, 2]]
    assert [str(values.dtype) for values in labels] == ["float32", "uint8"]


@pytest.mark.parametrize(
    ("keypoints", "visibility", "expected"),
    [
        (None, [2, 2], [0, 0]),
        ([1, 2, 3, 4], None, [0, 0]),
        (None, None, [0, 0]),
        ([1, None, 3, 4], [2, 1], [0, 1]),
        ([1, 2, NAN, 4], [2, 1], [2, 0]),
        ([1, 2, 3, float("inf")], [2, 1], [2, 0]),
        ([1, 2, 3, 4], [None, 1], [0, 1]),
        ([None] * 4, [None] * 2, [0, 0]),
    ],
)
@pytest.mark.parametrize("with_null_list", [True, False])
def test_what_is_no_finite_number_is_not_labelled(
    keypoints: Any, visibility: Any, expected: list[int], with_null_list: bool
) -> None:
    around = (None, None) if with_null_list else ([1, 2, 3, 4], [2, 2])
    labels = labels_of(label_rows(around, (keypoints, visibility), ([1, 2, 3, 4], [1, 2])))
    assert labels.visibility[1:].tolist() == [expected, [1, 2]]
    assert np.isfinite(labels.keypoints[labels.visibility > 0]).all()


def test_labels_of_a_slice_are_the_slice_of_the_labels() -> None:
    rows = label_rows(([1, 2, 3, 4], [2, 1]), (None, None), ([5, 6, 7, 8], [0, 2]), ([1, 1, 1, 1], [1, 1]))
    chunked = pa.concat_tables([rows.slice(2), rows.slice(0, 1)])
    assert labels_of(rows.slice(2, 1)).keypoints.tolist() == [[[5, 6], [7, 8]]]
    assert labels_of(chunked).visibility.tolist() == [[0, 2], [1, 1], [2, 1]]


def test_labels_of_no_rows_have_their_shape() -> None:
    labels = labels_of(label_rows())
    assert labels.keypoints.shape == (0, 2, 2)
    assert labels.visibility.shape == (0, 2)


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
        skipped=Counter[str](),
    )


def is_same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(left.nan_to_num(), right.nan_to_num()) for left, right in zip(one, other, strict=True))


def test_a_batch_holds_crops_and_labels(threads: Executor, rows: pa.Table) -> None:
    batch = collator(threads)(rows)
    assert (batch.pixels.shape, batch.pixels.dtype) == ((8, 64, 64, 3), torch.uint8)
    assert (batch.keypoints.shape, batch.labelled.shape) == ((8, 14, 2), (8, 14))
    assert batch.labelled.any()


def test_seed_epoch_and_id_alone_decide_the_augmentation(threads: Executor, rows: pa.Table) -> None:
    batch = collator(threads, epoch=1)(rows)
    assert is_same(batch, collator(threads, epoch=1)(rows))
    assert not is_same(batch, collator(threads, epoch=2)(rows))
    assert not is_same(batch, collator(threads, seed=1, epoch=1)(rows))
    renamed = rows.set_column(0, rows.schema.field(0), pa.array([f"x{i}" for i in range(8)]))
    assert not is_same(batch, collator(threads, epoch=1)(renamed))


def test_the_rest_of_the_batch_does_not_change_an_example(threads: Executor, rows: pa.Table) -> None:
    batch = collator(threads, epoch=3)(rows)
    order = [5, 2, 7]
    part = collator(threads, epoch=3)(rows.take(pa.array(order)))
    assert is_same(part, Batch(*(values[order] for values in batch)))


def test_unreadable_images_are_skipped_and_counted(threads: Executor, samples: list[Sample]) -> None:
    broken = [row_of(sample) for sample in samples[:40]]
    for row in broken[::2]:
        row["image"] = b"x"
    broken[1]["image"] = None
    broken[3]["box"] = [1, 1, 1, 1]
    collate = collator(threads)
    batch = collate(pa.Table.from_pylist(broken, labelled(14)))
    assert len(batch.pixels) == 18
    assert collate.skipped == {"undecodable": 20, "empty": 1, "bad_box": 1}
    readable = pa.Table.from_pylist([broken[i] for i in range(5, 40, 2)], labelled(14))
    assert is_same(batch, collator(threads)(readable))


def test_a_share_of_keys_is_drawn_evenly() -> None:
    assert sum(is_in_share(f"key {number}", share=0.3) for number in range(4000)) == pytest.approx(1200, rel=0.07)
    assert not is_in_share("key", share=0.0)
    assert is_in_share("key", share=1.0)


def test_a_batch_without_a_readable_image_teaches_nothing(threads: Executor, rows: pa.Table) -> None:
    blank = rows.set_column(1, rows.schema.field(1), pa.nulls(8, pa.large_binary()))
    for nothing in (blank, rows.slice(0, 0)):
        batch = collator(threads)(nothing)
        assert batch.pixels.shape == (1, 64, 64, 3)
        assert not batch.labelled.any()


def test_labels_are_counted_by_keypoint(write_table: WriteTable) -> None:
    visibility = [[2] * 14, [1] * 7 + [0] * 7, [0] * 14]
    keypoints = [[1.0] * 28, [1.0] * 28, [1.0] * 28]
    keypoints[0][5] = NAN  # y of keypoint 2
    rows = [{**row, "keypoints": keypoints[i], "visibility": visibility[i]} for i, row in enumerate(plain_rows(3))]
    table = freeze_labelled(locate(write_table("labelled", rows, is_labelled=True)), expected_keypoints=14)
    assert count_labels(table).tolist() == [2, 2, 1, 2, 2, 2, 2, *[1] * 7]


def test_a_table_without_a_label_is_refused(write_table: WriteTable) -> None:
    rows = [{**row, "keypoints": [1.0] * 28, "visibility": [0] * 14} for row in plain_rows(3)]
    table = freeze_labelled(locate(write_table("labelled", rows, is_labelled=True)), expected_keypoints=14)
    with pytest.raises(InputError, match="labelled: expected at least one labelled keypoint, found none"):
        count_labels(table)


def test_a_pool_is_no_labelled_table(write_table: WriteTable) -> None:
    with pytest.raises(InputError, match="column 'keypoints': expected fixed_size_list"):
        freeze_labelled(locate(write_table("pool", plain_rows(3))), expected_keypoints=14)
