"""The scores table: sorted parts that say what they hold, named after it, and read only when published."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import flipped, scores_table, with_file_ids
from hypothesis import given
from hypothesis import strategies as st

from distributed.runs.record import begin_run
from distributed.schema import FILE_ID, SCORES, scores_schema
from distributed.storage.location import Location, locate
from distributed.tables import scores
from distributed.tables.parquet import hash_footer
from distributed.tables.scores import (
    ROW_GROUP_ROWS,
    ErrorCount,
    Held,
    ScoresPart,
    find_parts,
    index_parts,
    list_parts,
    merge_quantiles,
    read_part,
    sum_damaged,
    sum_errors,
    write_part,
)
from distributed.tables.scores_reader import open_part, read_group, read_parts
from distributed.tables.sketch import NUM_QUANTILES, sketch
from model.errors import InputError

LOSSES = [0.5, None, 2.0, 0.5, -1.0, None, 3.5, 0.5]


@pytest.fixture
def out(tmp_path: Path) -> Location:
    location = locate(str(tmp_path / "scores"))
    begin_run(location, {})
    return location


def scores_rows(losses: list[float | None], **columns: Any) -> pa.Table:
    return with_file_ids(scores_table(losses, **columns))


def file_of(out: Location, part: ScoresPart) -> Path:
    return Path(out.join(*part.path.split("/")).path)


def by_id(rows: pa.Table) -> list[dict[str, Any]]:
    return rows.sort_by("sample_id").to_pylist()


def test_a_part_is_in_selection_order_with_failed_rows_last(out: Location) -> None:
    part = write_part(out, scores_rows(LOSSES))
    found = pq.read_table(file_of(out, part))
    assert found.schema.equals(SCORES)
    assert found["predicted_loss"].to_pylist() == [3.5, 2.0, 0.5, 0.5, 0.5, -1.0, None, None]
    assert found["sample_id"].to_pylist() == [f"a000{i}" for i in (6, 2, 0, 3, 7, 4, 1, 5)]
    assert found["pool_row"].to_pylist() == [6, 2, 0, 3, 7, 4, 1, 5]


def test_a_part_says_which_rows_of_which_files_it_holds(out: Location) -> None:
    files, numbers = ["b", "a", "b", "b", "a", "b", "b", "b"], [7, 3, 1, 0, 2, 4, 9, 8]
    part = write_part(out, scores_rows(LOSSES, pool_file=files, pool_row=numbers))
    assert part.num_rows == 8
    assert part.files == {
        "id of a": Held(path="a", ranges=((2, 4),)),
        "id of b": Held(path="b", ranges=((0, 2), (4, 5), (7, 10))),
    }


@given(numbers=st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), min_size=1), seed=st.integers(0, 9))
def test_the_ranges_of_a_part_are_its_rows(
    tmp_path_factory: pytest.TempPathFactory, numbers: set[tuple[str, int]], seed: int
) -> None:
    shuffled = random.Random(seed).sample(sorted(numbers), len(numbers))  # noqa: S311
    rows = scores_rows(
        [1.0] * len(shuffled), pool_file=[file for file, _ in shuffled], pool_row=[row for _, row in shuffled]
    )
    cut = len(rows) // 2
    part = write_part(
        locate(str(tmp_path_factory.getbasetemp() / "ranges")), pa.concat_tables([rows.slice(cut), rows.slice(0, cut)])
    )
    found = [
        (held.path, row) for held in part.files.values() for start, stop in held.ranges for row in range(start, stop)
    ]
    assert sorted(found) == sorted(numbers)
    for held in part.files.values():
        ends = [end for both in held.ranges for end in both]
        assert ends == sorted(set(ends))  # ascending and apart: no two ranges that could be one


def test_a_row_that_came_twice_is_not_hidden(out: Location) -> None:
    part = write_part(out, scores_rows([1.0, 2.0, 3.0], pool_row=[4, 5, 4]))
    assert sum(stop - start for start, stop in part.files["id of part.parquet"].ranges) == 3


def test_a_part_counts_its_errors_with_the_first_three_ids(out: Location) -> None:
    errors = ["empty", *["undecodable"] * 5, None, None]
    ids = ["x", "e", "c", "d", "a", "b", "y", "z"]
    losses: list[float | None] = [None] * 6 + [1.0, 2.0]
    part = write_part(out, scores_rows(losses, error=errors, sample_id=ids))
    assert part.errors == {
        "empty": ErrorCount(num_rows=1, examples=("x",)),
        "undecodable": ErrorCount(num_rows=5, examples=("a", "b", "c")),
    }


def test_a_part_counts_its_damaged_rows_by_file(out: Location) -> None:
    errors = ["damaged", None, "damaged", "empty", "damaged"]
    losses = [None if error else 1.0 for error in errors]
    part = write_part(out, scores_rows(losses, error=errors, pool_file=["b", "b", "a", "a", "b"], pool_row=[*range(5)]))
    other = write_part(out, scores_rows([None], error=["damaged"], pool_file=["b"], pool_row=[9]))
    assert (part.num_damaged, part.damaged_files) == (3, {"a": 1, "b": 2})
    assert sum_damaged([part, other]) == {"a": 1, "b": 3}


def test_a_writer_hands_on_the_hash_of_the_footer_that_readers_find(out: Location) -> None:
    part = write_part(out, scores_rows([float(i) for i in range(2 * ROW_GROUP_ROWS + 1)]))
    assert part.footer == hash_footer(pq.read_metadata(file_of(out, part)))


def test_errors_of_several_parts_add_up_and_the_examples_are_the_first_of_all(out: Location) -> None:
    ids = [["d", "a"], ["b", "e", "c"], ["f"]]
    errors = [["empty", "empty"], ["empty", "bad_box", "empty"], [None]]
    parts = [
        write_part(out, scores_rows([None] * len(each), sample_id=each, error=reasons, pool_file=[each[0]] * len(each)))
        for each, reasons in zip(ids, errors, strict=True)
    ]
    assert sum_errors(parts) == {
        "bad_box": ErrorCount(num_rows=1, examples=("e",)),
        "empty": ErrorCount(num_rows=4, examples=("a", "b", "c")),
    }
    assert sum_errors([]) == {}


def test_found_parts_are_those_that_were_written(out: Location) -> None:
    assert find_parts(out) == []
    written = [
        write_part(out, scores_rows(LOSSES, pool_file=["ä b=1/x.parquet"] * 8)),
        write_part(out, scores_rows([None, 2.0], pool_file=["b", "c"], error=["nö\n", None])),
        write_part(out, scores_rows([1.0], pool_row=[2**40])),
    ]
    assert find_parts(out) == sorted(written, key=lambda part: part.path)
    assert list_parts(out) == sorted(part.path for part in written)


def test_the_same_rows_in_another_order_replace_the_part(out: Location) -> None:
    rows = scores_rows(LOSSES, pool_file=list("aabbccdd"))
    first = write_part(out, rows)
    again = write_part(out, pa.concat_tables([rows.slice(5), rows.slice(2, 3), rows.slice(0, 2)]))
    assert again.path == first.path
    assert [part.path for part in find_parts(out)] == [first.path]
    assert again.files == first.files


@pytest.mark.parametrize(
    "change", [{"pool_row": [0, 1, 9]}, {"pool_file": ["a", "a", "b"]}, {"pool_file": ["b"] * 3, "pool_row": [0, 1, 3]}]
)
def test_other_rows_are_another_part(out: Location, change: dict[str, Any]) -> None:
    columns: dict[str, Any] = {"pool_file": ["a"] * 3, "pool_row": [0, 1, 2]}
    one = write_part(out, scores_rows([1.0, 2.0, 3.0], **columns))
    other = write_part(out, scores_rows([1.0, 2.0, 3.0], **{**columns, **change}))
    assert len({part.path for part in (one, other)}) == len(find_parts(out)) == 2


def test_the_same_rows_of_a_file_of_another_version_are_another_part(out: Location) -> None:
    rows = scores_rows([1.0, 2.0])
    column = rows.schema.get_field_index(FILE_ID)
    newer = rows.set_column(column, FILE_ID, pa.array(["newer"] * 2).dictionary_encode())
    assert write_part(out, rows).path != write_part(out, newer).path


def test_batches_of_several_files_make_one_part(out: Location) -> None:
    rows = pa.concat_tables(
        [scores_rows([1.0, 3.0], pool_file=["a", "b"]), scores_rows([2.0], pool_file=["c"], sample_id=["z"])]
    )
    part = write_part(out, rows)
    assert {held.path for held in part.files.values()} == {"a", "b", "c"}
    assert pq.read_table(file_of(out, part))["pool_file"].to_pylist() == ["b", "c", "a"]


def test_row_groups_have_statistics_of_the_loss(out: Location) -> None:
    losses: list[float | None] = [float(i) for i in range(ROW_GROUP_ROWS + 10)]
    footer = pq.read_metadata(file_of(out, write_part(out, scores_rows(losses))))
    column = SCORES.get_field_index("predicted_loss")
    found = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    assert [(each.max, each.min) for each in found] == [(ROW_GROUP_ROWS + 9.0, 10.0), (9.0, 0.0)]


def test_rows_come_back_with_their_files_ids(out: Location) -> None:
    rows = scores_rows(LOSSES, pool_file=list("abcabcab"))
    part = write_part(out, rows)
    found = read_part(out, part)
    assert found.column_names == [*SCORES.names, FILE_ID]
    assert by_id(found) == by_id(rows)
    assert write_part(out, found).path == part.path


def test_parts_of_an_earlier_version_read_as_captured_at_null(out: Location) -> None:
    """So a selection may be made of them, and scoring may go on beside them."""
    now = datetime(2026, 11, 28, tzinfo=UTC)
    older = write_part(out, scores_rows([2.0, 1.0], pool_file=["a", "a"]).drop_columns(["captured_at"]))
    newer = write_part(out, scores_rows([3.0], pool_file=["b"], captured_at=[now]))
    merged = write_part(out, pa.concat_tables([read_part(out, older), read_part(out, newer)]))
    assert read_part(out, merged)["captured_at"].to_pylist() == [now, None, None]
    (part,) = read_parts([(out, {"parts": [older.path]})])
    assert part.schema.equals(SCORES)
    with open_part(part) as reader:
        assert read_group(reader, part, 0, ["captured_at", "sample_id"], end=1).to_pylist() == [
            {"captured_at": None, "sample_id": "a0000"}
        ]


def test_keypoints_and_embeddings_survive_as_they_are(out: Location) -> None:
    schema = scores_schema(num_keypoints=2, embedding_dim=3)
    keypoints = [[1.5, 2.25, 0.5, 640.0, 479.5, 1.0], None, [0.0] * 6]
    misses = [[0.5, 0.25], None, None]
    embeddings = [[1e-3, -2.0, 65504.0], None, [float("nan"), 0.0, -0.0]]
    table = scores_table([1.0, None, 3.0])
    for name, values in (("keypoints", keypoints), ("keypoint_miss", misses), ("embedding", embeddings)):
        halves = [None if value is None else np.array(value, np.float16) for value in values]
        table = table.append_column(schema.field(name), pa.array(halves, schema.field(name).type))
    part = write_part(out, with_file_ids(table))
    stored = pq.read_table(file_of(out, part))
    assert stored.schema.equals(schema)
    for found in (stored.sort_by("sample_id"), read_part(out, part).sort_by("sample_id")):
        assert found["keypoints"].to_pylist() == table["keypoints"].to_pylist()
        np.testing.assert_array_equal(found["embedding"][2].values.to_numpy(), table["embedding"][2].values.to_numpy())
        assert found["embedding"][0].as_py() == table["embedding"][0].as_py()
        assert found["embedding"][1].as_py() is None


@pytest.mark.parametrize("num_bytes", [1, None])
def test_damaged_scores_are_never_taken_for_scores(out: Location, num_bytes: int | None) -> None:
    part = write_part(out, scores_rows([float(i) for i in range(200)]))
    path = file_of(out, part)
    good = path.read_bytes()
    path.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:] if num_bytes else good[:500])
    with pytest.raises(InputError, match=r"\.parquet: damaged: "):
        read_part(out, part)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 99])
def test_what_is_no_parquet_is_no_part(out: Location, content: bytes) -> None:
    part = write_part(out, scores_rows([1.0], pool_file=["a"]))
    damaged = write_part(out, scores_rows([2.0], pool_file=["b"]))
    file_of(out, damaged).write_bytes(content)
    assert find_parts(out) == [part]
    assert list_parts(out) == sorted([part.path, damaged.path])


def test_parquet_without_a_ledger_is_no_part(out: Location) -> None:
    Path(out.join("parts").path).mkdir()
    pq.write_table(scores_table([1.0]), out.join("parts", "part-0.parquet").path)
    assert find_parts(out) == []


def test_no_flipped_bit_of_a_part_is_silently_wrong(out: Location) -> None:
    """Neither in its ledger nor in its rows; checksums cover neither footers nor the headers of pages."""
    part = write_part(out, scores_rows(LOSSES, pool_file=list("aabbccdd")))
    path, reference = file_of(out, part), read_part(out, part)
    good, num_bad, num_refused = path.read_bytes(), 0, 0
    for position in range(4, len(good), 19):
        bit = position % 8
        path.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
        found = find_parts(out)
        assert [replace(each, footer=part.footer) for each in found] in ([part], [])
        assert find_parts(out, footers={part.path: part.footer}) in ([part], [])
        num_bad += not found
        try:
            assert not found or read_part(out, part).equals(reference)
        except InputError:
            num_refused += 1
    assert num_bad > 20
    assert num_refused > 20


@given(st.lists(st.lists(st.floats(-5, 5, width=32), max_size=400), min_size=1, max_size=4))
def test_merged_quantiles_are_near_those_of_all_values(lists: list[list[float]]) -> None:
    parts = [
        ScoresPart(
            path="",
            footer="",
            num_rows=len(values),
            num_bytes=0,
            files={},
            errors={},
            damaged_files={},
            loss_quantiles=sketch(np.array(values, np.float32)).quantiles,
        )
        for values in lists
    ]
    every = np.sort(np.concatenate([np.array(values) for values in lists]))
    merged = merge_quantiles(parts)
    assert len(merged) <= NUM_QUANTILES
    assert (len(merged) == 0) == (len(every) == 0)
    for share, value in zip((np.arange(len(merged)) + 0.5) / max(len(merged), 1), merged, strict=True):
        rank = (np.searchsorted(every, value, "left") + np.searchsorted(every, value, "right")) / 2 / len(every)
        spread = (np.searchsorted(every, value, "right") - np.searchsorted(every, value, "left")) / len(every)
        assert abs(rank - share) <= spread + 1 / len(every) + len(lists) / NUM_QUANTILES


def test_a_parts_quantiles_are_kept_in_its_footer(out: Location) -> None:
    part = write_part(out, scores_rows([0.5, None, 2.0, -1.0]))
    assert part.loss_quantiles == (-1.0, 0.5, 2.0)
    assert merge_quantiles(find_parts(out)) == (-1.0, 0.5, 2.0)
    assert merge_quantiles([]) == ()


def test_indexed_parts_are_found_without_opening_them(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        write_part(out, scores_rows(LOSSES)),
        write_part(out, scores_rows([None, 2.0], pool_file=["b", "c"], error=["damaged", None])),
    ]
    index_parts(out, parts)
    later = write_part(out, scores_rows([3.0], pool_file=["d"]))
    opened = []
    find = scores._find_part
    monkeypatch.setattr(scores, "_find_part", lambda *given: opened.append(given[1]) or find(*given))
    assert find_parts(out) == sorted([*parts, later], key=lambda part: part.path)
    assert opened == [later.path]


def test_an_index_that_is_damaged_or_older_than_a_part_is_not_believed(out: Location) -> None:
    part = write_part(out, scores_rows(LOSSES))
    index_parts(out, [replace(part, num_rows=1)])
    assert find_parts(out)[0].num_rows == 1
    write_part(out, scores_rows(LOSSES))
    assert find_parts(out) == [part]
    index_parts(out, [part])
    index = Path(out.path) / "parts.index"
    index.write_bytes(flipped(index.read_bytes(), 40))
    assert find_parts(out) == [part]
