"""Raw data into tables that keep the contract: Leeds Sports Pose, its extension, and folders of images."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.io
from pyarrow import fs

from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.schema import POOL, labelled
from distributed.storage.location import Location, first_line, list_files, locate, read_bytes
from distributed.tables.parquet import ROW_GROUP_BYTES, Row, write_rows
from model.errors import ImageError, InputError
from model.image import image_size
from model.skeleton import LSP

SourceName = Literal["lsp", "lspet", "folder"]
Kind = Literal["pool", "labelled"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# The axes of `joints` in joints.mat: LSP is (3, 14, images), its extension (14, 3, images).
_TO_IMAGES_FIRST = {"lsp": (2, 1, 0), "lspet": (2, 0, 1)}
_IMAGE_NAME = {"lsp": "im{:04d}.jpg", "lspet": "im{:05d}.jpg"}


def ingest(
    name: SourceName,
    *,
    source: str,
    out: str,
    table: Kind,
    start: int = 0,
    limit: int | None = None,
    row_group_bytes: int = ROW_GROUP_BYTES,
    config: dict[str, Any],
    progress: Progress = silent,
) -> dict[str, Any]:
    """Writes a pool or labelled table from raw data and publishes it; returns its record (run.json).

    Args:
        name: what kind of raw data.
        source: the folder that holds it.
        out: location of the table.
        table: with labels or without.
        start: how many images to pass over.
        limit: how many images to take; None means all that are left.
        row_group_bytes: image bytes of a row group.
        config: the resolved configuration, kept beside the output; the number of images found is added to it.
        progress: told of every image.

    Raises:
        InputError: the source lacks what its kind needs, or the output holds something else.
    """
    if name == "folder" and table == "labelled":
        raise InputError("--as: expected pool for a folder, found labelled (a folder holds no labels)")
    found = _folder(locate(source)) if name == "folder" else _leeds(name, locate(source))
    chosen = found[start:] if limit is None else found[start : start + limit]
    if not chosen:
        raise InputError(f"{source}: expected images from number {start} on, found {len(found)} images in all")
    target = locate(out)
    if not begin_run(target, config, inputs={"num_source_images": len(found)}, ignored=frozenset({"source", "out"})):
        return {**read_run(target, expected="table"), "was_done": True}
    counts = Counter[str](keypoints_outside=0)
    schema = labelled(LSP.num_keypoints) if table == "labelled" else POOL
    rows = (_row(reference, counts, progress=progress, total=len(chosen)) for reference in chosen)
    num_rows = write_rows(target, rows, schema, row_group_bytes=row_group_bytes)
    return publish_run(target, {"kind": "table", "table": table, "num_rows": num_rows, **counts})


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """One image of the raw data, not read yet."""

    sample_id: str
    image: Location
    group: str | None = None
    keypoints: np.ndarray | None = None  # (K, 2) image pixels
    visibility: np.ndarray | None = None  # (K,)


def _leeds(name: Literal["lsp", "lspet"], source: Location) -> list[_Reference]:
    """Leeds Sports Pose or its extension: `images/` and `joints.mat`, as published.

    The third value of a joint means *occluded* in LSP, where each has coordinates, and *labelled* in its extension.
    """
    joints = _read_joints(source.join("joints.mat"))
    axes = _TO_IMAGES_FIRST[name]
    if joints.ndim != 3 or joints.shape[axes[1]] != LSP.num_keypoints or joints.shape[axes[2]] != 3:
        raise InputError(f"{source.uri}/joints.mat: expected joints of {name}, found an array of {joints.shape}")
    per_image = joints.transpose(axes)  # (images, K, 3)
    flag = per_image[:, :, 2] > 0
    visibility = np.where(flag, 1, 2) if name == "lsp" else np.where(flag, 2, 0)
    return [
        _Reference(
            sample_id=f"{name}-{file[:-4]}",
            image=source.join("images", file),
            keypoints=per_image[index, :, :2],
            visibility=visibility[index].astype(np.uint8),
        )
        for index, file in ((i, _IMAGE_NAME[name].format(i + 1)) for i in range(len(per_image)))
    ]


def _read_joints(location: Location) -> np.ndarray:
    data = read_bytes(location)
    try:
        joints: np.ndarray = scipy.io.loadmat(io.BytesIO(data))["joints"]
    except Exception as error:  # SciPy lets through whatever a damaged file makes it stumble over
        raise InputError(f"{location.uri}: expected 'joints' in a .mat file: {first_line(error)}") from error
    return joints


def _folder(source: Location) -> list[_Reference]:
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
        references.append(_Reference(sample_id=sample_id, image=image, group=os.path.dirname(sample_id) or None))
    return references


def _row(reference: _Reference, counts: Counter[str], *, progress: Progress, total: int) -> Row:
    """The table's row. An image that can't be decoded is kept as it is: scoring will say why."""
    image = read_bytes(reference.image)
    counts["images"] += 1
    progress("ingest", counts["images"], total)
    row: Row = {"sample_id": reference.sample_id, "image": image, "group": reference.group}
    if reference.keypoints is None or reference.visibility is None:
        return row
    visibility = np.where(_is_inside(reference.keypoints, image), reference.visibility, 0).astype(np.uint8)
    counts["keypoints_outside"] += int(((visibility == 0) & (reference.visibility > 0)).sum())
    known = reference.keypoints[visibility > 0]
    # As in the paper: the joints' bounding box stands in for a person detector's.
    has_area = len(known) > 1 and bool((np.ptp(known, axis=0) > 0).all())
    box = [*known.min(axis=0), *known.max(axis=0)] if has_area else None
    return {**row, "box": box, "keypoints": reference.keypoints.ravel(), "visibility": visibility}


def _is_inside(keypoints: np.ndarray, image: bytes) -> np.ndarray:
    """(K,) whether a keypoint lies in the image; all of them where the image's size can't be read."""
    try:
        size = np.array(image_size(image))
    except ImageError:
        return np.ones(len(keypoints), np.bool_)
    return np.asarray(((keypoints > -0.5) & (keypoints < size - 0.5)).all(axis=1))
