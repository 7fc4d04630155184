"""Bins and their rows: each row once, none silently wrong, and damage costs what is damaged."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import flipped, freeze, plain_rows, write_file
from hypothesis import given
from hypothesis import strategies as st

from distributed.schema import DAMAGED, IN_FLIGHT, POOL
from distributed.storage.location import locate
from distributed.tables.manifest import Manifest, PoolFile, Segment
from distributed.tables.parquet import write_rows
from distributed.tables.reader import (
    READ_ROWS,
    Bin,
    FileChangedError,
    plan_bins,
    read_bin,
    read_file,
    salvage_bin,
)
from model.errors import InputError, RunFailedError

Row = dict[str, Any]
Rows = list[dict[str, object]]
IMAGE = POOL.get_field_index("image")


def read_all(manifest: Manifest) -> list[Row]:
    tables = [rows for file in manifest.files for rows in read_file(manifest, file, columns=POOL.names)]
    return [row for table in tables for row in table.to_pylist()]


def salvage(manifest: Manifest) -> tuple[list[Row], dict[str, str]]:
    """All rows, and the bad files."""
    bad_files: dict[str, str] = {}
    tables = salvage_bin(manifest.location, Bin(segments=tuple(manifest.segments)), on_bad_file=bad_files.__setitem__)
    return [row for table in tables for row in table.to_pylist()], bad_files


def decay(path: Path, content: bytes) -> None:
    """Other content without a trace of a write, as a failing disk gives it."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def last_byte_of(path: Path, *, group: int, column: int) -> int:
    chunk = pq.read_metadata(path).row_group(group).column(column)
    first = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
    return int(first + chunk.total_compressed_size - 1)


def make_file(groups: list[tuple[int, int]], *, path: str = "a") -> PoolFile:
    """A pool file of row groups with these (rows, bytes)."""
    rows, sizes = tuple(rows for rows, _ in groups), tuple(size for _, size in groups)
    return PoolFile(path=path, size=1, version="v", row_group_rows=rows, row_group_bytes=sizes, footer="")


@st.composite
def segments_of_files(draw: st.DrawFn) -> list[Segment]:
    """Rows of files of any row groups, with any holes: what an earlier run has scored."""
    group = st.tuples(st.integers(0, 9), st.integers(0, 1000))
    segments = []
    for number, groups in enumerate(draw(st.lists(st.lists(group, max_size=8), max_size=5))):
        file = make_file(groups, path=str(number))
        whole = {0, file.num_rows}
        cuts = sorted(draw(st.just(whole) | st.sets(st.integers(0, file.num_rows), max_size=8)))
        segments += [Segment(file, start, stop) for start, stop in list(pairwise(cuts))[::2]]
    return segments


def rows_of(segments: list[Segment]) -> list[tuple[str, int]]:
    return [(file.path, row) for file, start, stop in segments for row in range(start, stop)]


@given(segments=segments_of_files(), max_bytes=st.integers(0, 2000), most_rows=st.none() | st.integers(1, 9))
def test_bins_cover_each_row_once_and_in_order(segments: list[Segment], max_bytes: int, most_rows: int | None) -> None:
    bins = plan_bins(segments, max_bytes=max_bytes, most_rows=most_rows)
    assert rows_of([segment for bin_ in bins for segment in bin_.segments]) == rows_of(segments)
    assert all(bin_.num_rows for bin_ in bins)
    assert all(start < stop for bin_ in bins for _, start, stop in bin_.segments)
    assert sum(bin_.num_rows for bin_ in bins) == len(rows_of(segments))


