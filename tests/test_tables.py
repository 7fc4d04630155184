"""Tables keep the contract: schemas pinned letter by letter, bounded row groups, unique ids, checksums."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows

from distributed.schema import IN_FLIGHT, POOL, SCORES, SELECTION, check_schema, labelled, num_keypoints, scores_schema
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


LABELLED = labelled(14)


def spelled(schema: pa.Schema) -> list[str]:
    return [f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema]


def changed(schema: pa.Schema, name: str, kind: pa.DataType) -> pa.Schema:
    return schema.set(schema.get_field_index(name), pa.field(name, kind))


def test_the_pool_schema_is_the_contract() -> None:
    assert spelled(POOL) == [
        "sample_id: string not null",
        "image: large_binary",
        "box: fixed_size_list<item: float>[4]",
        "group: string",
        "captured_at: timestamp[us, tz=UTC]",
    ]


def test_the_labelled_schema_is_the_pools_and_the_labels() -> None:
    assert spelled(labelled(14)) == [
        *spelled(POOL),
        "keypoints: fixed_size_list<item: float>[28]",
        "visibility: fixed_size_list<item: uint8>[14]",
    ]


def test_the_scores_schema_is_the_contract() -> None:
    assert spelled(SCORES) == [
        "sample_id: string not null",
        "group: string",
        "captured_at: timestamp[us, tz=UTC]",
        "predicted_loss: float",
        "expected_pck: float",
        "confidence: float",
        "error: string",
        "pool_file: dictionary<values=string, indices=int32, ordered=0>",
        "pool_row: int64",
    ]


def test_optional_columns_of_scores_come_last() -> None:
    both = [
        *spelled(SCORES),
        "keypoints: fixed_size_list<item: halffloat>[42]",
        "keypoint_miss: fixed_size_list<item: halffloat>[14]",
        "embedding: fixed_size_list<item: halffloat>[128]",
    ]
    assert spelled(scores_schema()) == spelled(SCORES)
    assert spelled(scores_schema(num_keypoints=14)) == both[:-1]
    assert spelled(scores_schema(num_keypoints=14, embedding_dim=128)) == both
    assert spelled(scores_schema(embedding_dim=128)) == [*both[:-3], both[-1]]


def test_rows_in_flight_are_the_pools_with_their_origin() -> None:
    dictionary = "dictionary<values=string, indices=int32, ordered=0>"
    assert spelled(IN_FLIGHT) == [
        *spelled(POOL),
        f"pool_file: {dictionary}",
        "pool_row: int64",
        f"file_id: {dictionary}",
        "read_error: string",
    ]


def test_the_selection_schema_is_the_contract() -> None:
    assert spelled(SELECTION) == [
        "rank: int32 not null",
        "sample_id: string not null",
        "predicted_loss: float",
        "expected_pck: float",
        "group: string",
        "captured_at: timestamp[us, tz=UTC]",
        "reason: string",
        "pool_file: string",
        "pool_row: int64",
    ]


@pytest.mark.parametrize("name", ["sample_id", "visibility"])
def test_a_missing_column_is_named(name: str) -> None:
    found = LABELLED.remove(LABELLED.get_field_index(name))
    with pytest.raises(InputError, match=rf"^here: column '{name}': expected .+, found no such column$"):
        check_schema(found, LABELLED, where="here")


@pytest.mark.parametrize(
    ("name", "kind", "expected", "found"),
    [
        ("sample_id", pa.int64(), "string", "int64"),
        ("sample_id", pa.large_string(), "string", "large_string"),
        ("image", pa.string(), "large_binary", "string"),
        ("box", pa.list_(pa.float32()), "fixed_size_list<item: float>[4]", "list<item: float>"),
        ("box", pa.list_(pa.float64(), 4), "fixed_size_list<item: float>[4]", "fixed_size_list<item: double>[4]"),
        ("captured_at", pa.timestamp("us"), "timestamp[us, tz=UTC]", "timestamp[us]"),
        (
            "keypoints",
            pa.list_(pa.float32(), 32),
            "fixed_size_list<item: float>[28]",
            "fixed_size_list<item: float>[32]",
        ),
    ],
)
def test_a_wrong_type_names_column_expected_and_found(name: str, kind: pa.DataType, expected: str, found: str) -> None:
    with pytest.raises(InputError) as caught:
        check_schema(changed(LABELLED, name, kind), LABELLED, where="here")
    assert str(caught.value) == f"here: column '{name}': expected {expected}, found {found}"


def test_names_and_nullability_are_the_writers_business() -> None:
    box = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
    found = changed(changed(POOL, "box", box), "sample_id", pa.string())
    check_schema(found, POOL, where="here")


def test_further_columns_in_any_order_pass() -> None:
    found = pa.schema([pa.field("vehicle", pa.string()), *reversed(list(POOL))])
    check_schema(found, POOL, where="here")


def test_the_number_of_keypoints_is_read_from_the_table() -> None:
    assert num_keypoints(labelled(17), where="here") == 17


def test_a_pool_has_no_number_of_keypoints() -> None:
    with pytest.raises(InputError, match="column 'visibility': expected fixed_size_list<uint8>"):
        num_keypoints(POOL, where="here")
