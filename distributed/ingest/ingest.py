"""Raw data into pool or labelled tables; a folder of images is found here, each data set has a module of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pyarrow import fs

from distributed.ingest.coco import find_coco
from distributed.ingest.leeds import find_leeds
from distributed.ingest.mpii import find_mpii
from distributed.ingest.reference import Found, Reference, check_images, read_rows
from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.schema import POOL, labelled
from distributed.storage.location import Location, list_files, locate, write_bytes
from distributed.tables.parquet import ROW_GROUP_BYTES, write_rows
from model.errors import InputError
from model.skeleton import SKELETONS, Skeleton, dump_skeleton

Kind = Literal["pool", "labelled"]

SKELETON_FILE = "skeleton.json"  # beside a table

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def ingest(
    name: str,
    *,
    source: str,
    out: str,
    table: Kind,
    annotations: str | None = None,
    skeleton: str | None = None,
    start: int = 0,
    limit: int | None = None,
    row_group_bytes: int = ROW_GROUP_BYTES,
    config: dict[str, Any],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes a pool or labelled table from raw data and publishes it; returns its record (run.json).

    Args:
        name: of `FORMATS`.
        source: the folder that holds it; of coco and mpii, the one with the images.
        out: location of the table.
        table: with labels or without.
        annotations: the file with the persons, for coco and mpii only.
        skeleton: order of the keypoints of coco, by name: lsp, mpii, coco or the location of a JSON file; None: the
            known one with these names, or the file's own, which is then kept beside the table (`SKELETON_FILE`).
        start: how many images, or persons, to pass over.
        limit: how many to take; None means all that are left.
        row_group_bytes: image bytes of a row group.
        config: the resolved configuration, kept beside the output; the number of images found is added to it.
        progress: told of every row.

    Raises:
        InputError: the source lacks what its kind needs, or the output holds something else.
    """
    place = locate(source)
    found = _find(name, place, annotations=annotations, skeleton=skeleton, are_labelled=table == "labelled")
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
    if table == "labelled" and found.skeleton:
        keep_skeleton(target, found.skeleton)
    return publish_run(
        target, {"kind": "table", "table": table, "num_rows": num_rows, "skipped": found.skipped, **counts}
    )


def keep_skeleton(target: Location, skeleton: Skeleton) -> None:
    """Writes the skeleton beside its table, for `train --skeleton`; one of ours needs no file."""
    if SKELETONS.get(skeleton.name) != skeleton:
        write_bytes(target.join(SKELETON_FILE), dump_skeleton(skeleton))


def _find(name: str, source: Location, *, annotations: str | None, skeleton: str | None, are_labelled: bool) -> Found:
    chosen = FORMATS[name]
    if skeleton is not None and name != "coco":
        raise InputError(f"--skeleton: expected none for {name}, whose keypoints are known, found {skeleton}")
    if chosen.has_annotations and annotations is None:
        raise InputError(f"--annotations: expected the file with the persons of {name}, found none")
    if not chosen.has_annotations and annotations is not None:
        raise InputError(f"--annotations: expected none for {name}, found {annotations}")
    if are_labelled and not chosen.has_labels:
        raise InputError(f"--as: expected pool for a {name}, found labelled (a {name} holds no labels)")
    if annotations is None:
        return chosen.find(source)
    if skeleton is None:
        return chosen.find(source, locate(annotations), are_labelled=are_labelled)
    from distributed.tables.labelled import named_skeleton  # PyTorch takes seconds

    return chosen.find(source, locate(annotations), are_labelled=are_labelled, skeleton=named_skeleton(skeleton))


def _find_images(source: Location) -> Found:
    """Every JPEG and PNG below a folder; the path below it is the id, the folder it lies in the group."""
    if source.info().type == fs.FileType.File:
        raise InputError(f"{source.uri}: expected a folder of images, found a file")
    images = [info for info in list_files(source, suffix="") if info.path.lower().endswith(_IMAGE_SUFFIXES)]
    if not images:
        raise InputError(f"{source.uri}: expected images ({', '.join(_IMAGE_SUFFIXES)}), found none")
    references = []
    for info in images:
        sample_id = info.path[len(source.path) + 1 :]
        image = source.join(*sample_id.split("/"))
        references.append(Reference(sample_id=sample_id, image=image, group=os.path.dirname(sample_id) or None))
    return Found(references=references)


def _schema(found: Found, table: Kind) -> pa.Schema:
    if table == "pool" or found.skeleton is None:
        return POOL
    return labelled(found.skeleton.num_keypoints, skeleton=found.skeleton.name)


class Format(NamedTuple):
    """How raw data of one kind are found."""

    find: Callable[..., Found]  # from the source; with annotations also from these, and `are_labelled`
    has_annotations: bool = False  # in a file of their own: a row is then a person
    has_labels: bool = True


FORMATS = {
    "lsp": Format(partial(find_leeds, "lsp")),
    "lspet": Format(partial(find_leeds, "lspet")),
    "coco": Format(find_coco, has_annotations=True),
    "mpii": Format(find_mpii, has_annotations=True),
    "folder": Format(_find_images, has_labels=False),
}
