"""A selection handed to a labelling tool: its images as they are stored, its predicted poses as pre-annotation."""

from __future__ import annotations

import dataclasses
import itertools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.evaluation.slices import texts_by_row
from distributed.reporting.formats import (
    Exported,
    Item,
    box_or_all,
    coco_json,
    config_xml,
    cvat_labels,
    ranked_name,
    safe_name,
    selection_csv,
    tasks_json,
    within,
)
from distributed.reporting.options import ExportKind, ExportOptions
from distributed.reporting.origin import Origin, read_origin
from distributed.reporting.rows import INDEX, Missing, Pool, Poses, metadata_columns, read_rows, read_scored_rows
from distributed.runs.progress import Progress
from distributed.runs.record import begin_run, check_run, publish_run, read_run, run_version
from distributed.selection.filters import read_id_list
from distributed.storage.location import Location, locate, open_atomic, write_bytes
from distributed.tables.reader import boxes, image_buffers
from distributed.tables.references import read_errors
from model.errors import ImageError, InputError
from model.image import image_size
from model.orientation import as_stored, orientation

# Folders of copies; else images. Those of coco and cvat, and the name of their annotations, are what datumaro expects.
_IMAGES = {"coco": "images/default", "cvat": "images/default", "fiftyone": "data"}
_COCO_ANNOTATIONS = "annotations/person_keypoints_default.json"
_CVAT_LABELS = "labels.json"  # beside the zip
_LOCAL_FILES = "/data/local-files/?d="  # how Label Studio serves files below its document root

_Write = Callable[[str, bytes | memoryview], None]  # a path below the export and what is stored there


def export_selection(options: ExportOptions, *, progress: Progress) -> dict[str, Any]:
    """Writes a selection in a tool's format and publishes it; returns its record (run.json).

    Poses are those of the scores where they have keypoints; else the bundle that scored predicts them once more. Rows
    whose images are not found in the pool, or can't be read, are left out: `num_missing`, and `missing` by reason. The
    annotations are written after the images, and run.json last.

    Args:
        options: the kind is coco (annotations/ and images/default/), cvat (a zip to import, and the
            labels to set up first), label-studio (tasks.json and the labelling configuration), fiftyone (labels.json
            beside data/, a COCODetectionDataset) or csv. The output is a folder that does not exist, is empty or holds
            an unfinished export of the same. Images are copied beside the annotations, or referenced: by the URI that
            `uri_column` has for each, else (coco and csv) by pool file and row.
        progress: told of every batch.

    Raises:
        InputError: an input can't be used, none of the images is in the pool, or something else lies at `out`.
        RunFailedError: the store failed; the same call does it all again.
    """
    kind, selection, pool, images = options.kind, options.selection, options.pool, options.images
    target = locate(options.out)
    origin = read_origin(selection)
    if options.ids is not None:
        origin = _keep(origin, locate(options.ids))
    described = origin.described
    if described is None:
        raise InputError(
            f"{origin.tables[0].model.uri}: expected the bundle {origin.bundle_id} that made the scores, which names "
            "the keypoints, found none or another"
        )
    config = options.model_dump(exclude={"kind"})  # which `identity` has under another name
    identity = {"export": kind, "bundle_id": origin.bundle_id, "selection_fingerprint": origin.fingerprint}
    check_run(target, config, inputs=identity, ignored=ExportOptions.undecisive())
    if run_version(target):
        return {**read_run(target, expected="export"), "was_done": True}
    footers = {path: footer for table in origin.tables for path, footer in table.footers.items()}
    missing = Missing()
    rows = read_rows(
        [Pool(location=locate(pool), image_root=origin.tables[0].image_root, footers=footers)],
        origin.selected,
        missing=missing,
        progress=progress,
    )
    first = [*itertools.islice(rows, 1)]
    if missing.reasons and not first:
        reason = next(iter(missing.counts()))
        raise InputError(f"{pool}: expected the pool of the selection {selection}, found none of its images; {reason}")
    begin_run(target, config, inputs=identity, ignored=ExportOptions.undecisive())
    stored = read_scored_rows(origin.read_parts(), origin.selected).keypoints
    poses = Poses(stored, bundle=None if stored else origin.load_bundle())
    refer = partial(_reference, target=target, options=options)
    with _writing(kind, target) as write:
        items = []
        for part in itertools.chain(first, rows):
            for item, image in _make_items(origin, poses, missing, part, refer=refer, options=options):
                if images == "copy":
                    write(f"{_IMAGES.get(kind, 'images')}/{item.file_name}", as_stored(image))
                items.append(item)
        items.sort(key=lambda item: item.rank)
        exported = Exported(
            items=items,
            skeleton=described.spec.skeleton,
            bundle_id=origin.bundle_id,
            knows_misses=described.spec.method == "keypoint",
        )
        for name, data in _annotations(kind, exported).items():
            write(name, data)
    return publish_run(
        target,
        {
            "kind": "export",
            "format": kind,
            **identity,
            "num_selected": len(origin.selected),
            "num_exported": len(items),
            "num_missing": len(missing.reasons),
            "missing": missing.counts(),
            "poses": poses.source,
        },
    )


