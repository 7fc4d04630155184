"""The Arrow schemas of all tables: a contract with code outside."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from model.errors import InputError

IMAGE = "image"

# The image is large_binary: 2 GiB of offsets are soon reached with 128 MiB row groups.
POOL = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field(IMAGE, pa.large_binary()),  # encoded: `model.image` says how; a file of references may lack it
        pa.field("box", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1 image pixels; null: the whole image
        pa.field("group", pa.string()),  # drive, scene, camera: what quotas count by
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
    ]
)

# Columns of a pool or labelled table whose rows name their image's file; any file may have them.
REFERENCE = pa.schema(
    [
        pa.field("image_uri", pa.string()),  # below the image root, or relative to it
        pa.field("image_size", pa.int64()),  # bytes; null: not known
        pa.field("image_etag", pa.string()),  # of an object in a store; null: not known
    ]
)

# Columns that a reader adds to the rows of a pool for a scorer.
READ_ERROR = "read_error"  # why there is no image, where it could not be read
DAMAGED = "damaged"  # the reason of a row whose page is; another run may be able to read it
FILE_ID = "file_id"  # which version of the pool file the row is from
_ORIGIN = [pa.field("pool_file", pa.dictionary(pa.int32(), pa.string())), pa.field("pool_row", pa.int64())]
IN_FLIGHT = pa.schema(
    [*POOL, *_ORIGIN, pa.field(FILE_ID, pa.dictionary(pa.int32(), pa.string())), pa.field(READ_ERROR, pa.string())]
)

NO_METADATA = pa.schema([])
_SKELETON = "lossight.skeleton"  # key of the schema's metadata

SCORES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
        pa.field("predicted_loss", pa.float32()),  # null where failed
        pa.field("expected_pck", pa.float32()),  # null where failed, or where the bundle can't say
        pa.field("confidence", pa.float32()),  # mean heatmap peak: the baseline to beat
        pa.field("error", pa.string()),  # null where scored
        *_ORIGIN,
    ]
)


def with_captured_at(rows: pa.Table) -> pa.Table:
    """Scores rows with `captured_at`: null throughout where a writer of before there was such a column made them."""
    if "captured_at" in rows.column_names:
        return rows
    field, place = SCORES.field("captured_at"), SCORES.get_field_index("captured_at")
    return rows.add_column(min(place, rows.num_columns), field, pa.nulls(len(rows), field.type))


def in_flight_schema(metadata: pa.Schema) -> pa.Schema:
    """Rows of a pool on their way from a reader to a scorer, with these columns of metadata."""
    return pa.schema([*IN_FLIGHT, *metadata])


def scores_schema(
    *, metadata: pa.Schema = NO_METADATA, num_keypoints: int | None = None, embedding_dim: int | None = None
) -> pa.Schema:
    """The scores table with the columns that were asked for.

    `keypoints` (3K) are x, y in image pixels and the heatmap peak of each; in float16 pixels are whole from 1024 on and
    2 apart from 2048 on. `keypoint_miss` (K) is the probability that each is farther than 0.2 torsos from the truth,
    null where the bundle's method says nothing of keypoints. `embedding` (D) is the global average pool of the
    estimator's last features.
    """
    schema = pa.schema([*SCORES, *metadata])
    if num_keypoints is not None:
        schema = schema.append(pa.field("keypoints", pa.list_(pa.float16(), 3 * num_keypoints)))
        schema = schema.append(pa.field("keypoint_miss", pa.list_(pa.float16(), num_keypoints)))
    if embedding_dim is not None:
        schema = schema.append(pa.field("embedding", pa.list_(pa.float16(), embedding_dim)))
    return schema


SELECTION = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),  # from 1
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("predicted_loss", pa.float32()),
        pa.field("expected_pck", pa.float32()),  # null where the bundle can't say
        pa.field("group", pa.string()),
        pa.field("captured_at", pa.timestamp("us", tz="UTC")),
        pa.field("reason", pa.string()),  # loss, diverse, random, control
        pa.field("pool_file", pa.string()),
        pa.field("pool_row", pa.int64()),
    ]
)


_SLICE = pa.struct(
    [
        pa.field("column", pa.string()),
        pa.field("value", pa.string()),
        pa.field("num_scored", pa.int64()),
        pa.field("loss_quantiles", pa.list_(pa.float64())),
    ]
)

# One row a night that triage has been through, in order of dates.
HISTORY = pa.schema(
    [
        pa.field("night", pa.date32(), nullable=False),
        pa.field("bundle_id", pa.string(), nullable=False),  # losses of different bundles don't compare
        pa.field("num_files", pa.int64(), nullable=False),
        pa.field("num_late_files", pa.int64(), nullable=False),  # of them: of earlier nights
        pa.field("num_bad_files", pa.int64(), nullable=False),  # of them: not read
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("num_scored", pa.int64(), nullable=False),
        pa.field("error_rate", pa.float64(), nullable=False),
        pa.field("num_selected", pa.int64(), nullable=False),
        pa.field("images_per_second", pa.float64()),  # null where nothing could be scored
        pa.field("loss_quantiles", pa.list_(pa.float64()), nullable=False),  # as `tables.sketch` has it
        pa.field("slices", pa.list_(_SLICE), nullable=False),  # the same by value of the columns that are watched
        pa.field("psi", pa.float64()),  # of all rows against the nights before; null where not judged
        pa.field("ks", pa.float64()),
        pa.field("drift", pa.list_(pa.string()), nullable=False),  # what drifted, in words; empty: nothing
    ]
)


def labelled(num_keypoints: int, *, skeleton: str | None = None) -> pa.Schema:
    """The labelled table for K keypoints: the pool's columns and keypoints (2K), visibility (K).

    The skeleton's name is kept in the schema's metadata, where `skeleton_name` finds it.
    """
    schema = POOL.append(pa.field("keypoints", pa.list_(pa.float32(), 2 * num_keypoints))).append(
        pa.field("visibility", pa.list_(pa.uint8(), num_keypoints))
    )
    return schema.with_metadata({_SKELETON: skeleton}) if skeleton else schema


def skeleton_name(found: pa.Schema) -> str | None:
    """The skeleton that a labelled table was written with; None where its writer did not record it."""
    name = (found.metadata or {}).get(_SKELETON.encode())
    return name and name.decode(errors="replace")


def check_schema(found: pa.Schema, expected: pa.Schema, *, where: str) -> None:
    """Passes if every expected column is there with its type; further columns are metadata and pass.

    Where images are expected, references may take their place.

    Raises:
        InputError: names the column, the expected and the found type.
    """
    fields = list(expected)
    if IMAGE in expected.names and "image_uri" in found.names:
        fields += [field for field in REFERENCE if field.name in found.names]
        fields = [field for field in fields if field.name != IMAGE or IMAGE in found.names]
    for field in fields:
        index = found.get_field_index(field.name)
        if index < 0:
            raise InputError(f"{where}: column {field.name!r}: expected {field.type}, found no such column")
        if not _same_type(found.field(index).type, field.type):
            raise InputError(f"{where}: column {field.name!r}: expected {field.type}, found {found.field(index).type}")


def pick_metadata(found: pa.Schema, names: Sequence[str], *, where: str) -> pa.Schema:
    """The schema of named metadata columns of a pool.

    Raises:
        InputError: there is no such column, or its name is taken.
    """
    taken = {*IN_FLIGHT.names, *scores_schema(metadata=NO_METADATA, num_keypoints=1, embedding_dim=1).names}
    for name in names:
        if name in taken:
            raise InputError(f"{where}: column {name!r}: expected metadata, found a column of the tables' own")
        if found.get_field_index(name) < 0:
            raise InputError(f"{where}: column {name!r}: expected metadata, found no such column")
    return pa.schema([found.field(name).with_nullable(True).remove_metadata() for name in names])


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