@given(segments=segments_of_files(), max_bytes=st.integers(0, 2000))
def test_no_bin_is_too_large_and_neighbours_would_not_fit_into_one(segments: list[Segment], max_bytes: int) -> None:
    bins = plan_bins(segments, max_bytes=max_bytes)
    for bin_ in bins:
        num_pieces = sum(len(list(segment.pieces())) for segment in bin_.segments)
        assert bin_.num_bytes <= max_bytes or num_pieces == 1
    for left, right in pairwise(bins):
        file, start, _ = right.segments[0]
        group, _, _ = next(right.segments[0].pieces())
        assert left.num_bytes + file.row_group_bytes[group] > max_bytes
        assert (file.path, start) > (left.segments[-1].file.path, left.segments[-1].stop - 1)


@given(segments=segments_of_files())
def test_the_pieces_of_a_segment_are_its_rows_by_row_group(segments: list[Segment]) -> None:
    for segment in segments:
        numbered = [(g, row) for g, num_rows in enumerate(segment.file.row_group_rows) for row in range(num_rows)]
        found = [(group, row) for group, first, last in segment.pieces() for row in range(first, last)]
        assert found == numbered[segment.start : segment.stop]


def test_neighbouring_rows_of_a_file_are_one_segment() -> None:
    file = make_file([(4, 10)] * 5)
    (whole,) = plan_bins([Segment(file, 0, 20)])
    assert whole.segments == (Segment(file, 0, 20),)
    first, second = plan_bins([Segment(file, 0, 20)], max_bytes=30)
    assert (first.segments, second.segments) == ((Segment(file, 0, 12),), (Segment(file, 12, 20),))


def test_small_files_share_a_bin() -> None:
    files = [make_file([(10, 100)], path=f"{number:04d}") for number in range(1000)]
    bins = plan_bins([Segment(file, 0, 10) for file in files], max_bytes=10_000)
    assert [len(bin_.segments) for bin_ in bins] == [100] * 10


def test_bins_may_shrink_with_what_is_left() -> None:
    file = make_file([(1, 10)] * 100)
    bins = plan_bins([Segment(file, 0, 100)], max_bytes=lambda planned: (1000 - planned) // 4)
    assert [bin_.num_rows for bin_ in bins[:4]] == [25, 18, 14, 10]
    assert rows_of([segment for bin_ in bins for segment in bin_.segments]) == rows_of([Segment(file, 0, 100)])
    assert len({bin_.name for bin_ in bins}) == len(bins)


def test_row_groups_are_cut_where_they_have_more_rows_than_asked_for() -> None:
    file = make_file([(10, 1000), (3, 300)])
    bins = plan_bins([Segment(file, 2, 13)], max_bytes=1, most_rows=4)
    assert [(bin_.segments[0].start, bin_.segments[0].stop) for bin_ in bins] == [(2, 6), (6, 10), (10, 13)]
    assert [bin_.num_rows for bin_ in plan_bins([Segment(file, 0, 13)], max_bytes=800, most_rows=4)] == [8, 5]


def test_files_without_rows_are_in_no_bin(three_files: Path) -> None:
    write_file(three_files / "0.parquet", [])
    manifest = freeze(three_files)
    assert {segment.file.path for bin_ in plan_bins(manifest.segments) for segment in bin_.segments} == {
        "a b=1/é.parquet",
        "b.parquet",
        "c.parquet",
    }
    assert len(read_all(manifest)) == 16


@pytest.mark.parametrize("max_bytes", [1, 600, 1200, 10_000])
def test_the_rows_of_the_bins_are_the_rows_of_the_files(three_files: Path, max_bytes: int) -> None:
    manifest = freeze(three_files)
    bins = plan_bins(manifest.segments, max_bytes=max_bytes)
    rows = [
        row
        for bin_ in bins
        for table in read_bin(manifest.location, bin_, columns=POOL.names)
        for row in table.to_pylist()
    ]
    assert rows == read_all(manifest)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 4), (2, 6), (4, 8), (5, 7), (9, 10), (1, 10)])
