"""Boxes that a detector found, as COCO's results list them: image_id, bbox, score, and mostly category_id.

Source: https://cocodataset.org/#format-results
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from distributed.ingest.coco_entries import faults_named, load_json, read_box, read_size
from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Corners, Found, Reference
from distributed.storage.location import Location, list_files, locate, read_bytes
from model.errors import InputError

BOX_SCORE = pa.field("box_score", pa.float64())  # column of the pool, with the digits that conditions are written with

_PERSON = 1  # COCO's number of the category
_NEEDED = {"image_id", "bbox", "score"}
_NUMBERED = re.compile(r"(?:COCO_\w+_)?0*([0-9]+)")  # 000000000139, COCO_val2014_000000000139


class _Image(NamedTuple):
    """An image that results may name; its path is below the source."""

    path: str
    size: tuple[int, int] | None = None


class _Box(NamedTuple):
    """A box of the results; sorted, the best one of an image comes first."""

    image: _Image
    below: float  # minus the score
    sides: tuple[float, ...]  # x, y, width, height as the file has them
    corners: Corners


def find_detections(entries: list[Any], data: bytes, options: IngestOptions) -> Found:
    """Every box with an area, for a pool: by the images' paths, and from the highest score down.

    Left out and counted: `other_category`, `low_score`, and `no_box` without an area. The id is the image's path and
    the box in whole pixels, which neither the order of the entries nor `--min-box-score` changes.

    Args:
        entries: the results.
        data: the file that they are from.
        options: with the folder of the images and, where there is one, COCO's list of them.

    Raises:
        InputError: labels are wanted, an entry can't be used, or its image is not known: names it.
    """
    where = options.annotations or ""
    for flag, found in (("as", "labelled" if options.as_ == "labelled" else None), ("skeleton", options.skeleton)):
        if found is not None:
            raise InputError(f"--{flag}: expected a pool of {where}, which has boxes without keypoints, found {found}")
    source, listed = locate(options.source), read_bytes(locate(options.images)) if options.images else b""
    skipped: Counter[str] = Counter()
    images = _listed(listed, where=options.images) if options.images else _named(source)
    with faults_named(where):
        boxes = sorted(_boxes(entries, images, skipped, options))
    ids: Counter[str] = Counter()
    references = []
    for box in boxes:
        name = "-".join([f"coco-{os.path.splitext(box.image.path)[0]}", *(f"{side:.0f}" for side in box.sides)])
        ids[name] += 1
        references.append(
            Reference(
                sample_id=name if ids[name] == 1 else f"{name}-{ids[name]}",
                image=source.join(*box.image.path.split("/")),
                group=box.image.path,
                size=box.image.size,
                box=box.corners,
                metadata={BOX_SCORE.name: -box.below},
            )
        )
    return Found(
        references=references,
        columns=(BOX_SCORE,),
        skipped=dict(sorted(skipped.items())),
        fingerprint=hashlib.sha256(data + listed).hexdigest()[:16],
    )


def _boxes(
    entries: list[Any], images: Mapping[Any, list[_Image]], skipped: Counter[str], options: IngestOptions
) -> list[_Box]:
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.keys() >= _NEEDED:
            found = sorted(entry)[:8] if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"entry {number}: expected {sorted(_NEEDED)}, found {found}")
    person, boxes = _person(entries), []
    least = -math.inf if options.min_box_score is None else options.min_box_score
    for number, entry in enumerate(entries):
        name, score = f"entry {number}", entry["score"]
        corners = read_box(entry["bbox"], name)
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(f"{name}: score: expected a number, found {score!r}")
        if entry.get("category_id") != person:
            skipped["other_category"] += 1
        elif score < least:
            skipped["low_score"] += 1
        elif corners is None:
            skipped["no_box"] += 1
        else:
            image = _image_of(entry["image_id"], images, name, is_listed=options.images is not None)
            boxes.append(_Box(image, -score, tuple(map(float, entry["bbox"])), corners))
    return boxes


def _person(entries: list[dict[str, Any]]) -> Any:
    """The category of persons: the only one, however a detector numbers it, or COCO's."""
    found = {entry.get("category_id") for entry in entries}
    if len(found) < 2:
        return next(iter(found), None)
    if _PERSON not in found:
        raise ValueError(
            f"category_id: expected {_PERSON}, COCO's person, among several, found {sorted(map(str, found))}"
        )
    return _PERSON


def _image_of(image_id: Any, images: Mapping[Any, list[_Image]], name: str, *, is_listed: bool) -> _Image:
    found = images.get(image_id, []) if isinstance(image_id, int | str) else []
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{name}: image_id: expected one image {image_id!r}, found {found[0].path} and {found[1].path}"
        )
    expected = "an image of --images" if is_listed else "the name of an image, or the number that is its name"
    hint = "" if is_listed else "; --images takes COCO's list of images"
    raise ValueError(f"{name}: image_id: expected {expected}, found {image_id!r}{hint}")


def _listed(data: bytes, *, where: str) -> dict[Any, list[_Image]]:
    """The images of COCO's list, by id."""
    content = load_json(data, where=where)
    with faults_named(where):
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError(f"expected COCO's list 'images', found {type(content).__name__}")
        return {each["id"]: [_Image(each["file_name"], read_size(each))] for each in content["images"]}


def _named(source: Location) -> dict[Any, list[_Image]]:
    """The files below a folder by whatever may name one: path and base name, with and without ending, and number."""
    found: dict[Any, list[_Image]] = {}
    paths = [file.path[len(source.path) + 1 :] for file in list_files(source, suffix="")]
    for path in paths:
        base = path.rpartition("/")[2]
        numbered = _NUMBERED.fullmatch(os.path.splitext(base)[0])
        names = {path, os.path.splitext(path)[0], base, os.path.splitext(base)[0]}
        for name in [*names, *([int(numbered[1])] if numbered else [])]:
            found.setdefault(name, []).append(_Image(path))
    return found | {path: [_Image(path)] for path in paths}
