"""Raw data into tables that keep the contract; each kind of raw data has a file of its own (`ingest_*.py`)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pyarrow as pa

from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.schema import POOL, labelled
from distributed.storage.location import Location, locate
from distributed.tables.ingest_coco import find_coco
from distributed.tables.ingest_folder import find_images
from distributed.tables.ingest_leeds import find_leeds
from distributed.tables.ingest_mpii import find_mpii
from distributed.tables.parquet import ROW_GROUP_BYTES, write_rows
from distributed.tables.reference import Found, check_images, read_rows
from model.errors import InputError

SourceName = Literal["lsp", "lspet", "coco", "mpii", "folder"]
Kind = Literal["pool", "labelled"]


def ingest(
    name: SourceName,
    *,
    source: str,
    out: str,
    table: Kind,
    annotations: str | None = None,
    start: int = 0,
    limit: int | None = None,
    row_group_bytes: int = ROW_GROUP_BYTES,
    config: dict[str, Any],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes a pool or labelled table from raw data and publishes it; returns its record (run.json).

    Args:
        name: what kind of raw data.
        source: the folder that holds it; of coco and mpii, the one with the images.
        out: location of the table.
        table: with labels or without.
        annotations: the file with the persons, for coco and mpii only.
        start: how many images, or persons, to pass over.
        limit: how many to take; None means all that are left.
        row_group_bytes: image bytes of a row group.
        config: the resolved configuration, kept beside the output; the number of images found is added to it.
        progress: told of every row.

    Raises:
        InputError: the source lacks what its kind needs, or the output holds something else.
    """
    place = locate(source)
    found = _find(name, place, annotations=annotations, are_labelled=table == "labelled")
    chosen = found.references[start:] if limit is None else found.references[start : start + limit]
    if not chosen:
        rows = "persons" if annotations else "images"
        skipped = f" (left out: {found.skipped})" if found.skipped else ""
        raise InputError(
            f"{source}: expected {rows} from number {start} on, found {len(found.references)} {rows} in all{skipped}"
        )
    if annotations:
        check_images(chosen, below=place, named_by=annotations)
    target = locate(out)
    inputs: dict[str, Any] = {"num_source_images": len(found.references)}
    if found.fingerprint:
        inputs["annotations_fingerprint"] = found.fingerprint
    if not begin_run(target, config, inputs=inputs, ignored=frozenset({"source", "annotations", "out"})):
        return {**read_run(target, expected="table"), "was_done": True}
    counts = Counter[str](keypoints_outside=0)
    rows_read = read_rows(chosen, counts, progress=progress)
    num_rows = write_rows(target, rows_read, _schema(found, table), row_group_bytes=row_group_bytes)
    return publish_run(
        target, {"kind": "table", "table": table, "num_rows": num_rows, "skipped": found.skipped, **counts}
    )


def _find(name: SourceName, source: Location, *, annotations: str | None, are_labelled: bool) -> Found:
    if name in ("coco", "mpii"):
        if annotations is None:
            raise InputError(f"--annotations: expected the file with the persons of {name}, found none")
        find = find_coco if name == "coco" else find_mpii
        return find(source, locate(annotations), are_labelled=are_labelled)
    if annotations is not None:
        raise InputError(f"--annotations: expected none for {name}, found {annotations}")
    if name == "folder":
        if are_labelled:
            raise InputError("--as: expected pool for a folder, found labelled (a folder holds no labels)")
        return find_images(source)
    return find_leeds("lsp" if name == "lsp" else "lspet", source)


def _schema(found: Found, table: Kind) -> pa.Schema:
    if table == "pool" or found.skeleton is None:
        return POOL
    return labelled(found.skeleton.num_keypoints, skeleton=found.skeleton.name)
