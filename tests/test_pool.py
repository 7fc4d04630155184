"""The frozen pool: what is in it, what is refused, and that no damage goes unnoticed."""

from __future__ import annotations

import dataclasses
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows
from hypothesis import given
from hypothesis import strategies as st

from distributed.pool import READ_ROWS, Bin, Manifest, PoolFile, freeze_pool, plan_bins, read_bin, read_file
from distributed.runs import begin_run, publish_run
from distributed.schema import POOL
from distributed.storage import locate
from distributed.tables import write_rows
from model.errors import InputError, RunFailedError

Rows = list[dict[str, object]]


def write_file(path: Path, rows: Rows, *, schema: pa.Schema = POOL, row_group_size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True)
    return path


def freeze(folder: Path) -> Manifest:
    return freeze_pool(locate(str(folder)))


def read_all(manifest: Manifest) -> list[dict[str, Any]]:
    tables = [rows for file in manifest.files for rows in read_file(manifest, file, columns=POOL.names)]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Three readable files of 10, 1 and 5 rows."""
    write_file(tmp_path / "pool" / "b.parquet", plain_rows(10))
    write_file(tmp_path / "pool" / "a b=1" / "é.parquet", plain_rows(1, start=10))
    write_file(tmp_path / "pool" / "c.parquet", plain_rows(5, start=11))
    return tmp_path / "pool"


def test_the_manifest_lists_the_files_and_their_row_groups(pool: Path) -> None:
    (pool / "notes.txt").write_bytes(b"x")
    (pool / "_SUCCESS").touch()
    manifest = freeze(pool)
    assert [file.path for file in manifest.files] == ["a b=1/é.parquet", "b.parquet", "c.parquet"]
    assert [file.row_group_rows for file in manifest.files] == [(1,), (4, 4, 2), (4, 1)]
    assert [file.size for file in manifest.files] == [(pool / file.path).stat().st_size for file in manifest.files]
    assert manifest.num_rows == 16
    assert manifest.bad_files == ()


def test_bad_files_have_a_reason_and_the_others_go_on(pool: Path) -> None:
    (pool / "d-empty.parquet").touch()
    (pool / "e-garbage.parquet").write_bytes(b"<html>503 Slow Down</html>")
    whole = (pool / "b.parquet").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    (pool / "f-truncated.parquet").write_bytes(whole[: len(whole) // 2])
    (pool / "g-footer.parquet").write_bytes(whole[:footer] + bytes(20) + whole[footer + 20 :])
    manifest = freeze(pool)
    assert manifest.num_rows == 16
    reasons = {file.path: file.reason for file in manifest.bad_files}
    assert list(reasons) == ["d-empty.parquet", "e-garbage.parquet", "f-truncated.parquet", "g-footer.parquet"]
    assert reasons.pop("d-empty.parquet") == "empty file"
    assert all(reason.startswith("damaged: ") and "\n" not in reason for reason in reasons.values())
    assert len(read_all(manifest)) == 16


def test_a_pool_of_bad_files_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    (tmp_path / "b.parquet").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"no readable file; a\.parquet: empty file"):
        freeze(tmp_path)


def test_a_wrong_schema_names_file_and_column(pool: Path) -> None:
    rows: Rows = [{"sample_id": i} for i in range(3)]
    write_file(pool / "d.parquet", rows, schema=POOL.set(0, pa.field("sample_id", pa.int64())))
    with pytest.raises(InputError, match=r"d\.parquet: column 'sample_id': expected string, found int64"):
        freeze(pool)


def test_an_empty_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: expected a file or a folder, found nothing"):
        freeze(tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected Parquet files, found none"):
        freeze(tmp_path)
    write_file(tmp_path / "a.parquet", [])
    write_file(tmp_path / "b.parquet", [])
    with pytest.raises(InputError, match="expected at least one row, found none in 2 files"):
        freeze(tmp_path)


def test_files_without_rows_are_part_of_a_pool(pool: Path) -> None:
    write_file(pool / "0.parquet", [])
    manifest = freeze(pool)
    assert len(read_all(manifest)) == 16
    assert "0.parquet" not in {bin_.file.path for bin_ in plan_bins(manifest)}


def test_a_duplicate_within_a_file_is_named(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", [*plain_rows(9), *plain_rows(1, start=3)])
    with pytest.raises(InputError, match=r"'sample_id': .* found 'p0003' twice \(a\.parquet, a\.parquet\)"):
        freeze(tmp_path)


def test_a_duplicate_across_files_is_named(pool: Path) -> None:
    write_file(pool / "d.parquet", plain_rows(1, start=12))
    with pytest.raises(InputError, match=r"'sample_id': .* found 'p0012' twice \(c\.parquet, d\.parquet\)"):
        freeze(pool)


def test_a_null_id_is_refused(tmp_path: Path) -> None:
    nullable = POOL.set(0, pa.field("sample_id", pa.string()))
    write_file(tmp_path / "a.parquet", [*plain_rows(2), {"sample_id": None}], schema=nullable)
    with pytest.raises(InputError, match=r"a\.parquet: column 'sample_id': expected no nulls"):
        freeze(tmp_path)


def test_an_id_that_is_no_text_is_refused(tmp_path: Path) -> None:
    ids = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    columns = [ids, *(pa.nulls(1, field.type) for field in list(POOL)[1:])]
    pq.write_table(pa.table(columns, schema=POOL), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'sample_id': expected UTF-8"):
        freeze(tmp_path)


def test_a_single_file_is_a_pool_whatever_its_name(pool: Path, tmp_path: Path) -> None:
    renamed = (pool / "b.parquet").rename(tmp_path / "_b c.pq")
    manifest = freeze(renamed)
    assert [file.path for file in manifest.files] == ["_b c.pq"]
    assert [row["sample_id"] for row in read_all(manifest)] == [f"p{i:04d}" for i in range(10)]


def test_an_unfinished_ingest_is_refused(tmp_path: Path) -> None:
    begin_run(locate(str(tmp_path)), {"kind": "lsp"})
    write_file(tmp_path / "part-00000.parquet", plain_rows(3))
    with pytest.raises(InputError, match="expected a finished table, found an unfinished ingest: run it again"):
        freeze(tmp_path)
    publish_run(locate(str(tmp_path)), {"kind": "table"})
    assert freeze(tmp_path).num_rows == 3


def test_an_unfinished_ingest_below_the_pool_is_refused(pool: Path) -> None:
    for night in ("night1", "night2"):
        begin_run(locate(str(pool / night)), {})
    publish_run(locate(str(pool / "night1")), {"kind": "table"})
    with pytest.raises(InputError, match=r"^.*pool/night2: expected a finished table, found an unfinished ingest"):
        freeze(pool)


def test_the_fingerprint_is_that_of_the_files(pool: Path) -> None:
    before = freeze(pool).fingerprint
    assert freeze(pool).fingerprint == before
    stat = (pool / "b.parquet").stat()
    os.utime(pool / "b.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = freeze(pool).fingerprint
    (pool / "d.parquet").touch()
    with_bad_file = freeze(pool).fingerprint
    assert len({before, touched, with_bad_file}) == 3


GROUPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1000)), max_size=8)


@given(files=st.lists(GROUPS, max_size=5), max_bytes=st.integers(1, 2000))
def test_bins_cover_each_row_group_with_rows_once(files: list[list[tuple[int, int]]], max_bytes: int) -> None:
    manifest = Manifest(
        location=locate("pool"),
        files=tuple(
            PoolFile(
                path=f"{index}.parquet",
                size=1,
                modified_ns=0,
                row_group_rows=tuple(rows for rows, _ in groups),
                row_group_bytes=tuple(size for _, size in groups),
            )
            for index, groups in enumerate(files)
        ),
        bad_files=(),
    )
    bins = plan_bins(manifest, max_bytes=max_bytes)
    covered = [(bin_.file.path, bin_.first_group + i) for bin_ in bins for i in range(bin_.num_groups)]
    with_rows = [(file.path, i) for file in manifest.files for i, rows in enumerate(file.row_group_rows) if rows]
    assert len(covered) == len(set(covered))
    assert set(with_rows) <= set(covered)
    assert all(bin_.num_rows for bin_ in bins)
    assert all(bin_.num_bytes <= max_bytes or bin_.num_groups == 1 for bin_ in bins)
    assert sum(bin_.num_rows for bin_ in bins) == manifest.num_rows


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=12))
def test_neighbouring_bins_would_not_fit_into_one(sizes: list[int]) -> None:
    file = PoolFile(path="a", size=1, modified_ns=0, row_group_rows=(1,) * len(sizes), row_group_bytes=tuple(sizes))
    bins = plan_bins(Manifest(location=locate("pool"), files=(file,), bad_files=()), max_bytes=1000)
    for left, right in pairwise(bins):
        assert left.num_bytes + file.row_group_bytes[right.first_group] > 1000


def test_every_row_says_where_it_came_from(pool: Path) -> None:
    rows = read_all(freeze(pool))
    for path in ("a b=1/é.parquet", "b.parquet", "c.parquet"):
        own = [row for row in rows if row["pool_file"] == path]
        assert [row["pool_row"] for row in own] == list(range(len(own)))
        assert [row["sample_id"] for row in own] == pq.read_table(pool / path)["sample_id"].to_pylist()


def test_the_rows_of_the_bins_are_the_rows_of_the_files(pool: Path) -> None:
    manifest = freeze(pool)
    bins = plan_bins(manifest, max_bytes=1)
    rows = [
        row
        for bin_ in bins
        for table in read_bin(manifest.location, bin_, columns=POOL.names)
        for row in table.to_pylist()
    ]
    assert len(bins) == 6
    assert rows == read_all(manifest)


def test_batches_are_full_across_row_groups(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", plain_rows(2 * READ_ROWS + 10, image_bytes=5), row_group_size=60)
    manifest = freeze(tmp_path)
    batches = list(read_file(manifest, manifest.files[0], columns=["sample_id"]))
    assert [len(batch) for batch in batches] == [READ_ROWS, READ_ROWS, 10]
    assert [row for batch in batches for row in batch["pool_row"].to_pylist()] == list(range(2 * READ_ROWS + 10))


def test_the_columns_asked_for_come_in_that_order_from_every_file(tmp_path: Path) -> None:
    extra = pa.schema([pa.field("box.x", pa.int64()), *reversed(list(POOL)), pa.field("vehicle", pa.string())])
    write_file(tmp_path / "a.parquet", plain_rows(3), schema=extra)
    write_file(tmp_path / "b.parquet", plain_rows(3, start=3))
    manifest = freeze(tmp_path)
    for file in manifest.files:
        (rows,) = read_file(manifest, file, columns=["box", "sample_id"])
        assert rows.column_names == ["box", "sample_id", "pool_file", "pool_row"]


@pytest.mark.parametrize("content", [b"PAR1", None])
def test_a_file_that_changed_since_is_not_read(pool: Path, content: bytes | None) -> None:
    manifest = freeze(pool)
    if content is None:
        (pool / "b.parquet").unlink()
    else:
        (pool / "b.parquet").write_bytes(content)
    with pytest.raises(RunFailedError, match=r"b\.parquet: expected the file of \d+ B that the run froze, found"):
        read_all(manifest)


def test_a_file_replaced_by_one_of_its_size_is_not_read(pool: Path) -> None:
    manifest = freeze(pool)
    stat = (pool / "b.parquet").stat()
    (pool / "b.parquet").write_bytes((pool / "b.parquet").read_bytes())
    os.utime(pool / "b.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(RunFailedError, match=r"b\.parquet: expected the file .* found \d+ B of another time"):
        read_all(manifest)


def test_files_that_come_later_are_not_read(pool: Path) -> None:
    manifest = freeze(pool)
    write_file(pool / "z.parquet", plain_rows(3, start=50))
    assert len(read_all(manifest)) == 16


def test_a_flipped_byte_in_an_image_page_is_detected(tmp_path: Path) -> None:
    write_rows(locate(str(tmp_path)), plain_rows(20, image_bytes=500), POOL, row_group_bytes=4000)
    path = tmp_path / "part-00000.parquet"
    good, footer = path.read_bytes(), pq.read_metadata(path)
    for group in range(footer.num_row_groups):
        image = footer.row_group(group).column(POOL.get_field_index("image"))
        middle = image.data_page_offset + image.total_compressed_size // 2
        path.write_bytes(flipped(good, middle, bit=0))
        manifest = freeze(tmp_path)  # the ids are fine
        with pytest.raises(InputError, match=r"part-00000\.parquet: damaged: "):
            read_all(manifest)


def test_no_flipped_bit_is_silently_wrong(tmp_path: Path) -> None:
    write_rows(locate(str(tmp_path)), plain_rows(40, image_bytes=500), POOL, row_group_bytes=4000)
    path = tmp_path / "part-00000.parquet"
    good = path.read_bytes()
    reference = read_all(freeze(tmp_path))
    footer_start = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    rng = random.Random(0)  # noqa: S311
    for part in (range(footer_start), range(footer_start, len(good))):
        num_detected = 0
        for position in rng.choices(part, k=60):
            path.write_bytes(flipped(good, position, bit=rng.randrange(8)))
            try:
                assert read_all(freeze(tmp_path)) == reference  # a flip in a statistic or a reserved byte
            except InputError:
                num_detected += 1
        assert num_detected > 10


def test_a_footer_that_contradicts_itself_is_a_bad_file(tmp_path: Path) -> None:
    """Footers have no checksum; pyarrow reads such a file with fewer rows, without an error."""
    path = write_file(tmp_path / "a.parquet", plain_rows(8))
    write_file(tmp_path / "b.parquet", plain_rows(8, start=8))
    path.write_bytes(with_a_wrong_row_count(path.read_bytes()))
    manifest = freeze(tmp_path)
    assert [file.path for file in manifest.bad_files] == ["a.parquet"]
    assert manifest.bad_files[0].reason == "damaged: the footer's row count is not that of its row groups"


def with_a_wrong_row_count(good: bytes) -> bytes:
    """The file with the first flip in its footer that changes nothing but the number of rows."""
    for position in range(len(good) - 8 - int.from_bytes(good[-8:-4], "little"), len(good)):
        bad = flipped(good, position, bit=3)
        try:
            footer = pq.read_metadata(pa.BufferReader(bad))
            num_rows = sum(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        except (OSError, pa.ArrowInvalid):
            continue
        if num_rows != footer.num_rows:
            return bad
    raise AssertionError("no such flip")


def test_a_row_group_that_hides_rows_is_noticed(tmp_path: Path) -> None:
    write_file(tmp_path / "a.parquet", plain_rows(8))
    manifest = freeze(tmp_path)
    file = dataclasses.replace(manifest.files[0], row_group_rows=(4, 5))
    with pytest.raises(InputError, match=r"a\.parquet: damaged: expected 5 rows in row group 1, found 4"):
        list(read_bin(manifest.location, Bin(file=file, first_group=0, num_groups=2), columns=["sample_id"]))


def flipped(data: bytes, position: int, *, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def test_a_table_written_by_us_is_a_pool(write_table: WriteTable) -> None:
    manifest = freeze_pool(locate(write_table("pool", plain_rows(12), row_group_bytes=500)))
    assert manifest.files[0].row_group_rows == (5, 5, 2)
