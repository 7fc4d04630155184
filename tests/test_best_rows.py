"""Reading of the best rows: the same as reading everything, from any layout of files; and not everything is read."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import scores_table
from hypothesis import given
from hypothesis import strategies as st

from distributed.schema import SCORES
from distributed.selection import best_rows, topk
from distributed.selection.best_rows import CANDIDATES, fetch_columns, push_best_rows, scan_part
from distributed.selection.candidates import Candidates
from distributed.selection.filters import FilterSpec, RowFilter, freeze_ids
from distributed.selection.topk import TopK, top_k
from distributed.storage.location import locate
from distributed.tables.scores_reader import ReadablePart, read_parts
from model.errors import InputError

EVERYTHING = FilterSpec()
LOSSES = st.one_of(
    st.sampled_from([None, math.nan, math.inf, -math.inf, -0.0, 0.0, 0.5, 1.0, 2.0]), st.floats(width=32)
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "sample_id": st.text("aBé\uffee\U0001f600", max_size=3),
            "group": st.sampled_from([None, "", "night", "rain"]),
            "captured_at": st.sampled_from([None, *(datetime(2026, 1, 1, 0, 0, s, tzinfo=UTC) for s in (0, 1, 2, 5))]),
            "predicted_loss": LOSSES,
            "confidence": st.sampled_from([None, 0.1, 0.9]),
            "error": st.sampled_from([None, None, None, "empty"]),
            "pool_file": st.sampled_from(["z.parquet", "a.parquet"]),
        }
    ),
    max_size=40,
).map(lambda rows: [row | {"pool_row": number} for number, row in enumerate(rows)])


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "is_sorted": draw(st.booleans()),
        "row_group_size": draw(st.integers(1, 7)),
        "write_statistics": draw(st.sampled_from([True, True, False, ["sample_id"]])),
        "use_dictionary": draw(st.booleans()),
    }


def write(path: Path, rows: pa.Table, *, is_sorted: bool = True, row_group_size: int = 4, **options: Any) -> None:
    if is_sorted:
        keys = [("predicted_loss", "descending", "at_end"), ("sample_id", "ascending", "at_end")]
        rows = rows.sort_by([(name, order) for name, order, _ in keys])
    pq.write_table(rows, path, row_group_size=row_group_size, write_page_checksum=True, **options)


def open_parts(folder: Path) -> list[ReadablePart]:
    return read_parts([(locate(str(folder)), {"parts": sorted(path.name for path in folder.glob("*.parquet"))})])


def write_shards(folder: Path, rows: list[dict[str, Any]], data: st.DataObject) -> list[ReadablePart]:
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    for number, (start, end) in enumerate(itertools.pairwise([0, *cuts, len(rows)])):
        shard = pa.Table.from_pylist(shuffled[start:end], schema=SCORES)
        write(folder / f"{number}.parquet", shard, **data.draw(layouts()))
    return open_parts(folder)


def as_candidates(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows for comparing: −0.0 for 0.0 may come of rows that are the same otherwise."""
    columns = [name for name in CANDIDATES.names if name not in ("part", "part_row")]
    return [{**row, "predicted_loss": row["predicted_loss"] + 0.0} for row in rows.select(columns).to_pylist()]


