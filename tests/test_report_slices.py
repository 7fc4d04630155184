"""Shares of slices against counting rows; rows of a selection against reading the whole pool."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from picked import make_bundle, make_pool, publish

from distributed.reporting.origin import read_origin
from distributed.reporting.rows import (
    INDEX,
    Missing,
    Pool,
    Totals,
    count_pool,
    count_scores,
    read_rows,
    read_scored_rows,
)
from distributed.reporting.words import compare
from distributed.runs.progress import silent
from distributed.storage.location import locate
from distributed.tables import reader

NUM_ROWS = 60


def pool_rows() -> list[dict[str, object]]:
    return [
        {
            "sample_id": f"s{i:02d}",
            "image": bytes([i]) * 600,
            "group": None,
            "camera": None if i % 4 == 0 else f"c{i % 3}",
            "light": f"unique-{i}",
        }
        for i in range(NUM_ROWS)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("picked")
    make_pool(folder, pool_rows(), row_group_bytes=3000)
    make_bundle(folder / "model")
    publish(folder, budget=11, control_share=0.4)
    return folder


def test_each_row_is_read_once_with_its_own_image(folder: Path) -> None:
    origin = read_origin(str(folder / "selection"))
    missing = Missing()
    tables = list(
        read_rows([Pool(location=locate(str(folder / "pool")))], origin.selected, missing=missing, progress=silent)
    )
    rows = pa.concat_tables(tables).to_pylist()
    assert not missing.reasons
    assert sorted(row[INDEX] for row in rows) == list(range(11))
    ids = origin.selected["sample_id"].to_pylist()
    for row in rows:
        assert row["sample_id"] == ids[row[INDEX]]
        assert row["image"] == bytes([int(row["sample_id"][1:])]) * 600


def test_only_row_groups_with_selected_rows_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = reader._read_group

    def spy(*arguments: Any, **options: Any) -> Any:
        read.append(arguments[1])
        return original(*arguments, **options)

    monkeypatch.setattr(reader, "_read_group", spy)
    selected = read_origin(str(folder / "selection")).selected
    pools = [Pool(location=locate(str(folder / "pool")))]
    list(read_rows(pools, selected.slice(0, 2), missing=Missing(), progress=silent))
    assert read == [0]


def test_two_pools_may_hold_files_of_one_name(folder: Path, tmp_path: Path) -> None:
    other = [{**row, "sample_id": f"t{i:02d}"} for i, row in enumerate(pool_rows())]
    make_pool(tmp_path / "other", other)
    selected = read_origin(str(folder / "selection")).selected
    again = selected.set_column(
        1, "sample_id", pa.array([name.replace("s", "t") for name in selected["sample_id"].to_pylist()])
    )
    both = pa.concat_tables([selected, again.cast(selected.schema)])
    missing = Missing()
    pools = [Pool(location=locate(str(place / "pool"))) for place in (folder, tmp_path / "other")]
    rows = pa.concat_tables(read_rows(pools, both, missing=missing, progress=silent))
    assert not missing.reasons
    assert sorted(rows[INDEX].to_pylist()) == list(range(22))
    assert {*rows["sample_id"].to_pylist()} == {*both["sample_id"].to_pylist()}


def test_a_path_out_of_the_pool_is_not_followed(folder: Path) -> None:
    selected = read_origin(str(folder / "selection")).selected
    paths = pa.array([f"../pool/{name}" for name in selected["pool_file"].to_pylist()])
    moved = selected.set_column(selected.schema.get_field_index("pool_file"), "pool_file", paths)
    missing = Missing()
    pools = [Pool(location=locate(str(folder / "scores")))]
    assert list(read_rows(pools, moved, missing=missing, progress=silent)) == []
    assert len(missing.reasons) == 11
    assert all("expected a path below the pool" in reason for reason in missing.reasons.values())


def test_shares_are_those_of_counting(folder: Path) -> None:
    origin = read_origin(str(folder / "selection"))
    parts = origin.read_parts()
    totals = count_scores(parts, ["camera", "light"])
    cameras = [row["camera"] for row in pool_rows()]
    assert totals.num_rows == NUM_ROWS
    assert totals.counts["camera"] == Counter(name for name in cameras if name)
    assert count_pool(
        Pool(location=origin.tables[0].pool, footers=origin.tables[0].footers), ["camera"], num_rows=NUM_ROWS
    ) == Totals(num_rows=NUM_ROWS, counts={"camera": totals.counts["camera"]})
    scored = read_scored_rows(parts, origin.selected)
    picked = [cameras[int(name[1:])] for name in origin.selected["sample_id"].to_pylist()]
    assert [scored.metadata["camera"][place] for place in range(11)] == [(name,) if name else () for name in picked]
    shares = compare(totals, scored.metadata, num_selected=11)["camera"]
    assert {share.value: (share.pool, share.selection) for share in shares} == {
        name: (cameras.count(name) / NUM_ROWS, picked.count(name) / 11) for name in ("c0", "c1", "c2")
    }


def test_columns_with_too_many_values_are_names_not_slices(tmp_path: Path) -> None:
    make_pool(tmp_path, [{**row, "sample_id": f"{i}", "light": f"{i}"} for i, row in enumerate(pool_rows() * 6)])
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=3)
    parts = read_origin(str(tmp_path / "selection")).read_parts()
    assert [*count_scores(parts, ["camera", "light"]).counts] == ["camera"]
