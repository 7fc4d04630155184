"""A selection handed to a labelling tool: its images as they are stored, its predicted poses as pre-annotation."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from distributed.evaluation.slices import texts_by_row
from distributed.reporting.coco import (
    CVAT_ANNOTATIONS,
    CVAT_IMAGES,
    FIFTYONE_IMAGES,
    coco_json,
    cvat_json,
    cvat_labels,
    fiftyone_json,
)
from distributed.reporting.items import Exported, Item, box_or_all, safe_name, selection_csv, within
from distributed.reporting.label_studio import config_xml, tasks_json
from distributed.reporting.options import ExportKind, ExportOptions, ImageMode
from distributed.reporting.origin import Origin, read_origin
from distributed.reporting.pool_rows import INDEX, Missing, Pool, metadata_columns, read_rows
from distributed.reporting.poses import Poses, read_parts, read_scored_rows
from distributed.runs.progress import Progress
from distributed.runs.record import begin_run, check_run, publish_run, read_run, run_version
from distributed.storage.location import Location, locate, open_atomic, write_bytes
from distributed.tables.reader import boxes, image_buffers
from model.errors import ImageError, InputError
from model.image import image_size
from model.skeleton import Skeleton

IMAGES = "images"  # the folder of copies
CVAT_FILE = "cvat.zip"
_LOCAL_FILES = "/data/local-files/?d="  # how Label Studio serves files below its document root

SaveImage = Callable[[str, memoryview], None]  # a name and what is stored under it
_Refer = Callable[[str, dict[str, Any], dict[str, str]], str]


def export_selection(options: ExportOptions, *, progress: Progress) -> dict[str, Any]:
    """Writes a selection in a tool's format and publishes it; returns its record (run.json).

    Poses are those of the scores where they have keypoints; else the bundle that scored predicts them once more. Rows
    whose images are not found in the pool, or can't be read, are left out: `num_missing`, and `missing` by reason. The
    annotations are written after the images, and run.json last.

    Args:
        options: the kind is coco (annotations.json), cvat (a zip to import, and the label to set up first),
            label-studio (tasks.json and the labelling configuration), fiftyone (labels.json beside data/, a
            COCODetectionDataset) or csv. The output is a folder that does not exist, is empty or holds an unfinished
            export of the same. Images are copied beside the annotations, or referenced: by the URI that `uri_column`
            has for each, else (coco and csv) by pool file and row.
        progress: told of every batch.

    Raises:
        InputError: an input can't be used, none of the images is in the pool, or something else lies at `out`.
        RunFailedError: the store failed; the same call does it all again.
    """
    kind, selection, pool, images = options.kind, options.selection, options.pool, options.images
    target = locate(options.out)
    origin = read_origin(selection)
    bundle = origin.bundle
    if bundle is None:
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
        [Pool(location=locate(pool), footers=footers)], origin.selected, missing=missing, progress=progress
    )
    first = [*itertools.islice(rows, 1)]
    if missing.reasons and not first:
        reason = next(iter(missing.counts()))
        raise InputError(f"{pool}: expected the pool of the selection {selection}, found none of its images; {reason}")
    begin_run(target, config, inputs=identity, ignored=ExportOptions.undecisive())
    poses = Poses(read_scored_rows(read_parts(origin.tables), origin.selected).keypoints, bundle=bundle)
    with _saving(kind, target, images, bundle.spec.skeleton) as (save, finish):
        make = partial(
            _make_items, origin, poses, missing, save, refer=_referrer(kind, target, images, options.uri_column, pool)
        )
        items = sorted((item for part in itertools.chain(first, rows) for item in make(part)), key=lambda i: i.rank)
        exported = Exported(
            items=items, skeleton=bundle.spec.skeleton, bundle_id=origin.bundle_id, fingerprint=origin.fingerprint
        )
        finish(exported)
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


def _make_items(
    origin: Origin,
    poses: Poses,
    missing: Missing,
    save: SaveImage,
    rows: pa.Table,
    *,
    refer: _Refer,
) -> Iterator[Item]:
    """The items of some pool rows; their images are saved."""
    metadata = _metadata(rows)
    chosen = origin.selected.take(rows[INDEX]).to_pylist()
    for image, box, pose, about, extra, index in zip(
        image_buffers(rows), boxes(rows), poses.of(rows), chosen, metadata, rows[INDEX].to_pylist(), strict=True
    ):
        try:
            width, height = image_size(image)
        except ImageError as error:
            missing.reasons[index] = error.reason
            continue
        name = safe_name(about["sample_id"], image)
        reference = refer(name, about, extra)
        save(name, image)
        yield Item(
            rank=about["rank"],
            sample_id=about["sample_id"],
            file_name=name,
            reference=reference,
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


def _plain(value: float) -> float:
    """A finite number, for JSON has no other, in the digits that a float32 has."""
    return float(f"{np.clip(value, -3e38, 3e38):.7g}")


def _metadata(rows: pa.Table) -> list[dict[str, str]]:
    """Of each row, its metadata in words, and when it was captured."""
    names = [name for name in metadata_columns(rows.schema) if name != INDEX]
    columns = {name: texts_by_row(rows[name]) for name in names}
    columns["captured_at"] = [() if time is None else (time.isoformat(),) for time in rows["captured_at"].to_pylist()]
    return [
        {name: ", ".join(values[row]) for name, values in columns.items() if values[row]} for row in range(len(rows))
    ]


def _referrer(kind: ExportKind, target: Location, images: ImageMode, uri_column: str | None, pool: str) -> _Refer:
    """From an image's file name, its row of the selection and its metadata to what a tool is told to open."""

    def copied(name: str, about: dict[str, Any], metadata: dict[str, str]) -> str:
        del about, metadata
        if kind in ("cvat", "fiftyone"):
            return name
        path = f"{IMAGES}/{name}"
        if kind != "label-studio":
            return path
        return f"{_LOCAL_FILES}{quote(path)}" if target.is_local else f"{target.uri.rstrip('/')}/{path}"

    def in_the_pool(name: str, about: dict[str, Any], metadata: dict[str, str]) -> str:
        del name, metadata
        return f"{pool.rstrip('/')}/{about['pool_file']}#row={about['pool_row']}"

    def by_column(name: str, about: dict[str, Any], metadata: dict[str, str]) -> str:
        del name
        uri = metadata.get(uri_column or "")
        if not uri:
            what = f"expected a URI for {about['sample_id']!r}, found none"
            raise InputError(f"{pool}: column {uri_column!r}: {what}")
        # CVAT knows its frames by their paths in the bucket.
        return uri.partition("://")[2].partition("/")[2] if kind == "cvat" and "://" in uri else uri

    if images == "copy":
        return copied
    return in_the_pool if uri_column is None else by_column