@given(
    rows=ROWS,
    k=st.integers(0, 45),
    cap=st.one_of(st.none(), st.integers(1, 3)),
    gap=st.sampled_from([0, 1.0, 3.0]),
    bounds=st.tuples(LOSSES, LOSSES).map(lambda pair: [None if x is None or math.isnan(x) else x for x in pair]),
    threads=st.integers(1, 2),
    data=st.data(),
)
def test_the_best_rows_are_those_of_reading_everything_in_any_layout(
    rows: list[dict[str, Any]],
    k: int,
    cap: int | None,
    gap: float,
    bounds: list[float | None],
    threads: int,
    data: st.DataObject,
) -> None:
    limits: Any = {"k": k, "max_per_group": cap, "min_gap": gap}
    low, high = bounds
    spec = FilterSpec(min_loss=low, max_loss=high, where=data.draw(st.sampled_from([None, "confidence > 0.5"])))
    table = pa.Table.from_pylist(rows, schema=SCORES)
    is_passed = [
        row["predicted_loss"] is not None
        and (low is None or row["predicted_loss"] >= low)
        and (high is None or row["predicted_loss"] <= high)
        and (spec.where is None or row["confidence"] == 0.9)
        for row in rows
    ]
    passed = table.filter(pa.array(is_passed, pa.bool_()))
    with tempfile.TemporaryDirectory() as folder:
        parts = write_shards(Path(folder), rows, data)
        row_filter = RowFilter(spec, schema=parts[0].schema)
        by_loss = TopK(**limits)
        with (
            patch.object(best_rows, "_FEWEST_ROWS", data.draw(st.sampled_from([1, 3, 1024]))),
            patch.object(topk, "_FEWEST_NEW", data.draw(st.sampled_from([0, 1024]))),
        ):
            push_best_rows(parts, by_loss, row_filter=row_filter, num_threads=threads)
        drawn = TopK(**limits, seed=3)
        push_best_rows(parts, drawn, row_filter=row_filter, num_threads=threads)
        counted = Candidates(parts, spec, num_scored=sum(map(scored, rows))).count()
    assert as_candidates(by_loss.result()) == as_candidates(origin_as_text(top_k(passed, **limits)))
    drawn_of_all = top_k(passed, **limits, seed=3)
    assert as_candidates(drawn.result()) == as_candidates(origin_as_text(drawn_of_all))
    assert counted == sum(map(scored, passed.to_pylist()))


def scored(row: dict[str, Any]) -> bool:
    return row["error"] is None and row["predicted_loss"] is not None and not math.isnan(row["predicted_loss"])


def origin_as_text(rows: pa.Table) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index("pool_file"), "pool_file", rows["pool_file"].cast(pa.string()))


def many_losses(count: int, *, seed: int = 0) -> list[float | None]:
    return [float(loss) for loss in np.random.default_rng(seed).random(count, dtype=np.float32)]


def select(
    parts: list[ReadablePart],
    *,
    k: int,
    cap: int | None = None,
    spec: FilterSpec = EVERYTHING,
    threads: int = 1,
) -> pa.Table:
    top = TopK(k=k, max_per_group=cap)
    push_best_rows(parts, top, row_filter=RowFilter(spec, schema=parts[0].schema), num_threads=threads)
    return top.result()


Read = tuple[str, int, tuple[str, ...]]


@pytest.fixture
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """Part, row group and columns of each read."""
    reads: list[Read] = []
    read_group: Callable[..., pa.Table] = best_rows.read_group

    def read(reader: Any, part: ReadablePart, group: int, columns: list[str], **options: Any) -> pa.Table:
        reads.append((Path(part.location.path).stem, group, tuple(columns)))
        return read_group(reader, part, group, columns, **options)

    monkeypatch.setattr(best_rows, "read_group", read)
    return reads


def num_read_in_full(reads: list[Read]) -> int:
    """Row groups of which more than the losses was read."""
    return len({(part, group) for part, group, columns in reads if columns != ("predicted_loss",)})


def test_of_sorted_parts_only_the_first_row_groups_are_read(tmp_path: Path, counted_reads: list[Any]) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.parquet", scores_table(many_losses(5000, seed=number)), row_group_size=100)
    assert len(select(open_parts(tmp_path), k=50)) == 50
    assert num_read_in_full(counted_reads) <= 15
    assert len(counted_reads) <= 2 * num_read_in_full(counted_reads) + 5  # of 250


def test_a_part_that_cannot_contribute_costs_one_column_of_one_row_group(
    tmp_path: Path, counted_reads: list[Any]
) -> None:
    write(tmp_path / "high.parquet", scores_table([10.0 + loss for loss in many_losses(3000)]), row_group_size=1500)
    write(tmp_path / "low.parquet", scores_table(many_losses(3000)), row_group_size=1500)
    rows = select(open_parts(tmp_path), k=1100)
    assert num_read_in_full(counted_reads) == 1
    assert min(rows["predicted_loss"].to_pylist()) > 10
    assert [read for read in counted_reads if read[0] == "low"] == [("low", 0, ("predicted_loss",))]