def _keep(origin: Origin, ids: Location) -> Origin:
    """The selection without the rows that a list of ids does not name.

    Raises:
        InputError: the list is none, is empty, or has ids that were not selected.
    """
    wanted, selected = read_id_list(ids).rows["sample_id"], origin.selected["sample_id"]
    if not len(wanted):
        raise InputError(f"{ids.uri}: expected ids of {origin.location.uri}, found none")
    unknown = wanted.filter(pc.invert(pc.is_in(wanted, value_set=selected.combine_chunks())))
    if len(unknown):
        found = f"{len(unknown)} others: {unknown[:3].to_pylist()}"
        raise InputError(f"{ids.uri}: expected ids of {origin.location.uri}, found {found}")
    is_kept = pc.is_in(selected, value_set=wanted.combine_chunks())
    return dataclasses.replace(origin, selected=origin.selected.filter(is_kept))


def _make_items(
    origin: Origin, poses: Poses, missing: Missing, rows: pa.Table, *, refer: Callable[..., str], options: ExportOptions
) -> Iterator[tuple[Item, memoryview]]:
    """The items of some pool rows and their images; `missing` learns of those that can't be read."""
    metadata = _metadata(rows)
    chosen = origin.selected.take(rows[INDEX]).to_pylist()
    for image, read_error, box, pose, about, extra, index in zip(
        image_buffers(rows),
        read_errors(rows),
        boxes(rows),
        poses.of(rows),
        chosen,
        metadata,
        rows[INDEX].to_pylist(),
        strict=True,
    ):
        try:
            width, height = image_size(image)
        except ImageError as error:
            missing.reasons[index] = read_error or error.reason
            continue
        if options.images == "reference" and orientation(image) != 1:  # a tool would show other pixels than were scored
            missing.reasons[index] = "turned by its EXIF orientation: use --images copy"
            continue
        name = safe_name(about["sample_id"], image)
        if options.kind == "cvat":
            name = ranked_name(name, rank=about["rank"], last=len(origin.selected))
        item = Item(
            rank=about["rank"],
            sample_id=about["sample_id"],
            file_name=name,
            reference=refer(name, about, extra),
            width=width,
            height=height,
            box=box_or_all(box, width=width, height=height),
            pose=within(pose, width=width, height=height),
            predicted_loss=_plain(about["predicted_loss"]),
            expected_pck=about["expected_pck"] if about["expected_pck"] is None else _plain(about["expected_pck"]),
            group=about["group"],
            reason=about["reason"],
            metadata=extra,
        )
        yield item, image


def _plain(value: float) -> float:
    """A finite number, for JSON has no other, in the digits that a float32 has."""
    return float(f"{np.clip(value, -3e38, 3e38):.7g}")


def _metadata(rows: pa.Table) -> list[dict[str, str]]:
    """Metadata of each row as text, with the time of capture."""
    columns = {name: texts_by_row(rows[name]) for name in metadata_columns(rows.schema)}
    columns["captured_at"] = [() if time is None else (time.isoformat(),) for time in rows["captured_at"].to_pylist()]
    return [
        {name: ", ".join(values[row]) for name, values in columns.items() if values[row]} for row in range(len(rows))
    ]


def _reference(
    name: str, about: dict[str, Any], metadata: dict[str, str], *, target: Location, options: ExportOptions
) -> str:
    """The place that a tool is told to open, from an image's file name, its row of the selection and its metadata."""
    kind, pool, column = options.kind, options.pool.rstrip("/"), options.uri_column
    if options.images == "copy":
        if kind in _IMAGES:
            return name
        path = f"images/{name}"
        return _served(path, target, options.url_prefix) if kind == "label-studio" else path
    if column is None:
        return f"{pool}/{about['pool_file']}#row={about['pool_row']}"
    uri = metadata.get(column)
    if not uri:
        raise InputError(f"{pool}: column {column!r}: expected a URI for {about['sample_id']!r}, found none")
    # CVAT knows its frames by their paths in the bucket.
    return uri.partition("://")[2].partition("/")[2] if kind == "cvat" and "://" in uri else uri


def _served(path: str, target: Location, prefix: str | None) -> str:
    """The address of a copy, from its path below the export, as Label Studio opens it."""
    if prefix is None:
        prefix = _LOCAL_FILES if target.is_local else target.uri
    return f"{prefix}{'' if prefix.endswith(('/', '=')) else '/'}{quote(path) if '?d=' in prefix else path}"


@contextmanager
def _writing(kind: ExportKind, target: Location) -> Iterator[_Write]:
    """Writes files of the export: into its folder; for CVAT into a zip there, which appears once it is whole."""

    def beside(name: str, data: bytes | memoryview) -> None:
        write_bytes(target.join(*name.split("/")), bytes(data))

    if kind != "cvat":
        yield beside
        return
    with open_atomic(target.join("cvat.zip")) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def inside(name: str, data: bytes | memoryview) -> None:
            if name == _CVAT_LABELS:
                beside(name, data)
            else:
                method = zipfile.ZIP_DEFLATED if name == _COCO_ANNOTATIONS else zipfile.ZIP_STORED
                archive.writestr(zipfile.ZipInfo(name), bytes(data), method)

        yield inside


def _annotations(kind: ExportKind, exported: Exported) -> dict[str, bytes]:
    """The files beside the images."""
    match kind:
        case "coco":
            return {_COCO_ANNOTATIONS: coco_json(exported)}
        case "cvat":
            return {_COCO_ANNOTATIONS: coco_json(exported, kind), _CVAT_LABELS: cvat_labels(exported.skeleton)}
        case "fiftyone":
            return {"labels.json": coco_json(exported, kind)}
        case "label-studio":
            return {"labelling.xml": config_xml(exported.skeleton), "tasks.json": tasks_json(exported)}
        case "csv":
            return {"selection.csv": selection_csv(exported)}
