"""The scores table: sorted parts with statistics and checksums, read only when published."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import scores_table

from distributed.runs import begin_run, publish_run
from distributed.schema import SCORES
from distributed.scores import ROW_GROUP_ROWS, read_scores, write_part
from distributed.storage import Location, locate
from model.errors import InputError

LOSSES = [0.5, None, 2.0, 0.5, -1.0, None, 3.5, 0.5]


@pytest.fixture
def out(tmp_path: Path) -> Location:
    location = locate(str(tmp_path / "scores"))
    begin_run(location, {})
    return location


def publish(out: Location, *parts: str) -> None:
    publish_run(out, {"kind": "scores", "parts": list(parts)})


def test_a_part_is_in_selection_order_with_failed_rows_last(out: Location) -> None:
    write_part(out, "attempt-1/part-0.parquet", scores_table(LOSSES))
    found = pq.read_table(out.join("attempt-1", "part-0.parquet").path)
    assert found.schema.equals(SCORES)
    assert found["predicted_loss"].to_pylist() == [3.5, 2.0, 0.5, 0.5, 0.5, -1.0, None, None]
    assert found["sample_id"].to_pylist() == [f"a000{i}" for i in (6, 2, 0, 3, 7, 4, 1, 5)]
    assert found["pool_row"].to_pylist() == [6, 2, 0, 3, 7, 4, 1, 5]


def test_a_part_is_counted_by_pool_file_and_reason(out: Location) -> None:
    files = ["b", "a", "b", "b", "a", "b", "b", "b"]
    errors = [None, "empty", None, None, None, "bad_box", None, None]
    part = write_part(out, "p.parquet", scores_table(LOSSES, pool_file=files, error=errors))
    assert (part.path, part.num_rows) == ("p.parquet", 8)
    assert part.rows_by_file == {"b": 6, "a": 2}
    assert part.errors == {"empty": 1, "bad_box": 1}


def test_batches_of_several_files_make_one_part(out: Location) -> None:
    rows = pa.concat_tables(
        [scores_table([1.0, 3.0], pool_file=["a", "b"]), scores_table([2.0], pool_file=["c"], sample_id=["z"])]
    )
    part = write_part(out, "p.parquet", rows)
    assert part.rows_by_file == {"a": 1, "b": 1, "c": 1}
    assert pq.read_table(out.join("p.parquet").path)["pool_file"].to_pylist() == ["b", "c", "a"]


def test_a_part_without_rows_is_a_part(out: Location) -> None:
    part = write_part(out, "p.parquet", SCORES.empty_table())
    assert (part.num_rows, part.rows_by_file, part.errors) == (0, {}, {})
    assert pq.read_table(out.join("p.parquet").path).schema.equals(SCORES)


def test_row_groups_have_statistics_of_the_loss(out: Location) -> None:
    losses: list[float | None] = [float(i) for i in range(ROW_GROUP_ROWS + 10)]
    write_part(out, "p.parquet", scores_table(losses))
    footer = pq.read_metadata(out.join("p.parquet").path)
    column = SCORES.get_field_index("predicted_loss")
    found = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    assert [(each.max, each.min) for each in found] == [(ROW_GROUP_ROWS + 9.0, 10.0), (9.0, 0.0)]


def test_published_parts_are_read_and_nothing_else(out: Location) -> None:
    write_part(out, "attempt-1/p0.parquet", scores_table([9.0], sample_id=["stale"]))
    write_part(out, "attempt-2/p0.parquet", scores_table([1.0], sample_id=["x"]))
    write_part(out, "attempt-2/p1.parquet", scores_table([2.0], sample_id=["y"]))
    publish(out, "attempt-2/p0.parquet", "attempt-2/p1.parquet")
    assert [table["sample_id"].to_pylist() for table in read_scores(out)] == [["x"], ["y"]]


def test_unpublished_scores_are_not_read(out: Location) -> None:
    write_part(out, "attempt-1/p.parquet", scores_table([1.0]))
    with pytest.raises(InputError, match="expected finished scores, found an unfinished run"):
        list(read_scores(out))


@pytest.mark.parametrize("num_bytes", [1, None])
def test_damaged_scores_are_never_taken_for_scores(out: Location, num_bytes: int | None) -> None:
    write_part(out, "p.parquet", scores_table([float(i) for i in range(200)]))
    publish(out, "p.parquet")
    path = Path(out.join("p.parquet").path)
    good = path.read_bytes()
    path.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:] if num_bytes else good[:500])
    with pytest.raises(InputError, match=r"p\.parquet: damaged: "):
        list(read_scores(out))