def test_losses_under_the_least_wanted_are_not_looked_for(tmp_path: Path, counted_reads: list[Any]) -> None:
    write(tmp_path / "0.parquet", scores_table(many_losses(1000)), row_group_size=10)
    rows = select(open_parts(tmp_path), k=900, spec=FilterSpec(min_loss=0.95))
    assert min(rows["predicted_loss"].to_pylist()) >= 0.95
    assert num_read_in_full(counted_reads) <= len(rows) // 10 + 1


def test_of_each_sorted_part_a_few_rows_are_read_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best rows all lie in one part: it is gone on with, after its few first ones, until its share is found."""
    num_read: list[int] = []
    read_group: Callable[..., pa.Table] = best_rows.read_group

    def read(*arguments: Any, end: int | None = None) -> pa.Table:
        num_read.append(end or 0)
        return read_group(*arguments, end=end)

    monkeypatch.setattr(best_rows, "read_group", read)
    for number in range(4):
        losses = [number // 3 + loss for loss in many_losses(20_000, seed=number) if loss is not None]
        write(tmp_path / f"{number}.parquet", scores_table(list(losses)), row_group_size=20_000)
    rows = select(open_parts(tmp_path), k=3000)
    assert set(rows["part"].to_pylist()) == {3}
    assert max(num_read) < 4000
    assert sum(num_read) < 10_000


def test_ties_with_the_threshold_are_read_to_the_last(tmp_path: Path) -> None:
    """The smallest ids of 3,000 equal losses lie in the part and the row group that come last."""
    ids = [f"{i:05d}" for i in reversed(range(3000))]
    for number in range(3):
        own = ids[number * 1000 : (number + 1) * 1000]
        rows = scores_table([1.0] * 1000, sample_id=own)
        write(tmp_path / f"{number}.parquet", rows, is_sorted=False, row_group_size=100)
    rows = select(open_parts(tmp_path), k=10)
    assert rows["sample_id"].to_pylist() == [f"{i:05d}" for i in range(10)]


def test_one_group_that_holds_the_best_rows_does_not_end_the_reading(tmp_path: Path) -> None:
    losses = [float(i) for i in range(2000)]
    groups = [f"g{i}" if i < 100 else "hot" for i in range(2000)]
    write(tmp_path / "0.parquet", scores_table(list(losses), group=groups), row_group_size=100)
    rows = select(open_parts(tmp_path), k=5, cap=1)
    assert rows["predicted_loss"].to_pylist() == [1999.0, 99.0, 98.0, 97.0, 96.0]


@pytest.mark.parametrize(
    "greatest",
    [
        [9.0, 9.0, 9.0],  # all promise more than there is
        [math.inf, 6.0, 3.0],
        [7.0, 6.0, 3.0],  # the first was 9
        [9.0, 4.5, 3.0],  # the second was 6
        [9.0, 6.0, -math.inf],
    ],
)
def test_a_statistic_that_is_wrong_hides_no_row_of_a_sorted_part(tmp_path: Path, greatest: list[float]) -> None:
    """Footers have no checksum: the rows are found, or the damage is."""
    write(tmp_path / "0.parquet", scores_table([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), row_group_size=3)
    (part,) = open_parts(tmp_path)
    assert part.greatest.tolist() == [9, 6, 3]
    for k in range(1, 8):
        try:
            rows = select([replace(part, greatest=np.array(greatest, np.float32))], k=k)
        except InputError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert rows["predicted_loss"].to_pylist() == [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0][:k]


def test_a_flipped_byte_of_the_pages_never_changes_what_is_selected_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    write(path, scores_table(many_losses(60), group=["a", "b", "c"] * 20), row_group_size=20)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # pyarrow may abort on a damaged one
    expected = select(open_parts(tmp_path), k=25)
    num_noticed = 0
    for place in range(4, footer, 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
        try:
            found = select(open_parts(tmp_path), k=25)
        except InputError:
            num_noticed += 1
        else:
            assert found.equals(expected), place
    assert num_noticed > 0


def test_other_columns_are_fetched_for_the_winners_in_their_order(tmp_path: Path, counted_reads: list[Any]) -> None:
    for number in range(3):
        losses = many_losses(500, seed=number)
        rows = scores_table(list(losses), sample_id=[f"{number}-{loss}" for loss in losses])
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(losses, 2).astype(np.float16)), 2)
        write(tmp_path / f"{number}.parquet", rows.append_column("embedding", embedding), row_group_size=50)
    parts = open_parts(tmp_path)
    winners = select(parts, k=20)
    counted_reads.clear()
    found = fetch_columns(parts, winners, columns=["sample_id", "embedding"], num_threads=2)
    assert found["sample_id"].equals(winners["sample_id"])
    for row, loss in zip(found["embedding"].to_pylist(), winners["predicted_loss"].to_pylist(), strict=True):
        assert row == [np.float16(loss), np.float16(loss)]
    assert len(counted_reads) <= 6  # of 30 row groups
    nothing = fetch_columns(parts, winners.slice(0, 0), columns=["embedding"], num_threads=2)
    assert nothing.schema == found.select(["embedding"]).schema
    assert len(nothing) == 0


def test_a_scan_gives_all_rows_that_pass_with_their_place(tmp_path: Path) -> None:
    losses: list[float | None] = [0.5, None, 0.25, 0.75, None, 1.0]
    write(tmp_path / "0.parquet", scores_table(losses), is_sorted=False, row_group_size=2)
    (part,) = open_parts(tmp_path)
    row_filter = RowFilter(FilterSpec(min_loss=0.5), schema=part.schema)
    rows = pa.concat_tables(list(scan_part(part, row_filter=row_filter, columns=["confidence"])))
    assert rows.column_names == ["confidence", "part", "part_row"]
    assert rows["part_row"].to_pylist() == [0, 3, 5]


def test_excluded_ids_leave_room_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "0.parquet", scores_table([float(-i) for i in range(3000)]), row_group_size=100)
    pq.write_table(pa.table({"sample_id": [f"a{i:04d}" for i in range(1, 2500)]}), tmp_path / "known.parquet")
    spec = FilterSpec(excluded=(freeze_ids(locate(str(tmp_path / "known.parquet"))),))
    rows = select(open_parts(tmp_path / "parts"), k=3, spec=spec)
    assert rows["sample_id"].to_pylist() == ["a0000", "a2500", "a2501"]


def test_a_part_without_rows_or_row_groups_gives_none(tmp_path: Path) -> None:
    pq.write_table(SCORES.empty_table(), tmp_path / "0.parquet")
    rows = select(open_parts(tmp_path), k=3)
    assert rows.equals(CANDIDATES.empty_table())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_page_is_an_error_that_names_the_part(tmp_path: Path, threads: int) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.parquet", scores_table(many_losses(400)), row_group_size=400)
    parts = open_parts(tmp_path)
    path = tmp_path / "1.parquet"
    data = bytearray(path.read_bytes())
    offset = pq.read_metadata(path).row_group(0).column(2).data_page_offset
    data[offset + 60] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"1\.parquet: damaged"):
        select(parts, k=5, threads=threads)


def test_a_part_that_lacks_a_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(scores_table([1.0]).drop_columns(["error"]), tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"0\.parquet: column 'error': expected string, found no such column"):
        open_parts(tmp_path)


@pytest.mark.parametrize("num_rows", [20, 30])
def test_a_part_that_was_replaced_meanwhile_is_refused(tmp_path: Path, num_rows: int) -> None:
    write(tmp_path / "0.parquet", scores_table(many_losses(20)))
    parts = open_parts(tmp_path)
    write(tmp_path / "0.parquet", scores_table(many_losses(num_rows, seed=1)))
    with pytest.raises(InputError, match=r"0\.parquet: expected the file as it was when the run began"):
        select(parts, k=3)


def test_a_later_row_group_that_promises_more_is_read_though_the_rest_of_one_before_can_not_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_rows, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(topk, "_FEWEST_NEW", 0)
    write(tmp_path / "0.parquet", scores_table([9.0, 8, 7, 6, 5, 4, 100, 99]), is_sorted=False, row_group_size=6)
    top = TopK(k=2)
    parts = open_parts(tmp_path)
    push_best_rows(parts, top, row_filter=RowFilter(EVERYTHING, schema=parts[0].schema), num_threads=1)
    assert top.result()["predicted_loss"].to_pylist() == [100, 99]
