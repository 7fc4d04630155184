"""The Arrow schemas of all tables: a contract that code outside relies on."""

from __future__ import annotations

import pyarrow as pa

from model.errors import InputError

# The image is large_binary: 2 GiB of offsets are soon reached with 128 MiB row groups.
POOL = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image", pa.large_binary()),  # JPEG or PNG bytes
        pa.field("box", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1 image pixels; null: the whole image
        pa.field("group", pa.string()),  # drive, scene, camera: what quotas count by
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
    ]
)

SCORES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("predicted_loss", pa.float32()),  # null where failed
        pa.field("confidence", pa.float32()),  # mean heatmap peak: the baseline to beat
        pa.field("error", pa.string()),  # null where scored
        pa.field("pool_file", pa.dictionary(pa.int32(), pa.string())),
        pa.field("pool_row", pa.int64()),
    ]
)

SELECTION = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),  # from 1
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("predicted_loss", pa.float32()),
        pa.field("expected_pck", pa.float32()),  # null where the bundle holds no calibration
        pa.field("group", pa.string()),
        pa.field("reason", pa.string()),  # loss, random
        pa.field("pool_file", pa.string()),
        pa.field("pool_row", pa.int64()),
    ]
)


def labelled(num_keypoints: int) -> pa.Schema:
    """The labelled table for K keypoints: the pool's columns and keypoints (2K), visibility (K)."""
    return POOL.append(pa.field("keypoints", pa.list_(pa.float32(), 2 * num_keypoints))).append(
        pa.field("visibility", pa.list_(pa.uint8(), num_keypoints))
    )


def check_schema(found: pa.Schema, expected: pa.Schema, *, where: str) -> None:
    """Passes if every expected column is there with its type; further columns are metadata and pass.

    Raises:
        InputError: names the column, the expected and the found type.
    """
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise InputError(f"{where}: column {field.name!r}: expected {field.type}, found no such column")
        if not _same_type(found.field(index).type, field.type):
            raise InputError(f"{where}: column {field.name!r}: expected {field.type}, found {found.field(index).type}")


def num_keypoints(found: pa.Schema, *, where: str) -> int:
    """K of a labelled table.

    Raises:
        InputError: the table has no fixed-size `visibility` list, so it is not labelled.
    """
    index = found.get_field_index("visibility")
    if index < 0 or not pa.types.is_fixed_size_list(found.field(index).type):
        kind = "no such column" if index < 0 else found.field(index).type
        raise InputError(f"{where}: column 'visibility': expected fixed_size_list<uint8>[K], found {kind}")
    return int(found.field(index).type.list_size)


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Equal but for the names and nullability of list items, which writers choose differently."""
    if pa.types.is_fixed_size_list(found) and pa.types.is_fixed_size_list(expected):
        return bool(found.list_size == expected.list_size and found.value_type == expected.value_type)
    return bool(found == expected)
