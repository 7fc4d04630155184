"""The scorer as a plain object: one scores row for each pool row, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distributed.ingest.fleet import row_of
from distributed.runs.logbook import Logbook
from distributed.schema import FILE_ID, IN_FLIGHT, READ_ERROR, SCORES, scores_schema
from distributed.scoring.options import ScoringOptions
from distributed.scoring.scorer import CRASHED, LossScorer
from distributed.storage.location import locate
from distributed.tables.reader import boxes, image_buffers
from model.errors import RunFailedError
from model.synthetic import Sample

BATCH = "a.parquet:0+10"  # the name of all ten rows
WITH_FILE_ID = SCORES.append(IN_FLIGHT.field(FILE_ID))

Rows = list[dict[str, Any]]


def table_of(rows: Rows, *, first: int = 0) -> pa.Table:
    origin = {"pool_file": "a.parquet", FILE_ID: "id of a.parquet"}
    columns = [{**origin, "pool_row": number, **row} for number, row in enumerate(rows, start=first)]
    return pa.Table.from_pylist(columns, IN_FLIGHT)


@pytest.fixture(scope="module")
def rows(samples: list[Sample]) -> Rows:
    return [row_of(sample) for sample in samples[:10]]


@pytest.fixture(scope="module")
def scorer(model_uri: str) -> LossScorer:
    return make_scorer(model_uri)


def make_scorer(model_uri: str, log: Logbook | None = None, **options: Any) -> LossScorer:
    return LossScorer(locate(model_uri), options=ScoringOptions(batch_size=8, **options), log=log or Logbook())


def test_readable_rows_are_scored_in_order(scorer: LossScorer, rows: Rows) -> None:
    scores = scorer(table_of(rows))
    assert scores.schema == WITH_FILE_ID
    assert scores["sample_id"].to_pylist() == [row["sample_id"] for row in rows]
    for name in ("group", "captured_at"):
        assert scores[name].to_pylist() == [row[name] for row in rows]
    assert scores["pool_row"].to_pylist() == list(range(10))
    assert scores["pool_file"].to_pylist() == ["a.parquet"] * 10
    assert scores[FILE_ID].to_pylist() == ["id of a.parquet"] * 10
    assert scores["error"].null_count == 10
    assert np.isfinite(scores["predicted_loss"].to_numpy()).all()
    assert np.isfinite(scores["confidence"].to_numpy()).all()


def test_a_quantity_is_written_once_the_schema_has_a_column_of_its_name(
    model_uri: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one is declared and computed in `model.packing`, and named in the schema: nothing else is to be changed."""
    wider = SCORES.append(pa.field("peak_entropy", pa.float32())).append(pa.field("peaks", pa.list_(pa.float16(), 14)))
    monkeypatch.setattr("distributed.schema.SCORES", wider)
    scores = make_scorer(model_uri)(table_of(rows))
    assert scores.schema.names == [*wider.names, FILE_ID]
    assert scores["peak_entropy"].null_count == 10  # not known without labels
    peaks = np.array(scores["peaks"].to_pylist(), np.float64)
    assert np.allclose(peaks.mean(axis=1), scores["confidence"].to_numpy(), atol=1e-3)


def test_a_rows_score_does_not_depend_on_its_neighbours(scorer: LossScorer, rows: Rows) -> None:
    together = scorer(table_of(rows))["predicted_loss"].to_pylist()
    alone = [scorer(table_of([row], first=number))["predicted_loss"][0].as_py() for number, row in enumerate(rows)]
    assert alone == together


def test_every_unreadable_row_says_why_and_costs_itself_alone(scorer: LossScorer, rows: Rows) -> None:
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