def test_a_segment_may_begin_and_end_within_a_row_group(three_files: Path, start: int, stop: int) -> None:
    manifest = freeze(three_files)
    whole = [row for row in read_all(manifest) if row["pool_file"] == "b.parquet"]
    bin_ = Bin(segments=(Segment(manifest.files[1], start, stop),))
    (rows,) = read_bin(manifest.location, bin_, columns=POOL.names)
    assert rows.to_pylist() == whole[start:stop]


def test_a_segment_may_begin_and_end_within_a_batch(tmp_path: Path) -> None:
    count = 3 * READ_ROWS
    write_file(tmp_path / "a.parquet", plain_rows(count, image_bytes=5), row_group_size=count)
    manifest = freeze(tmp_path)
    for start, stop in [(0, 1), (READ_ROWS - 1, READ_ROWS + 1), (READ_ROWS, 2 * READ_ROWS), (700, count), (300, 310)]:
        bin_ = Bin(segments=(Segment(manifest.files[0], start, stop),))
        found = [row for rows in read_bin(manifest.location, bin_, columns=["sample_id"]) for row in rows.to_pylist()]
        assert [row["pool_row"] for row in found] == list(range(start, stop))
        assert [row["sample_id"] for row in found] == [f"p{number:04d}" for number in range(start, stop)]


def test_batches_are_full_across_row_groups_and_files(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", plain_rows(READ_ROWS + 10, image_bytes=5), row_group_size=60)
    write_file(tmp_path / "b.parquet", plain_rows(READ_ROWS, start=READ_ROWS + 10, image_bytes=5), row_group_size=60)
    manifest = freeze(tmp_path)
    (bin_,) = plan_bins(manifest.segments)
    batches = list(read_bin(manifest.location, bin_, columns=["sample_id"]))
    assert [len(batch) for batch in batches] == [READ_ROWS, READ_ROWS, 10]
    numbers = [(row["pool_file"], row["pool_row"]) for batch in batches for row in batch.to_pylist()]
    expected = [(file.path, row) for file in manifest.files for row in range(file.num_rows)]
    assert numbers == expected


THEIRS = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("vehicle", pa.string()),
        pa.field("box", pa.list_(pa.field("element", pa.float32(), nullable=False), 4)),
        *(POOL.field(name) for name in ("captured_at", "group", "image")),
    ],
    metadata={"written": "elsewhere"},
)


def test_files_that_differ_in_what_is_left_open_share_a_bin(tmp_path: Path) -> None:
    """Another writer's file: other column order, nullable ids, list items of another name, a column more."""
    write_file(tmp_path / "a.parquet", plain_rows(3))
    write_file(tmp_path / "b.parquet", plain_rows(3, start=3), schema=THEIRS)
    write_file(tmp_path / "c.parquet", plain_rows(3, start=6))
    manifest = freeze(tmp_path)
    (bin_,) = plan_bins(manifest.segments)
    (rows,) = read_bin(manifest.location, bin_, columns=POOL.names)
    assert rows.select(POOL.names).to_pylist() == pa.Table.from_pylist(plain_rows(9), POOL).to_pylist()
    assert salvage(manifest)[0] == [
        {**row, "file_id": found["file_id"], "read_error": None}
        for row, found in zip(rows.to_pylist(), salvage(manifest)[0], strict=True)
    ]


def test_the_columns_asked_for_come_in_that_order_from_every_file(tmp_path: Path) -> None:
    extra = pa.schema([pa.field("box.x", pa.int64()), *reversed(list(POOL)), pa.field("vehicle", pa.string())])
    write_file(tmp_path / "a.parquet", plain_rows(3), schema=extra)
    write_file(tmp_path / "b.parquet", plain_rows(3, start=3))
    manifest = freeze(tmp_path)
    for file in manifest.files:
        (rows,) = read_file(manifest, file, columns=["box", "sample_id"])
        assert rows.column_names == ["box", "sample_id", "pool_file", "pool_row"]


