"""Raw data into pool or labelled tables. What a source holds is found by a module for each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from distributed.ingest.coco import find_coco
from distributed.ingest.folder import find_images
from distributed.ingest.leeds import find_leeds
from distributed.ingest.mpii import find_mpii
from distributed.ingest.options import IngestOptions, TableKind
from distributed.ingest.reference import Found, check_images, read_rows
from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.schema import POOL, labelled
from distributed.storage.location import Location, locate, write_bytes
from distributed.tables.parquet import write_rows
from model.errors import InputError
from model.skeleton import SKELETONS, Skeleton, dump_skeleton

SKELETON_FILE = "skeleton.json"  # beside a table


def ingest(options: IngestOptions, *, progress: Progress = silent) -> dict[str, Any]:
    """Writes a pool or labelled table from raw data and publishes it; returns its record (run.json).

    The configuration is kept beside the output, with the number of images or persons found.

    Args:
        options: without a selection. Of coco, the keypoints' order is the skeleton that they name; else the known one
            with these names, or the file's own, which is then kept beside the table (`SKELETON_FILE`).
        progress: told of every row.

    Raises:
        InputError: the source lacks what its kind needs, or the output holds something else.
    """
    found, has_persons = _find(options), FORMATS[options.kind].annotations == "needed"
    stop = None if options.limit is None else options.start + options.limit
    chosen = found.references[options.start : stop]
    if not chosen:
        rows = "persons" if has_persons else "images"
        skipped = f" (left out: {found.skipped})" if found.skipped else ""
        raise InputError(
            f"{options.source}: expected {rows} from number {options.start} on, "
            f"found {len(found.references)} {rows} in all{skipped}"
        )
    if has_persons:
        check_images(chosen, below=locate(options.source), named_by=options.annotations or "")
    target = locate(options.out)
    inputs: dict[str, Any] = {"num_source_images": len(found.references)}
    if found.fingerprint:
        inputs["annotations_fingerprint"] = found.fingerprint
    if not begin_run(target, options.resolved(), inputs=inputs, ignored=IngestOptions.undecisive()):
        return {**read_run(target, expected="table"), "was_done": True}
    counts = Counter[str](keypoints_outside=0)
    num_rows = write_rows(target, read_rows(chosen, counts, progress=progress), _schema(found, options.as_))
    if options.as_ == "labelled" and found.skeleton:
        keep_skeleton(target, found.skeleton)
    return publish_run(
        target,
        {
            "kind": "table",
            "table": options.as_,
            "num_rows": num_rows,
            "skipped": found.skipped,
            "notes": list(found.notes),
            **counts,
        },
    )


def keep_skeleton(target: Location, skeleton: Skeleton) -> None:
    """Writes the skeleton beside its table, for `train --skeleton`; one of ours needs no file."""
    if SKELETONS.get(skeleton.name) != skeleton:
        write_bytes(target.join(SKELETON_FILE), dump_skeleton(skeleton))


def _find(options: IngestOptions) -> Found:
    name, annotations = options.kind, options.annotations
    chosen = FORMATS[name]
    if options.skeleton is not None and name != "coco":
        raise InputError(f"--skeleton: expected none for {name}, whose keypoints are known, found {options.skeleton}")
    if chosen.annotations == "needed" and annotations is None:
        raise InputError(f"--annotations: expected the file with the persons of {name}, found none")
    if chosen.annotations == "refused" and annotations is not None:
        raise InputError(f"--annotations: expected none for {name}, found {annotations}")
    if options.as_ == "labelled" and not chosen.has_labels:
        raise InputError(f"--as: expected pool for a {name}, found labelled (a {name} holds no labels)")
    return chosen.find(options)


def _schema(found: Found, table: TableKind) -> pa.Schema:
    if table == "pool" or found.skeleton is None:
        return pa.schema([*POOL, *found.columns])
    return labelled(found.skeleton.num_keypoints, skeleton=found.skeleton.name)


class Format(NamedTuple):
    """Reader of raw data of one kind."""

    find: Callable[[IngestOptions], Found]
    annotations: Literal["needed", "taken", "refused"] = "refused"  # needed: a row is a person of them
    has_labels: bool = True


FORMATS = {
    "lsp": Format(find_leeds),
    "lspet": Format(find_leeds),
    "coco": Format(find_coco, annotations="needed"),
    "mpii": Format(find_mpii, annotations="needed"),
    "folder": Format(find_images, annotations="taken", has_labels=False),
}
