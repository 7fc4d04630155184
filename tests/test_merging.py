"""Many small parts into few large ones: the same rows, those of replaced files left out, large parts as they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import scores_table, with_file_ids

from distributed.schema import scores_schema
from distributed.scoring import ledger
from distributed.scoring.ledger import Merge, merge_parts
from distributed.storage.location import Location, locate
from distributed.tables.scores import ScoresPart, find_parts, read_part, write_part
from model.errors import RunFailedError


@pytest.fixture
def out(tmp_path: Path) -> Location:
    return locate(str(tmp_path / "scores"))


def write(out: Location, path: str, rows: Sequence[int], **columns: Any) -> ScoresPart:
    """A part of rows of one pool file; each third row failed."""
    losses = [None if row % 3 == 2 else row / 7 for row in rows]
    ids = [f"{path}{row:03d}" for row in rows]
    table = scores_table(losses, sample_id=ids, pool_file=[path] * len(rows), pool_row=list(rows), **columns)
    return write_part(out, with_file_ids(table))


def run_here(merge: Merge, groups: list[list[ScoresPart]]) -> list[ScoresPart]:
    return [merge(group) for group in groups]


def current(*paths: str) -> set[str]:
    return {f"id of {path}" for path in paths}


def rows_of(out: Location, parts: Sequence[ScoresPart]) -> list[dict[str, Any]]:
    tables = [read_part(out, part) for part in parts]
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: str(row["sample_id"]))


def files_below(out: Location) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out.join("parts").path).iterdir()}


def test_the_rows_are_the_same_and_the_parts_fewer(out: Location) -> None:
    parts = [write(out, "ab"[number % 2], range(5 * number, 5 * number + 5)) for number in range(7)]
    merged = merge_parts(out, parts, current=current("a", "b"), run_all=run_here)
    assert len(merged) == 1
    assert rows_of(out, merged) == rows_of(out, parts)
    assert merged[0].num_rows == 35
    assert merged[0] in find_parts(out)
    losses = [loss for loss in read_part(out, merged[0])["predicted_loss"].to_pylist() if loss is not None]
    assert losses == sorted(losses, reverse=True)


def test_what_was_merged_stays_as_it_was(out: Location) -> None:
    parts = [write(out, path, range(5)) for path in "abc"]
    before = files_below(out)
    merge_parts(out, parts, current=current("a", "b"), run_all=run_here)
    after = files_below(out)
    assert len(after) == 4
    assert {name: after[name] for name in before} == before


def test_rows_of_files_that_are_not_current_are_left_out(out: Location) -> None:
    parts = [write(out, path, range(6)) for path in "abc"]
    both = merge_parts(out, parts[:2], current=current("a", "b"), run_all=run_here)
    merged = merge_parts(out, [*both, parts[2]], current=current("b", "c"), run_all=run_here)
    assert {file_id for part in merged for file_id in part.files} == current("b", "c")
    assert rows_of(out, merged) == rows_of(out, parts[1:])


def test_what_is_of_no_current_file_alone_disappears(out: Location) -> None:
    parts = [write(out, "a", range(3)), write(out, "b", range(3))]
    assert merge_parts(out, parts, current=set(), run_all=run_here) == []
    merged = merge_parts(out, [parts[0]], current=current("b"), run_all=run_here)
    assert merged == []


def test_no_parts_are_no_parts(out: Location) -> None:
    assert merge_parts(out, [], current=set(), run_all=run_here) == []


def test_a_lone_part_stays_as_it_is(out: Location) -> None:
    part = write(out, "a", range(3))
    before = files_below(out)
    assert merge_parts(out, [part], current=current("a"), run_all=run_here) == [part]
    assert files_below(out) == before


def test_large_parts_stay_as_they_are(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PART_ROWS", 20)
    large = [write(out, "a", range(10)), write(out, "b", range(20))]
    small = [write(out, path, range(4)) for path in "cd"]
    merged = merge_parts(out, [*large, *small], current=current(*"abcd"), run_all=run_here)
    assert len(merged) == 3
    assert all(part in merged for part in large)
    assert rows_of(out, merged) == rows_of(out, [*large, *small])


def test_large_parts_with_rows_of_other_files_are_written_anew(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [write(out, path, range(4)) for path in "ab"]
    (mixed,) = merge_parts(out, parts, current=current("a", "b"), run_all=run_here)
    monkeypatch.setattr(ledger, "PART_ROWS", 8)
    (merged,) = merge_parts(out, [mixed], current=current("b"), run_all=run_here)
    assert set(merged.files) == current("b")
    assert merged.num_rows == 4


def test_parts_have_no_more_bytes_than_asked(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [write(out, path, range(1 + number % 5)) for number, path in enumerate("abcdefghijklmnop")]
    sizes = [part.num_bytes / part.num_rows for part in parts]
    monkeypatch.setattr(ledger, "_PART_BYTES", 20 * max(sizes))
    merged = merge_parts(out, parts, current=current(*"abcdefghijklmnop"), run_all=run_here)
    assert rows_of(out, merged) == rows_of(out, parts)
    assert all(part.num_rows * min(sizes) <= 20 * max(sizes) for part in merged)
    assert 2 <= len(merged) <= 5


def test_the_number_of_parts_is_what_the_rows_need(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PART_ROWS", 10)
    parts = [write(out, "a", [row]) for row in range(47)]
    merged = merge_parts(out, parts, current=current("a"), run_all=run_here)
    assert sorted(part.num_rows for part in merged) == [7, 10, 10, 10, 10]
    assert rows_of(out, merged) == rows_of(out, parts)


def test_merging_again_changes_nothing(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PART_ROWS", 10)
    parts = [write(out, "a", [row, row + 1, row + 2]) for row in range(0, 48, 3)]
    merged = merge_parts(out, parts, current=current("a"), run_all=run_here)
    before = files_below(out)
    assert merge_parts(out, merged, current=current("a"), run_all=run_here) == merged
    assert files_below(out) == before


def test_optional_columns_survive(out: Location) -> None:
    schema = scores_schema(num_keypoints=1, embedding_dim=2)
    parts = []
    for path in "ab":
        table = scores_table([1.0, None], sample_id=[f"{path}0", f"{path}1"], pool_file=[path] * 2)
        for name, value in (("keypoints", [1.5, 2.5, 0.5]), ("keypoint_miss", [0.25]), ("embedding", [-1.0, 65504.0])):
            halves = pa.array([np.array(value, np.float16), None], schema.field(name).type)
            table = table.append_column(schema.field(name), halves)
        parts.append(write_part(out, with_file_ids(table)))
    (merged,) = merge_parts(out, parts, current=current("a", "b"), run_all=run_here)
    assert rows_of(out, [merged]) == rows_of(out, parts)
    assert pq.read_schema(out.join(*merged.path.split("/")).path).equals(schema)


def damage_page(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [damage_page, truncate])
def test_a_damaged_part_is_removed_and_the_run_fails(out: Location, harm: Any) -> None:
    parts = [write(out, path, range(50)) for path in "ab"]
    harm(Path(out.join(*parts[1].path.split("/")).path))
    with pytest.raises(RunFailedError, match=r"damaged: .*; it is removed, and the same command scores its rows again"):
        merge_parts(out, parts, current=current("a", "b"), run_all=run_here)
    assert find_parts(out) == [parts[0]]