def test_files_that_come_later_are_not_read(three_files: Path) -> None:
    manifest = freeze(three_files)
    write_file(three_files / "z.parquet", plain_rows(3, start=50))
    assert len(read_all(manifest)) == 16


@pytest.mark.parametrize("content", [b"PAR1", None])
def test_a_file_that_changed_since_is_not_read(three_files: Path, content: bytes | None) -> None:
    manifest = freeze(three_files)
    if content is None:
        (three_files / "b.parquet").unlink()
    else:
        (three_files / "b.parquet").write_bytes(content)
    with pytest.raises(FileChangedError, match=r"b\.parquet: expected the file of \d+ B that the run froze, found"):
        read_all(manifest)
    assert issubclass(FileChangedError, RunFailedError)


def test_a_file_replaced_by_one_of_its_size_is_not_read(three_files: Path) -> None:
    manifest = freeze(three_files)
    stat = (three_files / "b.parquet").stat()
    (three_files / "b.parquet").write_bytes((three_files / "b.parquet").read_bytes())
    os.utime(three_files / "b.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(FileChangedError, match=r"b\.parquet: expected the file .* found \d+ B of another version"):
        read_all(manifest)


def test_a_row_group_that_hides_rows_is_noticed(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", plain_rows(8))
    manifest = freeze(tmp_path)
    file = dataclasses.replace(manifest.files[0], row_group_rows=(4, 5))
    with pytest.raises(InputError, match=r"a\.parquet: damaged: expected 5 rows in row group 1, found 4"):
        list(read_bin(manifest.location, Bin(segments=(Segment(file, 0, 9),)), columns=["sample_id"]))


def test_salvaged_rows_of_healthy_files_are_the_rows(three_files: Path) -> None:
    manifest = freeze(three_files)
    ids = {file.path: file.file_id for file in manifest.files}
    rows, bad_files = salvage(manifest)
    expected = [{**row, "file_id": ids[row["pool_file"]], "read_error": None} for row in read_all(manifest)]
    assert (rows, bad_files) == (expected, {})


def test_salvaged_rows_have_the_schema_of_rows_in_flight(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", plain_rows(3), schema=THEIRS)
    path = write_file(tmp_path / "b.parquet", plain_rows(8, start=3), schema=POOL.with_metadata({"by": "us"}))
    path.write_bytes(flipped(path.read_bytes(), last_byte_of(path, group=1, column=IMAGE)))
    manifest = freeze(tmp_path)
    for segment in manifest.segments:
        for rows in salvage_bin(manifest.location, Bin(segments=(segment,)), on_bad_file=print):
            assert rows.schema.equals(IN_FLIGHT, check_metadata=True)
            rows.validate(full=True)


def test_salvaging_begins_and_ends_within_row_groups_too(three_files: Path) -> None:
    manifest = freeze(three_files)
    whole, _ = salvage(manifest)
    segments = (Segment(manifest.files[1], 3, 9), Segment(manifest.files[2], 4, 5))
    (rows,) = salvage_bin(manifest.location, Bin(segments=segments), on_bad_file=print)
    assert rows.to_pylist() == [*whole[1 + 3 : 1 + 9], whole[11 + 4]]


@pytest.mark.parametrize("group", [0, 1, 2])
def test_a_damaged_image_page_costs_the_rows_of_its_row_group(three_files: Path, group: int) -> None:
    path = three_files / "b.parquet"
    path.write_bytes(flipped(path.read_bytes(), last_byte_of(path, group=group, column=IMAGE)))
    manifest = freeze(three_files)
    rows, bad_files = salvage(manifest)
    assert bad_files == {}
    damaged = [("b.parquet", row) for row in range(4 * group, min(4 * group + 4, 10))]
    assert [(row["pool_file"], row["pool_row"]) for row in rows if row["read_error"] == DAMAGED] == damaged
    expected = {row["sample_id"]: row for row in plain_rows(16)}
    assert [row["sample_id"] for row in rows] == [f"p{number:04d}" for number in [10, *range(10), *range(11, 16)]]
    for row in rows:
        is_damaged = row["read_error"] is not None
        assert row["image"] == (None if is_damaged else expected[row["sample_id"]]["image"])
        assert (row["box"], row["group"]) == (expected[row["sample_id"]]["box"], expected[row["sample_id"]]["group"])


def test_what_was_read_of_a_row_group_before_the_damage_stays(tmp_path: Path) -> None:
    """Pages of about a hundred images; the last one is damaged."""
    count = 3 * READ_ROWS
    rows = plain_rows(count, image_bytes=100)
    path = write_file(
        tmp_path / "a.parquet",
        rows,
        row_group_size=count,
        data_page_size=10_000,
        write_batch_size=64,
        use_dictionary=False,
    )
    path.write_bytes(flipped(path.read_bytes(), last_byte_of(path, group=0, column=IMAGE)))
    for start, stop in [(0, count), (10, count), (10, count - 10), (count - 10, count)]:
        manifest = freeze(tmp_path)
        bin_ = Bin(segments=(Segment(manifest.files[0], start, stop),))
        found = [row for part in salvage_bin(manifest.location, bin_, on_bad_file=print) for row in part.to_pylist()]
        assert [row["pool_row"] for row in found] == list(range(start, stop))
        assert [row["sample_id"] for row in found] == [f"p{number:04d}" for number in range(start, stop)]
        whole = [row for row in found if row["read_error"] is None]
        assert [row["pool_row"] for row in whole] == list(range(start, max(start, 2 * READ_ROWS)))
        assert [row["image"] for row in whole] == [rows[row["pool_row"]]["image"] for row in whole]


@pytest.mark.parametrize("name", ["box", "group", "captured_at"])
def test_a_damaged_column_beside_the_images_costs_its_row_group_too(three_files: Path, name: str) -> None:
    """A wrong box or a wrong group would be worse than none."""
    path = three_files / "b.parquet"
    column = [chunk_path(path, column).partition(".")[0] for column in range(5)].index(name)
    path.write_bytes(flipped(path.read_bytes(), last_byte_of(path, group=1, column=column)))
    rows, bad_files = salvage(freeze(three_files))
    assert bad_files == {}
    damaged = [row for row in rows if row["read_error"] == DAMAGED]
    assert [row["sample_id"] for row in damaged] == ["p0004", "p0005", "p0006", "p0007"]
    assert [row["image"] for row in damaged] == [None] * 4
    assert [row[name] for row in damaged] == [None] * 4


def chunk_path(path: Path, column: int) -> str:
    return str(pq.read_metadata(path).row_group(0).column(column).path_in_schema)


def damage_ids(path: Path) -> None:
    decay(path, flipped(path.read_bytes(), last_byte_of(path, group=1, column=0)))


def damage_footer(path: Path) -> None:
    content = path.read_bytes()
    decay(path, content.replace(b"sample_id", b"simple_id"))


def truncate(path: Path) -> None:
    decay(path, b"PAR1" + bytes(path.stat().st_size - 4))


def replace(path: Path) -> None:
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (damage_ids, "damaged: "),
        (damage_footer, "damaged: the footer is not the one that the run froze"),
        (truncate, "damaged: "),
        (replace, "changed during the run"),
        (Path.unlink, "changed during the run"),
    ],
)
def test_a_file_that_fails_since_it_was_frozen_is_reported_and_the_others_are_read(
    three_files: Path, harm: Callable[[Path], None], reason: str
) -> None:
    manifest = freeze(three_files)
    healthy, _ = salvage(manifest)
    harm(three_files / "b.parquet")
    rows, bad_files = salvage(manifest)
    assert list(bad_files) == ["b.parquet"]
    assert bad_files["b.parquet"].startswith(reason)
    assert str(three_files) not in bad_files["b.parquet"]
    others = [row for row in rows if row["pool_file"] != "b.parquet"]
    assert others == [row for row in healthy if row["pool_file"] != "b.parquet"]


@pytest.mark.parametrize("harm", [replace, Path.unlink])
def test_a_file_that_is_replaced_while_it_is_read_is_reported(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = write_file(tmp_path / "a.parquet", plain_rows(3 * READ_ROWS, image_bytes=5), row_group_size=100)
    write_file(tmp_path / "b.parquet", plain_rows(2, start=5000))
    manifest = freeze(tmp_path)
    bad_files: dict[str, str] = {}
    batches = salvage_bin(manifest.location, Bin(segments=tuple(manifest.segments)), on_bad_file=bad_files.__setitem__)
    assert len(next(batches)) == READ_ROWS
    harm(path)
    rest = [row for batch in batches for row in batch.to_pylist()]
    assert bad_files == {"a.parquet": "changed during the run"}
    assert [row["sample_id"] for row in rest if row["pool_file"] == "b.parquet"] == ["p5000", "p5001"]


def test_a_store_that_fails_is_no_damage(three_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = freeze(three_files)

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("When reading bytes of key 'x': AWS Error SLOW_DOWN during GetObject operation")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(RunFailedError, match=r"storage failed: .*SLOW_DOWN"):
        salvage(manifest)


def test_a_store_that_fails_while_damage_is_looked_into_is_no_damage(
    three_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_files / "b.parquet"
    path.write_bytes(flipped(path.read_bytes(), last_byte_of(path, group=1, column=IMAGE)))
    manifest, read = freeze(three_files), pq.ParquetFile.read_row_group

    def fail_for_groups(reader: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        if columns == ["group"]:
            raise OSError("When reading bytes of key 'x': AWS Error SLOW_DOWN during GetObject operation")
        return read(reader, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail_for_groups)
    with pytest.raises(RunFailedError, match=r"storage failed: .*SLOW_DOWN"):
        salvage(manifest)


@pytest.mark.parametrize("when", ["before", "after"])
def test_no_flipped_bit_is_silently_wrong(tmp_path: Path, when: str) -> None:
    """Flipped before the three_files was frozen or after: detected by strict readers, and salvaged for what it is."""
    write_rows(locate(str(tmp_path)), plain_rows(40, image_bytes=500), POOL, row_group_bytes=4000)
    path = tmp_path / "part-00000.parquet"
    good, manifest = path.read_bytes(), freeze(tmp_path)
    reference = read_all(manifest)
    footer_start = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    rng = random.Random(0)  # noqa: S311
    for part in (range(footer_start), range(footer_start, len(good))):
        num_detected = 0
        for position in rng.choices(part, k=30):
            decay(path, flipped(good, position, bit=rng.randrange(8)))
            try:
                found = manifest if when == "after" else freeze(tmp_path)
            except InputError:  # the only file is a bad one
                num_detected += 1
                continue
            is_detected = not is_read_right(found, reference)
            num_detected += is_detected
            rows, bad_files = salvage(found)
            if not bad_files:
                assert is_detected == any(row["read_error"] for row in rows)
                assert_salvaged_right(rows, reference)
        assert num_detected > 10


def is_read_right(manifest: Manifest, reference: list[Row]) -> bool:
    try:
        rows = read_all(manifest)
    except InputError:
        return False
    assert rows == reference  # a flip in a statistic or a reserved byte
    return True


def assert_salvaged_right(rows: list[Row], reference: list[Row]) -> None:
    """Every row with its id and place; whole, or damaged and then with nothing that is wrong."""
    for row, expected in zip(rows, reference, strict=True):
        assert row["sample_id"] == expected["sample_id"]
        assert (row["pool_file"], row["pool_row"]) == (expected["pool_file"], expected["pool_row"])
        for name in POOL.names:
            assert row[name] == expected[name] or (row["read_error"] == DAMAGED and row[name] is None)
