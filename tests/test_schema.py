"""The schemas are a contract: pinned here letter by letter."""

from __future__ import annotations

import pyarrow as pa
import pytest

from distributed.schema import IN_FLIGHT, POOL, SCORES, SELECTION, check_schema, labelled, num_keypoints, scores_schema
from model.errors import InputError

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
        "reason: string",
        "pool_file: string",
        "pool_row: int64",
    ]


@pytest.mark.parametrize("name", LABELLED.names)
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
