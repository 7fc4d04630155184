"""Ids to leave out: looked up exactly, whatever their hashes, and read from any table that names samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.selection import exclusion
from distributed.selection.exclusion import IdSet, freeze_ids, read_ids
from distributed.storage.location import locate
from model.errors import InputError

IDS = st.lists(st.text("aBé\uffee\U0001f600\0", max_size=3), max_size=30)


@settings(deadline=None)  # other work may hold the machine
@given(known=IDS, wanted=IDS, cut=st.integers(0, 30))
def test_an_id_is_contained_exactly_if_it_is_one_of_them(known: list[str], wanted: list[str], cut: int) -> None:
    ids = IdSet([pa.array(known[:cut], pa.string()), pa.array(known[cut:], pa.string())])
    found = ids.contains(pa.chunked_array([wanted], pa.string()))
    assert found.tolist() == [sample_id in known for sample_id in wanted]
    assert len(ids) == len(known)


@settings(deadline=None)  # other work may hold the machine
@given(known=IDS, wanted=IDS)
def test_ids_whose_hashes_collide_are_told_apart(known: list[str], wanted: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exclusion, "_hash", lambda ids: np.array([len(each) for each in ids.to_pylist()], np.int64))
        found = IdSet([pa.array(known, pa.string())]).contains(pa.array(wanted, pa.string()))
    assert found.tolist() == [sample_id in known for sample_id in wanted]


def test_ids_come_from_pools_and_single_files_of_any_number_of_row_groups(
    tmp_path: Path, write_table: WriteTable
) -> None:
    pool = write_table("pool", plain_rows(30), row_group_bytes=500)
    pq.write_table(pa.table({"sample_id": ["x", "y"], "rank": [1, 2]}), tmp_path / "earlier.parquet")
    ids = read_ids([freeze_ids(locate(pool)), freeze_ids(locate(str(tmp_path / "earlier.parquet")))])
    assert len(ids) == 32
    assert ids.contains(pa.array(["p0029", "y", "p0030"])).tolist() == [True, True, False]


def test_no_table_excludes_nothing() -> None:
    assert read_ids([]).contains(pa.array(["x"])).tolist() == [False]


def test_a_table_that_changed_since_it_was_frozen_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "known.parquet"
    pq.write_table(pa.table({"sample_id": ["x"]}), path)
    manifest = freeze_ids(locate(str(path)))
    pq.write_table(pa.table({"sample_id": ["x", "y"]}), path)
    with pytest.raises(InputError, match=r"known\.parquet: expected the file as it was when the run began"):
        read_ids([manifest])
