"""The rows that are scored already, against sets of (file, row); and few parts made of many, with the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import scores_table, with_file_ids
from hypothesis import given
from hypothesis import strategies as st

from distributed.schema import scores_schema
from distributed.scoring import ledger
from distributed.scoring.ledger import Merge, check_complete, choose_parts, merge_parts, missing_segments, stale_paths
from distributed.storage.location import Location, locate
from distributed.tables.manifest import Manifest, PoolFile, Segment
from distributed.tables.scores import Held, ScoresPart, find_parts, read_part, write_part
from model.errors import RunFailedError

Rows = set[tuple[str, int]]  # (file id, row)
ROWS = 8  # of a file, at most


def make_file(path: str, num_rows: int, *, version: str = "now") -> PoolFile:
    groups = (num_rows,)
    return PoolFile(path=path, size=1, version=version, row_group_rows=groups, row_group_bytes=groups, footer="")


def make_manifest(*files: PoolFile) -> Manifest:
    return Manifest(location=locate("pool"), files=files, bad_files=())


def make_part(path: str, held: dict[PoolFile, list[tuple[int, int]]], *, num_rows: int | None = None) -> ScoresPart:
    files = {file.file_id: Held(path=file.path, ranges=tuple(ranges)) for file, ranges in held.items()}
    count = sum(stop - start for ranges in held.values() for start, stop in ranges)
    return ScoresPart(
        path=path,
        footer="",
        num_rows=count if num_rows is None else num_rows,
        num_bytes=0,
        files=files,
        errors={},
        damaged_files={},
        loss_quantiles=(),
    )


def rows_of(part: ScoresPart) -> list[tuple[str, int]]:
    """All rows of a part, as (file, row), with repetitions."""
    return [
        (file_id, row)
        for file_id, held in part.files.items()
        for start, stop in held.ranges
        for row in range(start, stop)
    ]


def rows_of_all(parts: Iterable[ScoresPart]) -> list[tuple[str, int]]:
    return [row for part in parts for row in rows_of(part)]


def rows_of_files(*files: PoolFile) -> Rows:
    return {(file.file_id, row) for file in files for row in range(file.num_rows)}


def rows_of_segments(segments: list[Segment]) -> list[tuple[str, int]]:
    return [(file.file_id, row) for file, start, stop in segments for row in range(start, stop)]


@st.composite
def ranges(draw: st.DrawFn, stop: int) -> list[tuple[int, int]]:
    """Ascending and apart, at least one; as a part has them."""
    bits = draw(st.integers(1, 2**stop - 1))
    rows = [row for row in range(stop) if bits >> row & 1]
    starts = [row for row in rows if row - 1 not in rows]
    stops = [row + 1 for row in rows if row + 1 not in rows]
    return list(zip(starts, stops, strict=True))


@st.composite
def pools_and_parts(draw: st.DrawFn) -> tuple[Manifest, list[ScoresPart]]:
    """A pool of up to three files and any parts, of its files and of older versions of them."""
    files = [make_file(f"{i}", draw(st.integers(0, ROWS))) for i in range(draw(st.integers(1, 3)))]
    known = [file for file in files if file.num_rows] + [make_file("0", ROWS, version="before"), make_file("z", ROWS)]
    parts = []
    for number in range(draw(st.integers(0, 6))):
        chosen = draw(st.sets(st.sampled_from(known), min_size=1, max_size=3))
        held = {file: draw(ranges(file.num_rows)) for file in sorted(chosen, key=lambda file: file.file_id)}
        parts.append(make_part(f"part-{number}", held))
    return make_manifest(*files), parts


@given(drawn=pools_and_parts(), published=st.sets(st.sampled_from([f"part-{i}" for i in range(6)])))
def test_no_row_is_taken_twice_and_none_is_forgotten(
    drawn: tuple[Manifest, list[ScoresPart]], published: set[str]
) -> None:
    manifest, parts = drawn
    pool = rows_of_files(*manifest.files)
    chosen = choose_parts(parts, manifest, published=published)
    assert chosen == choose_parts(reversed(parts), manifest, published=published)  # the order they are found in is any
    taken = [row for row in rows_of_all(chosen) if row in pool]
    assert len(taken) == len(set(taken))
    segments = missing_segments(manifest, chosen)
    missing = rows_of_segments(segments)
    assert len(missing) == len(set(missing))
    assert set(taken) | set(missing) == pool
    assert not set(taken) & set(missing)
    places = [(manifest.files.index(file), start, stop) for file, start, stop in segments]
    assert places == sorted(places)
    assert all(left[0] != right[0] or left[2] < right[1] for left, right in pairwise(places))  # not cut without need


@given(drawn=pools_and_parts(), published=st.sets(st.sampled_from([f"part-{i}" for i in range(6)])))
def test_a_part_is_left_out_only_for_a_better_one_or_for_holding_nothing(
    drawn: tuple[Manifest, list[ScoresPart]], published: set[str]
) -> None:
    manifest, parts = drawn
    pool = rows_of_files(*manifest.files)
    chosen = choose_parts(parts, manifest, published=published)
    for part in parts:
        own = set(rows_of(part)) & pool
        rivals = [each for each in chosen if set(rows_of(each)) & own]
        assert part in chosen or not own or rivals
        if part not in chosen and own:
            best = min(rivals, key=lambda each: (each.path not in published, -each.num_rows))
            assert (best.path not in published, -best.num_rows) <= (part.path not in published, -part.num_rows)


A, B = make_file("a", 6), make_file("b", 4)
OLD_A = make_file("a", 6, version="before")
POOL = make_manifest(A, B)


def test_with_no_parts_all_is_missing() -> None:
    empty = make_file("0", 0)
    assert missing_segments(make_manifest(empty, A, B), []) == [Segment(A, 0, 6), Segment(B, 0, 4)]
    assert choose_parts([], POOL, published=()) == []


def test_rows_between_parts_are_missing_in_whatever_order_the_parts_come() -> None:
    parts = [make_part("0", {A: [(3, 6)], B: [(2, 4)]}), make_part("1", {A: [(0, 2)]}), make_part("2", {B: [(0, 2)]})]
    for order in permutations(parts):
        assert missing_segments(POOL, order) == [Segment(A, 2, 3)]


def test_a_merged_part_is_taken_before_those_it_was_made_of() -> None:
    pieces = [make_part("0", {A: [(0, 3)]}), make_part("1", {A: [(3, 6)]}), make_part("2", {B: [(0, 4)]})]
    merged = make_part("z", {A: [(0, 6)], B: [(0, 4)]})
    assert choose_parts([*pieces, merged], POOL, published=()) == [merged]


def test_published_parts_are_taken_before_larger_ones() -> None:
    published = make_part("z", {A: [(0, 2)]})
    larger = make_part("a", {A: [(0, 6)]})
    rest = make_part("b", {A: [(2, 6)]})
    assert choose_parts([larger, rest, published], POOL, published={"z"}) == [published, rest]


def test_a_part_of_a_file_that_was_replaced_holds_nothing() -> None:
    stale = make_part("0", {OLD_A: [(0, 6)]})
    assert choose_parts([stale], POOL, published={"0"}) == []
    mixed = make_part("1", {OLD_A: [(0, 6)], B: [(0, 4)]})
    assert choose_parts([stale, mixed], POOL, published=()) == [mixed]
    assert missing_segments(POOL, [mixed]) == [Segment(A, 0, 6)]


def test_a_part_with_a_row_twice_or_beyond_its_file_is_no_part_of_the_pool() -> None:
    parts = [make_part("0", {A: [(0, 2), (1, 3)]}), make_part("1", {A: [(4, 7)]})]
    assert choose_parts(parts, POOL, published=()) == []


def test_stale_paths_are_those_of_files_that_are_not_current() -> None:
    part = make_part("0", {OLD_A: [(0, 6)], B: [(0, 4)]})
    assert stale_paths(part, {A.file_id, B.file_id}) == {"a"}
    assert stale_paths(part, {OLD_A.file_id}) == {"b"}
    assert stale_paths(part, {OLD_A.file_id, B.file_id}) == set()


def test_the_rows_of_several_files_in_several_parts_are_complete() -> None:
    parts = [make_part("0", {A: [(0, 1), (3, 6)], B: [(2, 4)]}), make_part("1", {A: [(1, 3)], B: [(0, 2)]})]
    check_complete(POOL, parts, without=())
    check_complete(make_manifest(A, make_file("0", 0), B), parts, without=())
    check_complete(make_manifest(A, B, make_file("c", 9)), parts, without={"c"})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "a: expected 6 scores rows, found 0"),
        ([make_part("0", {A: [(0, 6)]})], "b: expected 4 scores rows, found 0"),
        ([make_part("0", {A: [(0, 5)], B: [(0, 4)]})], "a: expected 6 scores rows, found 5"),
        ([make_part("0", {A: [(0, 6)], B: [(0, 4)]}), make_part("1", {B: [(3, 4)]})], "b: expected 4 .*, found 5"),
        ([make_part("0", {A: [(0, 4), (3, 5)], B: [(0, 4)]})], "a: expected 6 scores rows, found 6"),
        ([make_part("0", {A: [(1, 7)], B: [(0, 4)]})], "a: expected 6 scores rows, found 6"),
        ([make_part("0", {A: [(0, 6)], B: [(0, 4)], OLD_A: [(0, 1)]})], "rows of this pool alone, found some of 1 oth"),
        ([make_part("0", {A: [(0, 6)], B: [(0, 4)]}, num_rows=9)], "0: expected as many rows as its ledger names"),
    ],
    ids=[
        "nothing",
        "a file lost",
        "a row lost",
        "a row doubled",
        "lost and doubled",
        "beyond",
        "foreign",
        "miscounted",
    ],
)
def test_rows_that_are_lost_doubled_or_foreign_are_refused(parts: list[ScoresPart], message: str) -> None:
    with pytest.raises(RunFailedError, match=message):
        check_complete(POOL, parts, without=())


def test_rows_of_a_file_that_failed_are_refused() -> None:
    parts = [make_part("0", {A: [(0, 6)], B: [(0, 4)]})]
    with pytest.raises(RunFailedError, match="b: expected 0 scores rows, found 4"):
        check_complete(POOL, parts, without={"b"})


@given(drawn=pools_and_parts())
def test_what_is_complete_is_exactly_the_pool(drawn: tuple[Manifest, list[ScoresPart]]) -> None:
    manifest, parts = drawn
    is_complete = sorted(rows_of_all(parts)) == sorted(rows_of_files(*manifest.files))
    try:
        check_complete(manifest, parts, without=())
    except RunFailedError:
        assert not is_complete
    else:
        assert is_complete


@given(drawn=pools_and_parts())
def test_scoring_what_is_missing_completes_a_pool(drawn: tuple[Manifest, list[ScoresPart]]) -> None:
    """Of the chosen parts, those without rows of older files; what those held is scored again."""
    manifest, parts = drawn
    current = {file.file_id for file in manifest.files}
    kept = [part for part in choose_parts(parts, manifest, published=()) if not stale_paths(part, current)]
    new = [make_part(f"new-{i}", {file: [(a, b)]}) for i, (file, a, b) in enumerate(missing_segments(manifest, kept))]
    check_complete(manifest, [*kept, *new], without=())


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


def contents(out: Location, parts: Sequence[ScoresPart]) -> list[dict[str, Any]]:
    tables = [read_part(out, part) for part in parts]
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: str(row["sample_id"]))


def files_below(out: Location) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(out.join("parts").path).iterdir()}


def test_the_rows_are_the_same_and_the_parts_fewer(out: Location) -> None:
    parts = [write(out, "ab"[number % 2], range(5 * number, 5 * number + 5)) for number in range(7)]
    merged = merge_parts(out, parts, current=current("a", "b"), run_all=run_here)
    assert len(merged) == 1
    assert contents(out, merged) == contents(out, parts)
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
    assert contents(out, merged) == contents(out, parts[1:])


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
    assert contents(out, merged) == contents(out, [*large, *small])


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
    assert contents(out, merged) == contents(out, parts)
    assert all(part.num_rows * min(sizes) <= 20 * max(sizes) for part in merged)
    assert 2 <= len(merged) <= 5


def test_the_number_of_parts_is_what_the_rows_need(out: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PART_ROWS", 10)
    parts = [write(out, "a", [row]) for row in range(47)]
    merged = merge_parts(out, parts, current=current("a"), run_all=run_here)
    assert sorted(part.num_rows for part in merged) == [7, 10, 10, 10, 10]
    assert contents(out, merged) == contents(out, parts)


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
    assert contents(out, [merged]) == contents(out, parts)
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