def test_why_an_image_could_not_be_read_is_the_reason(scorer: LossScorer, rows: Rows) -> None:
    """Rather than that there is none; and a box or an image beside it changes nothing."""
    broken = [
        {**rows[0], "image": None, READ_ERROR: "damaged"},
        {**rows[1], "image": None, "box": [5, 5, 5, 5], READ_ERROR: "damaged"},
        {**rows[2], READ_ERROR: "damaged"},
        {**rows[3], "image": None},
        rows[4],
    ]
    scores = scorer(table_of(broken))
    assert scores["error"].to_pylist() == ["damaged", "damaged", "damaged", "empty", None]
    assert [value is None for value in scores["predicted_loss"].to_pylist()] == [True, True, True, True, False]


def test_no_rows_give_no_scores(scorer: LossScorer) -> None:
    assert scorer(table_of([])) == WITH_FILE_ID.empty_table()
    assert scorer(IN_FLIGHT.empty_table()) == WITH_FILE_ID.empty_table()


def test_optional_columns_come_with_every_row_that_was_scored(model_uri: str, rows: Rows) -> None:
    scorer = make_scorer(model_uri, keypoints=True, embeddings=True)
    broken = [{**row, "image": None} if number == 3 else row for number, row in enumerate(rows)]
    scores = scorer(table_of(broken))
    dim = scores.schema.field("embedding").type.list_size
    assert scores.schema == scores_schema(num_keypoints=14, embedding_dim=dim).append(IN_FLIGHT.field(FILE_ID))
    for name in ("keypoints", "embedding"):
        assert [value is None for value in scores[name].to_pylist()] == [number == 3 for number in range(10)]
    found = np.array(scores["keypoints"][0].as_py()).reshape(14, 3)
    assert np.isfinite(found).all()
    assert scorer(table_of([])).schema == scores.schema
    plain = make_scorer(model_uri)(table_of(broken))
    assert scores.select(plain.column_names) == plain


def test_a_row_that_killed_its_process_alone_is_reported_and_the_others_are_scored(model_uri: str, rows: Rows) -> None:
    log = Logbook()
    scorer = make_scorer(model_uri, log, keypoints=True, embeddings=True)
    undisturbed = scorer(table_of(rows))
    for _ in range(3):
        log.begin(BATCH)
    log.begin_row("a.parquet:4+1 alone")
    scores = scorer(table_of(rows))
    assert scores.schema == undisturbed.schema
    assert scores["error"].to_pylist() == [CRASHED if number == 4 else None for number in range(10)]
    for name in ("predicted_loss", "confidence", "keypoints", "embedding"):
        assert scores[name][4].as_py() is None
    for name in ("sample_id", "group", "pool_file", "pool_row", FILE_ID):
        assert scores[name].to_pylist() == undisturbed[name].to_pylist()
    others = [number for number in range(10) if number != 4]
    assert scores.take(others).to_pylist() == undisturbed.take(others).to_pylist()
    assert log.read().errors == {CRASHED: 1}


class Died(BaseException):
    """Stand-in for what a process would not survive."""


def score_among_deaths(model_uri: str, rows: Rows, log: Logbook, *, is_deadly: Callable[[bytes], bool]) -> Any:
    """The scores, and how many processes died; each is followed by a new one with the same logbook."""
    scorer, num_deaths = make_scorer(model_uri, log), 0
    score = scorer._predictor.predict

    def predict(images: list[memoryview], given: list[Any]) -> Any:
        if any(is_deadly(bytes(image)) for image in images):
            raise Died
        return score(images, given)

    scorer._predictor.predict = predict  # type: ignore[method-assign, assignment]
    while True:
        try:
            return scorer(table_of(rows)), num_deaths
        except Died:
            num_deaths += 1