_Finish = Callable[[Exported], None]


def _saving(
    kind: ExportKind, target: Location, images: ImageMode, skeleton: Skeleton
) -> AbstractContextManager[tuple[SaveImage, _Finish]]:
    """How images are saved, and what is written when all are."""
    return _into_zip(target, images, skeleton) if kind == "cvat" else _into_folder(kind, target, images)


@contextmanager
def _into_zip(target: Location, images: ImageMode, skeleton: Skeleton) -> Iterator[tuple[SaveImage, _Finish]]:
    with open_atomic(target.join(CVAT_FILE)) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def save(name: str, image: memoryview) -> None:
            if images == "copy":
                archive.writestr(zipfile.ZipInfo(f"{CVAT_IMAGES}/{name}"), bytes(image))

        def finish(exported: Exported) -> None:
            archive.writestr(zipfile.ZipInfo(CVAT_ANNOTATIONS), cvat_json(exported), zipfile.ZIP_DEFLATED)
            write_bytes(target.join("labels.json"), cvat_labels(skeleton))

        yield save, finish


@contextmanager
def _into_folder(kind: ExportKind, target: Location, images: ImageMode) -> Iterator[tuple[SaveImage, _Finish]]:
    def save(name: str, image: memoryview) -> None:
        if images == "copy":
            write_bytes(target.join(FIFTYONE_IMAGES if kind == "fiftyone" else IMAGES, name), bytes(image))

    def finish(exported: Exported) -> None:
        for name, data in _files(kind, exported).items():
            write_bytes(target.join(name), data)

    yield save, finish


def _files(kind: ExportKind, exported: Exported) -> dict[str, bytes]:
    if kind == "coco":
        return {"annotations.json": coco_json(exported)}
    if kind == "fiftyone":
        return {"labels.json": fiftyone_json(exported)}
    if kind == "label-studio":
        return {"labelling.xml": config_xml(exported.skeleton), "tasks.json": tasks_json(exported)}
    return {"selection.csv": selection_csv(exported)}
