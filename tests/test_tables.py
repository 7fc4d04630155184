"""What is written keeps the contract: bounded row groups, rolling files, unique ids, checksums."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows

from distributed.schema import POOL, check_schema
from distributed.storage.location import locate
from distributed.tables.parquet import open_table, write_groups, write_rows
from model.errors import InputError, RunFailedError


def read_all(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(folder.glob("*.parquet")))


def group_of(row: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist([row], POOL)


def test_rows_come_back_in_order_with_the_schema(tmp_path: Path) -> None:
    rows = plain_rows(23)
    assert write_rows(locate(str(tmp_path)), rows, POOL, row_group_bytes=700) == 23
    found = read_all(tmp_path)
    assert found.to_pylist() == pa.Table.from_pylist(rows, POOL).to_pylist()
    check_schema(found.schema, POOL, where="here")


def test_row_groups_hold_at_most_their_bytes_of_images(tmp_path: Path) -> None:
    write_rows(locate(str(tmp_path)), plain_rows(23, image_bytes=100), POOL, row_group_bytes=799)
    footer = pq.read_metadata(tmp_path / "part-00000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [7, 7, 7, 2]


def test_an_image_above_the_bytes_of_a_row_group_stands_alone(tmp_path: Path) -> None:
    rows = [*plain_rows(2), *plain_rows(1, start=2, image_bytes=5000), *plain_rows(2, start=3)]
    write_rows(locate(str(tmp_path)), rows, POOL, row_group_bytes=1000)
    footer = pq.read_metadata(tmp_path / "part-00000.parquet")
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [2, 1, 2]


def test_rows_without_an_image_are_written(tmp_path: Path) -> None:
    rows = [{**row, "image": None} for row in plain_rows(3)]
    assert write_rows(locate(str(tmp_path)), rows, POOL) == 3
    assert read_all(tmp_path)["image"].null_count == 3


def test_files_roll_over_between_row_groups(tmp_path: Path) -> None:
    groups = [group_of(row) for row in plain_rows(7, image_bytes=1000)]
    assert write_groups(locate(str(tmp_path)), groups, POOL, file_bytes=2 * groups[0].nbytes) == 7
    sizes = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.iterdir())]
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"part-0000{i}.parquet" for i in range(4)]
    assert sizes == [2, 2, 2, 1]


def test_a_duplicate_id_is_refused_and_no_file_appears(tmp_path: Path) -> None:
    rows = [*plain_rows(30), *plain_rows(1, start=4)]
    with pytest.raises(InputError, match=r"column 'sample_id': expected unique values, found 'p0004' twice"):
        write_rows(locate(str(tmp_path)), rows, POOL, row_group_bytes=500)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at least one row to write, found none"):
        write_rows(locate(str(tmp_path / "out")), [], POOL)
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_in_any_page_is_noticed(tmp_path: Path) -> None:
    write_rows(locate(str(tmp_path)), plain_rows(20, image_bytes=500), POOL, row_group_bytes=4000)
    path = tmp_path / "part-00000.parquet"
    good, footer = path.read_bytes(), pq.read_metadata(path)
    chunks = [footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(footer.num_columns)]
    for chunk in chunks:
        first = chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset
        last = first + chunk.total_compressed_size - 1
        path.write_bytes(good[:last] + bytes([good[last] ^ 1]) + good[last + 1 :])
        with pytest.raises(InputError, match=r"part-00000\.parquet: damaged: .*CRC"):
            read_checked(path)


def read_checked(path: Path) -> pa.Table:
    with open_table(locate(str(path))) as reader:
        return reader.read()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 9, b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.parquet: damaged: "):
        read_checked(tmp_path / "x.parquet")


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    write_rows(locate(str(tmp_path)), plain_rows(20), POOL)
    path = tmp_path / "part-00000.parquet"
    good = path.read_bytes()
    for length in range(0, len(good), len(good) // 10):
        path.write_bytes(good[:length])
        with pytest.raises(InputError, match="damaged"):
            read_checked(path)


def test_a_store_that_fails_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"gone\.parquet: storage failed"):
        read_checked(tmp_path / "gone.parquet")


def test_a_failure_of_s3_while_reading_is_no_damage(tmp_path: Path) -> None:
    write_rows(locate(str(tmp_path)), plain_rows(2), POOL)
    with pytest.raises(RunFailedError, match="storage failed: When reading"):
        fail_while_reading(tmp_path / "part-00000.parquet")


def fail_while_reading(path: Path) -> None:
    with open_table(locate(str(path))):
        raise OSError("When reading bytes of key 'x' in bucket 'b': AWS Error SLOW_DOWN during GetObject operation")


def test_a_damaged_byte_in_the_middle_of_large_images_costs_no_more_than_the_rows_from_its_page_on(
    write_table: WriteTable,
) -> None:
    pool = write_table("pool", plain_rows(300, image_bytes=20_000), row_group_bytes=2**30)
    path = Path(pool) / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    sizes: list[int] = []
    with pytest.raises(InputError, match="damaged"), open_table(locate(str(path))) as reader:
        sizes.extend(len(batch) for batch in reader.iter_batches(16, columns=["image"]))
    assert 64 <= sum(sizes) < 150