@pytest.mark.parametrize("numbers", [{4}, {0, 1, 6, 9}, set(range(10))])
def test_rows_that_kill_are_isolated_at_the_price_of_one_process_each(
    model_uri: str, rows: Rows, numbers: set[int]
) -> None:
    log, deadly = Logbook(), {rows[number]["image"] for number in numbers}
    undisturbed = make_scorer(model_uri)(table_of(rows))
    scores, num_deaths = score_among_deaths(model_uri, rows, log, is_deadly=deadly.__contains__)
    assert num_deaths == 2 + len(numbers)  # twice together
    assert scores["error"].to_pylist() == [CRASHED if number in numbers else None for number in range(10)]
    is_other = [number not in numbers for number in range(10)]
    assert scores.filter(is_other).to_pylist() == undisturbed.filter(is_other).to_pylist()
    assert (log.read().num_rows, log.read().errors) == (10, {CRASHED: len(numbers)})


def test_a_device_that_kills_with_every_row_ends_the_run(model_uri: str, rows: Rows) -> None:
    with pytest.raises(RunFailedError, match="scoring processes died 20 times and finished nothing in between"):
        score_among_deaths(model_uri, 3 * rows, Logbook(), is_deadly=lambda _: True)


def test_once_the_run_is_to_stop_batches_come_back_empty(model_uri: str, rows: Rows) -> None:
    log = Logbook()
    scorer = make_scorer(model_uri, log)
    log.stop()
    assert len(scorer(table_of(rows))) == 10  # what has come is begun
    assert scorer(table_of(rows)) == WITH_FILE_ID.empty_table()
    assert log.read().num_rows == 10
    assert log.begin(BATCH) == 0


def test_rows_errors_and_seconds_are_logged(model_uri: str, rows: Rows) -> None:
    log = Logbook()
    scorer = make_scorer(model_uri, log)
    scorer(table_of(rows))
    first = log.read()
    assert (first.num_rows, first.errors) == (10, {})
    broken = [{**rows[0], "image": b""}, {**rows[1], "image": b"x"}, {**rows[2], "image": b"y"}, rows[3]]
    scorer(table_of(broken))
    assert (log.read().num_rows, log.read().errors) == (14, {"empty": 1, "undecodable": 2})
    assert set(first.seconds) == {"decode", "wait", "compute"}
    assert all(log.read().seconds[stage] >= seconds >= 0 for stage, seconds in first.seconds.items())
    assert log.read().seconds == pytest.approx(scorer._predictor.seconds)


def test_buffers_are_the_images_without_a_copy(rows: Rows) -> None:
    table = table_of([rows[0], {**rows[1], "image": None}, rows[2]])
    buffers = image_buffers(table.slice(1))
    assert [bytes(buffer) for buffer in buffers] == [b"", rows[2]["image"]]


def test_boxes_are_those_of_the_rows_chunk_by_chunk(rows: Rows) -> None:
    given = [[0, 1, 2, 3], None, [4, 5, 6, 7], [8, 9, 10, 11], None]
    table = table_of([{**row, "box": box} for row, box in zip(rows, given, strict=False)])
    for part in (table, table.slice(1), table.slice(2, 2), pa.concat_tables([table.slice(3), table.slice(0, 3)])):
        found = [None if box is None else box.tolist() for box in boxes(part)]
        assert found == part["box"].to_pylist()


def test_metadata_goes_along_with_scored_failed_and_crashed_rows(model_uri: str, rows: list[dict[str, Any]]) -> None:
    metadata = pa.schema([pa.field("camera", pa.string()), pa.field("tags", pa.list_(pa.string()))])
    table = table_of([rows[0], {**rows[1], "image": b""}])
    table = table.append_column("camera", pa.array(["front", None])).append_column(
        "tags", pa.array([["night"], []], pa.list_(pa.string()))
    )
    scorer = LossScorer(locate(model_uri), options=ScoringOptions(batch_size=8), log=Logbook(), metadata=metadata)
    scores = scorer(table)
    assert scores.select(["camera", "tags"]).to_pylist() == table.select(["camera", "tags"]).to_pylist()
    assert scores["error"].to_pylist() == [None, "empty"]
    crashed = scorer._failed(table, "crashed")
    assert crashed.select(["camera", "tags"]).to_pylist() == table.select(["camera", "tags"]).to_pylist()
