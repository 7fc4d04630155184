"""Filters: what conditions on columns mean, and that excluded ids are looked up exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows, scores_table
from hypothesis import given
from hypothesis import strategies as st

from distributed.selection import filters
from distributed.selection.filters import (
    FilterSpec,
    IdSet,
    condition_columns,
    freeze_ids,
    parse_condition,
    read_excluded,
)
from distributed.storage.location import locate
from model.errors import InputError

ROWS = scores_table(
    [0.5, 0.25, None, 0.75, 0.1],
    group=["x", "y", None, "rear's", "x"],
    confidence=[0.1, 0.4, None, 0.6, 0.9],
    pool_file=["a.parquet", "b.parquet", "a.parquet", "a.parquet", "b.parquet"],
).append_column("is_night", pa.array([True, False, None, True, False]))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("confidence < 0.5", [0, 1]),
        ("confidence <= 0.4 and group != 'x'", [1]),
        ("0.2 < confidence < 0.8", [1, 3]),
        ("0.5 >= confidence", [0, 1]),
        ("confidence == 0.1", [0]),  # as it is shown, not as float64 has it
        ("confidence in (0.1, 0.9, 7)", [0, 4]),
        ("predicted_loss > confidence", [0, 3]),
        ("predicted_loss > -1", [0, 1, 3, 4]),
        ("group in ('x', 'y')", [0, 1, 4]),
        ("group in ['y']", [1]),
        ("group not in ('x', 'y')", [3]),  # null is neither in nor not in
        ("group != 'x'", [1, 3]),
        ("not group == 'x'", [1, 3]),
        ("group != 'x' or group is null", [1, 2, 3]),
        ("group is None", [2]),
        ("group is not null", [0, 1, 3, 4]),
        ('group == "rear\'s"', [3]),
        ("pool_file == 'b.parquet' and pool_row >= 2", [4]),
        ("pool_file in ('b.parquet', 'c.parquet')", [1, 4]),
        ("is_night", [0, 3]),
        ("not is_night or confidence > 0.5", [1, 3, 4]),
        ("is_night == True", [0, 3]),
        ("(group == 'x' or group == 'y') and confidence < 0.2", [0]),
        ("  error is null  ", [0, 1, 3, 4]),
        ("error == 'undecodable'", [2]),
        ("confidence < 1" + " and confidence < 1" * 500, [0, 1, 3, 4]),
        (f"group in ({', '.join(repr(str(i)) for i in range(1000))}, 'y')", [1]),
    ],
)
def test_a_condition_holds_for_these_rows(text: str, rows: list[int]) -> None:
    assert ROWS.filter(parse_condition(text, ROWS.schema))["pool_row"].to_pylist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera == 'front'", r"expected a column \(sample_id, group, .*, is_night\), found 'camera'"),
        ("0.5 < camera", "expected a column .*, found 'camera'"),
        ("camera is null", "expected a column .*, found 'camera'"),
        ("confidence < low", "expected a column .*, found 'low'"),
        ("confidence = 0.5", "expected columns compared with values"),
        ("confidence < 0.5 AND is_night", "expected columns compared"),
        ("", "expected columns compared"),
        ("group ==", "expected columns compared"),
        ("confidence < 0.5; import os", "expected columns compared"),
        ("__import__('os').getcwd() == 'x'", r"expected columns compared .*; found \"__import__\('os'\)"),
        ("group.lower() == 'x'", "found 'group.lower\\(\\)'"),
        ("confidence + 1 < 2", r"found 'confidence \+ 1'"),
        ("group in 'xy'", "found \"'xy'\""),
        ("group in ()", r"found '\(\)'"),
        ("group is 'x'", "found \"'x'\""),
        ("'x' is null", "found \"'x'\""),
        ("[group for group in x]", "expected columns compared"),
        ("lambda: 1", "expected columns compared"),
        ("confidence if is_night else group", "expected columns compared"),
        ("1", "found '1'"),
        ("null", "expected a column .*, found 'null'"),
        ("confidence < 1j", "found '1j'"),
        ("group == b'x'", "found \"b'x'\""),
        ("group < 3", "Function 'less' has no kernel matching input types"),
        ("confidence == 'x'", "Function 'equal' has no kernel"),
        ("confidence", "must evaluate to bool"),
        ("not " * 5000 + "is_night", "expected columns compared"),
        ("not " * 2000 + "is_night", "expected columns compared"),
        ("(" * 300 + "is_night" + ")" * 300, "expected columns compared"),
        ("confidence < 1" + "0" * 400, "expected a number"),
        ("pool_row < 99999999999999999999", "expected a number"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse_condition(text, ROWS.schema)
    assert str(raised.value).startswith("--where")
    assert "\n" not in str(raised.value)


def test_a_condition_names_its_columns() -> None:
    assert condition_columns("a < 1 and b is null or c in (1, 2) and a == d") == ["a", "b", "c", "d"]


IDS = st.lists(st.text("aBé\uffee\U0001f600\0", max_size=3), max_size=30)


@given(known=IDS, wanted=IDS, cut=st.integers(0, 30))
def test_an_id_is_contained_exactly_if_it_is_one_of_them(known: list[str], wanted: list[str], cut: int) -> None:
    ids = IdSet([pa.array(known[:cut], pa.string()), pa.array(known[cut:], pa.string())])
    found = ids.contains(pa.chunked_array([wanted], pa.string()))
    assert found.tolist() == [sample_id in known for sample_id in wanted]
    assert len(ids) == len(known)


@given(known=IDS, wanted=IDS)
def test_ids_whose_hashes_collide_are_told_apart(known: list[str], wanted: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_hash", lambda ids: np.array([len(each) for each in ids.to_pylist()], np.int64))
        found = IdSet([pa.array(known, pa.string())]).contains(pa.array(wanted, pa.string()))
    assert found.tolist() == [sample_id in known for sample_id in wanted]


def test_ids_come_from_pools_and_single_files_of_any_number_of_row_groups(
    tmp_path: Path, write_table: WriteTable
) -> None:
    pool = write_table("pool", plain_rows(30), row_group_bytes=500)
    pq.write_table(pa.table({"sample_id": ["x", "y"], "rank": [1, 2]}), tmp_path / "earlier.parquet")
    tables = (freeze_ids(locate(pool)), freeze_ids(locate(str(tmp_path / "earlier.parquet"))))
    ids = read_excluded(FilterSpec(excluded=tables)).ids
    assert len(ids) == 32
    assert ids.contains(pa.array(["p0029", "y", "p0030"])).tolist() == [True, True, False]


def test_an_excluded_table_may_name_an_id_twice(tmp_path: Path) -> None:
    path = tmp_path / "known.parquet"
    pq.write_table(pa.table({"sample_id": ["x", "y", "x"]}), path)
    ids = read_excluded(FilterSpec(excluded=(freeze_ids(locate(str(path))),))).ids
    assert ids.contains(pa.array(["x", "y", "z"])).tolist() == [True, True, False]


def test_no_table_excludes_nothing() -> None:
    assert read_excluded(FilterSpec()).ids.contains(pa.array(["x"])).tolist() == [False]


def test_a_table_that_changed_since_it_was_frozen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "known.parquet"
    pq.write_table(pa.table({"sample_id": ["x"]}), path)
    manifest = freeze_ids(locate(str(path)))
    pq.write_table(pa.table({"sample_id": ["x", "y"]}), path)
    with pytest.raises(InputError, match=r"known\.parquet: expected the file as it was when the run began"):
        read_excluded(FilterSpec(excluded=(manifest,)))
