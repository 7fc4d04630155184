"""Slices against plain loops over rows; which columns are sliced by, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed.evaluation.rows import Observed
from distributed.evaluation.slices import slice_columns, summarise_slices, texts_by_row
from distributed.schema import labelled
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.tables.manifest import Manifest
from model.errors import InputError
from model.skeleton import LSP

NUM_ROWS = 600  # more than two batches of the reader
METADATA = {
    "light": pa.string(),
    "wet": pa.bool_(),
    "lane": pa.int32(),
    "camera": pa.dictionary(pa.int32(), pa.string()),
    "tags": pa.list_(pa.string()),
    "speed": pa.float64(),
    "url": pa.string(),
}
SCHEMA = pa.schema([*labelled(14), *[pa.field(name, kind) for name, kind in METADATA.items()]])


def rows_of(start: int, stop: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(start)
    return [
        {
            "sample_id": f"r{i}",
            "group": None if i % 7 == 0 else f"g{rng.integers(30)}",
            "light": [None, "day", "night"][rng.integers(3)],
            "wet": [None, True, False][rng.integers(3)],
            "lane": int(rng.integers(4)),
            "camera": ["front", "rear"][rng.integers(2)],
            "tags": [None, [], ["blur"], ["blur", "rain", "blur"], ["rain", None]][rng.integers(5)],
            "speed": 1.0,
            "url": f"https://example.org/{i}",
        }
        for i in range(start, stop)
    ]


ROWS = [*rows_of(0, 350), *rows_of(350, NUM_ROWS)]


def write(folder: Path, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema), folder / f"{name}.parquet", row_group_size=99)


def freeze(folder: Path) -> Manifest:
    return freeze_labelled(locate(str(folder)), skeleton=LSP)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write(tmp_path / "table", "a", ROWS[:350])
    write(tmp_path / "table", "b", ROWS[350:])
    return freeze(tmp_path / "table")


def random_rows(num_rows: int = NUM_ROWS) -> Observed:
    rng = np.random.default_rng(1)
    is_error = rng.random(num_rows) < 0.05
    predicted, true = rng.random((2, num_rows))
    judged = rng.integers(0, 4, num_rows)
    return Observed(
        predicted_loss=np.where(is_error, np.nan, predicted),
        expected_pck=np.where(is_error, np.nan, 0.6),
        confidence=np.where(is_error, np.nan, 0.5),
        true_loss=np.where(is_error | (judged == 0), np.nan, true),
        is_error=is_error,
        num_right=rng.integers(0, 4, num_rows) % (judged + 1),
        num_judged=judged,
    )


def values_of(row: dict[str, Any], column: str) -> set[str | None]:
    value = row[column]
    if isinstance(value, bool):
        return {"true" if value else "false"}
    if isinstance(value, int):
        return {str(value)}
    return ({*(value or [])} - {None} or {None}) if column == "tags" else {value}


def by_loop(rows: Observed, column: str, value: str | None) -> dict[str, Any]:
    """The metrics of a slice, row by row."""
    evaluated = [i for i in range(NUM_ROWS) if np.isfinite(rows.true_loss[i]) and np.isfinite(rows.predicted_loss[i])]
    inside = [i for i in range(NUM_ROWS) if value in values_of(ROWS[i], column)]
    here = [i for i in inside if i in set(evaluated)]
    num_worst = round(0.1 * len(evaluated))
    worst = {
        name: set(sorted(evaluated, key=lambda i: -getattr(rows, name)[i])[:num_worst])
        for name in ("true_loss", "predicted_loss")
    }
    return {
        "value": value,
        "num_rows": len(inside),
        "num_errors": sum(bool(rows.is_error[i]) for i in inside),
        "num_evaluated": len(here),
        "pck": sum(rows.num_right[i] for i in here) / sum(rows.num_judged[i] for i in here),
        "mean_true_loss": sum(rows.true_loss[i] for i in here) / len(here),
        "mean_predicted_loss": sum(rows.predicted_loss[i] for i in here) / len(here),
        "share_of_rows": len(here) / len(evaluated),
        "share_of_worst_true": len(worst["true_loss"] & set(here)) / num_worst,
        "share_of_worst_predicted": len(worst["predicted_loss"] & set(here)) / num_worst,
    }


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.pop("value") == expected.pop("value")
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("column", ["light", "wet", "lane", "camera", "tags", "group"])
def test_each_slice_is_what_a_loop_over_rows_gives(manifest: Manifest, column: str) -> None:
    rows = random_rows()
    found = summarise_slices(rows, manifest, columns=[column])
    values = sorted({value for row in ROWS for value in values_of(row, column)}, key=lambda v: (v is None, v or ""))
    assert [each["value"] for each in found["slices"]] == values
    for each in found["slices"]:
        assert each.pop("column") == column
        check_same(each, by_loop(rows, column, each["value"]))


def test_groups_that_hold_most_of_the_worst_come_first(manifest: Manifest) -> None:
    rows = random_rows()
    groups = summarise_slices(rows, manifest, columns=[])["groups"]
    names = {row["group"] for row in ROWS} - {None}
    assert groups["num_groups"] == len(names)
    assert groups["num_rows_without"] == sum(row["group"] is None for row in ROWS)
    expected = sorted(
        (by_loop(rows, "group", name) for name in names), key=lambda g: (-g["share_of_worst_true"], g["value"])
    )
    assert [each["value"] for each in groups["worst"]] == [each["value"] for each in expected[:10]]
    check_same(groups["worst"][0], expected[0])


def test_on_their_own_columns_of_few_values_are_sliced_by_and_others_named(manifest: Manifest) -> None:
    columns = slice_columns(manifest, None)
    assert columns == ["light", "wet", "lane", "camera", "tags", "url"]
    found = summarise_slices(random_rows(), manifest, columns=columns)
    assert {each["column"] for each in found["slices"]} == {"light", "wet", "lane", "camera", "tags"}
    assert found["slices_left_out"] == {"url": "more than 200 values"}
    json.dumps(found, allow_nan=False)


def test_tied_predictions_share_the_last_places_of_the_worst(manifest: Manifest) -> None:
    rows = random_rows()
    flat = Observed(**{**vars(rows), "predicted_loss": np.where(rows.is_error, np.nan, 0.5)})
    for each in summarise_slices(flat, manifest, columns=["light"])["slices"]:
        assert each["share_of_worst_predicted"] == pytest.approx(each["share_of_rows"], rel=1e-5)


def test_rows_without_a_prediction_have_no_numbers(manifest: Manifest) -> None:
    nan, zeros = np.full(NUM_ROWS, np.nan), np.zeros(NUM_ROWS, np.int64)
    rows = Observed(
        predicted_loss=nan,
        expected_pck=nan,
        confidence=nan,
        true_loss=nan,
        is_error=zeros == 0,
        num_right=zeros,
        num_judged=zeros,
    )
    found = summarise_slices(rows, manifest, columns=["light"])["slices"]
    assert sum(each["num_errors"] for each in found) == NUM_ROWS
    assert {each[key] for each in found for key in ("pck", "mean_true_loss", "share_of_worst_true")} == {None}


def test_a_column_that_not_all_files_have_is_left_alone_unless_named(manifest: Manifest, tmp_path: Path) -> None:
    less = pa.schema([field for field in SCHEMA if field.name != "light"])
    write(tmp_path / "table", "c", [{**row, "sample_id": f"c{i}"} for i, row in enumerate(ROWS[:5])], less)
    assert "light" not in slice_columns(freeze(tmp_path / "table"), None)
    with pytest.raises(InputError, match=r"^--slices light: expected text, .*, found no such column in c\.parquet$"):
        slice_columns(freeze(tmp_path / "table"), ["light"])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("lihgt", "no such column"),
        ("speed", "double"),
        ("captured_at", "a column of the tables' own"),
        ("sample_id", "a column of the tables' own"),
        ("keypoints", "a column of the tables' own"),
    ],
)
def test_a_column_that_makes_no_slices_is_refused(manifest: Manifest, name: str, found: str) -> None:
    with pytest.raises(InputError, match=rf"^--slices {name}: expected text, .* found {found} in a\.parquet$"):
        slice_columns(manifest, ["light", name])


def test_a_column_named_twice_is_there_once(manifest: Manifest) -> None:
    assert slice_columns(manifest, ["lane", "group", "lane"]) == ["lane", "group"]


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array(["a", None]), [("a",), ()]),
        (pa.array(["a", "a"]).dictionary_encode(), [("a",), ("a",)]),
        (pa.array([1, None]), [("1",), ()]),
        (pa.array([True]), [("true",)]),
        (pa.array([["b", "a", "b"], [], None, [None, "a"]]), [("b", "a"), (), (), ("a",)]),
        (pa.array([["a"], ["b"], ["c"]], pa.large_list(pa.string())).slice(1), [("b",), ("c",)]),
        (pa.array([], pa.string()), []),
    ],
)
def test_values_of_any_kind_are_text_each_once_a_row(column: pa.Array, words: list[tuple[str, ...]]) -> None:
    assert texts_by_row(pa.chunked_array([column])) == words
