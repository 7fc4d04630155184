"""The scorer as a plain object: one scores row for each pool row, whatever is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distributed.fleet import row_of
from distributed.schema import POOL, SCORES
from distributed.scorer import LossScorer, boxes, image_buffers
from distributed.storage import locate
from model.synthetic import Sample

WITH_ORIGIN = POOL.append(SCORES.field("pool_file")).append(SCORES.field("pool_row"))


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    columns = [{**row, "pool_file": "a.parquet", "pool_row": number} for number, row in enumerate(rows)]
    return pa.Table.from_pylist(columns, WITH_ORIGIN)


@pytest.fixture(scope="module")
def rows(samples: list[Sample]) -> list[dict[str, Any]]:
    return [row_of(sample) for sample in samples[:10]]


@pytest.fixture(scope="module")
def scorer(model_uri: str) -> LossScorer:
    return LossScorer(locate(model_uri), batch_size=4)


def test_readable_rows_are_scored_in_order(scorer: LossScorer, rows: list[dict[str, Any]]) -> None:
    scores = scorer(table_of(rows))
    assert scores.schema == SCORES
    assert scores["sample_id"].to_pylist() == [row["sample_id"] for row in rows]
    assert scores["group"].to_pylist() == [row["group"] for row in rows]
    assert scores["pool_row"].to_pylist() == list(range(10))
    assert scores["pool_file"].to_pylist() == ["a.parquet"] * 10
    assert scores["error"].null_count == 10
    assert np.isfinite(scores["predicted_loss"].to_numpy()).all()
    assert np.isfinite(scores["confidence"].to_numpy()).all()


def test_a_rows_score_does_not_depend_on_its_neighbours(scorer: LossScorer, rows: list[dict[str, Any]]) -> None:
    together = scorer(table_of(rows))["predicted_loss"].to_pylist()
    alone = [scorer(table_of([row]))["predicted_loss"][0].as_py() for row in rows]
    assert alone == together


def test_every_unreadable_row_says_why_and_costs_itself_alone(scorer: LossScorer, rows: list[dict[str, Any]]) -> None:
    nan = float("nan")
    broken: list[tuple[dict[str, Any], str | None]] = [
        (rows[0], None),
        ({**rows[1], "image": None}, "empty"),
        ({**rows[2], "image": b""}, "empty"),
        ({**rows[3], "image": rows[3]["image"][:50]}, "undecodable"),
        ({**rows[4], "image": b"GIF89a"}, "undecodable"),
        ({**rows[5], "box": None}, None),  # the whole image
        ({**rows[6], "box": [nan, 0, 10, 10]}, "bad_box"),
        ({**rows[7], "box": [None, 0, 10, 10]}, "bad_box"),
        ({**rows[8], "box": [10, 10, 10, 20]}, "bad_box"),
        (rows[9], None),
    ]
    scores = scorer(table_of([row for row, _ in broken]))
    reasons = [reason for _, reason in broken]
    assert scores["sample_id"].to_pylist() == [row["sample_id"] for row in rows]
    assert scores["error"].to_pylist() == reasons
    for name in ("predicted_loss", "confidence"):
        assert [value is None for value in scores[name].to_pylist()] == [reason is not None for reason in reasons]
    undisturbed = scorer(table_of(rows))["predicted_loss"]
    assert [scores["predicted_loss"][i] for i in (0, 9)] == [undisturbed[i] for i in (0, 9)]


def test_unreadable_rows_alone_are_still_rows(scorer: LossScorer, rows: list[dict[str, Any]]) -> None:
    scores = scorer(table_of([{**row, "image": None} for row in rows]))
    assert scores["error"].to_pylist() == ["empty"] * 10
    assert scores["predicted_loss"].null_count == 10


def test_no_rows_give_no_scores(scorer: LossScorer) -> None:
    assert scorer(table_of([])) == SCORES.empty_table()
    assert scorer(WITH_ORIGIN.empty_table()) == SCORES.empty_table()


def test_rows_are_counted_batch_by_batch(model_uri: str, rows: list[dict[str, Any]]) -> None:
    counted: list[tuple[int, int]] = []
    scorer = LossScorer(locate(model_uri), batch_size=4, count_rows=lambda done, failed: counted.append((done, failed)))
    scorer(table_of(rows))
    scorer(table_of([{**rows[0], "image": b""}, rows[1]]))
    assert counted == [(10, 0), (2, 1)]


def test_buffers_are_the_images_without_a_copy(rows: list[dict[str, Any]]) -> None:
    table = table_of([rows[0], {**rows[1], "image": None}, rows[2]])
    buffers = image_buffers(table.slice(1))
    assert [bytes(buffer) for buffer in buffers] == [b"", rows[2]["image"]]


def test_boxes_are_those_of_the_rows_chunk_by_chunk(rows: list[dict[str, Any]]) -> None:
    given = [[0, 1, 2, 3], None, [4, 5, 6, 7], [8, 9, 10, 11], None]
    table = table_of([{**row, "box": box} for row, box in zip(rows, given, strict=False)])
    for part in (table, table.slice(1), table.slice(2, 2), pa.concat_tables([table.slice(3), table.slice(0, 3)])):
        found = [None if box is None else box.tolist() for box in boxes(part)]
        assert found == part["box"].to_pylist()
