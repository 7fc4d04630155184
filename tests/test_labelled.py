"""Labelled rows as labels, and how many there are of each keypoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import WriteTable, plain_rows

from distributed.schema import labelled
from distributed.storage.location import locate
from distributed.tables.labelled import count_labels, freeze_labelled, labels_of
from model.errors import InputError
from model.skeleton import LSP

NAN = float("nan")
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


def test_labels_are_counted_by_keypoint(write_table: WriteTable) -> None:
    visibility = [[2] * 14, [1] * 7 + [0] * 7, [0] * 14]
    keypoints = [[1.0] * 28, [1.0] * 28, [1.0] * 28]
    keypoints[0][5] = NAN  # y of keypoint 2
    rows = [{**row, "keypoints": keypoints[i], "visibility": visibility[i]} for i, row in enumerate(plain_rows(3))]
    table = freeze_labelled(locate(write_table("labelled", rows, is_labelled=True)), skeleton=LSP)
    assert count_labels(table).tolist() == [2, 2, 1, 2, 2, 2, 2, *[1] * 7]


def test_a_table_without_a_label_is_refused(write_table: WriteTable) -> None:
    rows = [{**row, "keypoints": [1.0] * 28, "visibility": [0] * 14} for row in plain_rows(3)]
    table = freeze_labelled(locate(write_table("labelled", rows, is_labelled=True)), skeleton=LSP)
    with pytest.raises(InputError, match="labelled: expected at least one labelled keypoint, found none"):
        count_labels(table)


def test_a_pool_is_no_labelled_table(write_table: WriteTable) -> None:
    with pytest.raises(InputError, match="column 'visibility': expected fixed_size_list"):
        freeze_labelled(locate(write_table("pool", plain_rows(3))), skeleton=LSP)
