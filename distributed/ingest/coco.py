"""COCO keypoints: one row a person, from the JSON as published (`person_keypoints_*.json`) or as a tool exports it.

In all tables and in `model`, (0, 0) is the centre of the top-left pixel: an image reaches from -0.5 to W - 0.5. COCO
counts keypoints likewise, so they stay as they are, and boxes from the image's corner, as x, y, width, height.
Label Studio and FiftyOne keep shares of W and H; their own COCO imports and exports divide and multiply COCO's numbers
by the sides, so our exports do the same: what comes back through any of them is what went out. (Their canvas counts
from the corner: it shows keypoints of COCO half a pixel up and left.)

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#format-data;
label_studio_sdk/converter/keypoints.py; fiftyone/utils/coco.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.ingest.answers import Answer, Point, ToolExport, fingerprint_of, read_documents
from distributed.ingest.reference import Corners, Found, Reference
from distributed.storage.location import Location, read_bytes
from model.errors import InputError
from model.skeleton import Skeleton, skeleton_of_names

_CORNER = 0.5  # from the image's corner to the centre of its first pixel
_WHOLE_PX = 0.5  # error of a coordinate that was rounded to whole pixels
_LABEL_STUDIO = "Label Studio"  # as its exports name their contributor
_LOSSY = (
    "Label Studio's COCO export rounds keypoints to whole pixels, and does not say which images were rejected or which "
    "keypoints are occluded; its JSON export does"
)

_Table = NDArray[np.float64]  # (K, 3) x, y, visibility


def box_from_coco(x: float, y: float, width: float, height: float) -> Corners:
    """The corners, in our frame, of a box that COCO writes as x, y, width, height."""
    x0, y0 = x - _CORNER, y - _CORNER
    return x0, y0, x0 + width, y0 + height


def box_to_coco(box: Corners) -> tuple[float, float, float, float]:
    """A box in our frame as COCO writes it: x, y, width, height. Undoes `box_from_coco`."""
    x0, y0, x1, y1 = box
    return x0 + _CORNER, y0 + _CORNER, x1 - x0, y1 - y0


def find_coco(
    images: Location, annotations: Location, *, are_labelled: bool, skeleton: Skeleton | None = None
) -> Found:
    """Every person with a box of its own, in the order of the images and of their annotations' ids.

    Left out and counted: `crowd` (one box around many), `other_category`, and persons without a labelled keypoint:
    `unlabelled` where labels are wanted, `no_box` where there is no box either. The group is the image's name, since
    persons of one image share most of its pixels.

    Args:
        images: the folder below which the images lie, under their `file_name`.
        annotations: the JSON.
        are_labelled: whether labels are wanted; a pool has persons without a keypoint too.
        skeleton: order of the keypoints, by name; None: that of the known skeleton with these names, or the file's.

    Raises:
        InputError: the file is no such JSON: names the entry, what was expected and what was found.
    """
    data = read_bytes(annotations)
    parsed = _parse(data, where=annotations.uri)
    skipped: Counter[str] = Counter()
    references = []
    with _faults_named(annotations.uri):
        order = {image["id"]: (place, image["file_name"], image) for place, image in enumerate(parsed["images"])}
        names = _names_by_category(parsed["categories"])
        skeleton = skeleton or _skeleton(parsed["categories"], names)
        places = _check_names(names, skeleton)
        for annotation in sorted(parsed["annotations"], key=lambda each: (order[each["image_id"]][0], each["id"])):
            reference = _reference(annotation, order[annotation["image_id"]][2], images, places)
            reason = _why_skipped(annotation, reference, names, are_labelled=are_labelled)
            if reason:
                skipped[reason] += 1
            else:
                references.append(reference)
    return Found(
        references=references,
        skeleton=skeleton,
        skipped=dict(sorted(skipped.items())),
        fingerprint=hashlib.sha256(data).hexdigest()[:16],
    )


@contextmanager
def _faults_named(uri: str) -> Iterator[None]:
    """Entries of COCO's JSON that can't be used, as an error of one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{uri}: expected COCO's images, annotations and categories with their keys, "
            f"found entries that fail with {type(error).__name__}: {error}"
        ) from error
    except ValueError as error:
        raise InputError(f"{uri}: {error}") from error


def read_coco(place: Location) -> ToolExport:
    """The answers of a tool's COCO export: the JSON, or a zip with it.

    Raises:
        InputError: as `find_coco`.
    """
    return read_coco_documents(read_documents(place, suffixes=(".json",)))


def read_coco_documents(documents: Mapping[str, bytes]) -> ToolExport:
    """The answers of COCO's JSON files, by name: one for each annotation of a person, and for each image without.

    Raises:
        InputError: as `find_coco`.
    """
    answers: list[Answer] = []
    names: tuple[str, ...] = ()
    limbs: tuple[tuple[int, int], ...] = ()
    is_rounded = False
    for uri, data in documents.items():
        parsed = _parse(data, where=uri)
        with _faults_named(uri):
            by_category = _names_by_category(parsed["categories"])
            names = next(iter(by_category.values()))
            limbs = _limbs(parsed["categories"], len(names))
            info = parsed.get("info")
            is_rounded = isinstance(info, dict) and info.get("contributor") == _LABEL_STUDIO
            answers += _answers(parsed, by_category, prefix=uri)
    return ToolExport(
        answers=answers,
        names=names,
        lists_all=True,
        limbs=limbs,
        rounding_px=_WHOLE_PX if is_rounded else 0.0,
        notes=(_LOSSY,) if is_rounded else (),
        fingerprint=fingerprint_of(documents.values()),
    )


def _answers(parsed: dict[str, Any], by_category: dict[int, tuple[str, ...]], *, prefix: str) -> list[Answer]:
    images = {image["id"]: image for image in parsed["images"]}
    persons: dict[Any, list[dict[str, Any]]] = {number: [] for number in images}
    for annotation in parsed["annotations"]:
        if annotation["category_id"] in by_category and not annotation.get("iscrowd"):
            persons[annotation["image_id"]].append(annotation)
    found = []
    for number, image in images.items():
        own = persons[number]
        ids = {str(each.get("sample_id", image.get("sample_id", ""))) for each in own or [image]}
        points = dict(_named_points(own[0], by_category)) if len(own) == 1 else {}
        found.append(
            Answer(
                entry=f"{prefix}: image {number}",
                image=str(image["file_name"]),
                verdict="unclear" if len(own) > 1 else "pose" if points else "unanswered",
                why=f"{len(own)} poses in it" if len(own) > 1 else None,
                sample_id=next(iter(ids)) or None if len(ids) == 1 else None,
                size=_size(image),
                points=points,
            )
        )
    return found


def _named_points(annotation: dict[str, Any], by_category: dict[int, tuple[str, ...]]) -> list[tuple[str, Point]]:
    """The labelled keypoints."""
    names = by_category[annotation["category_id"]]
    table = _keypoints(annotation.get("keypoints"), f"annotation {annotation.get('id')}", len(names))
    return [
        (name, Point(x, y, int(visibility)))
        for name, (x, y, visibility) in zip(names, table.tolist(), strict=True)
        if visibility
    ]


def _parse(data: bytes, *, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected COCO's JSON, found {data[:40]!r}") from error
    keys = {"images", "annotations", "categories"}
    if not isinstance(parsed, dict) or not all(isinstance(parsed.get(key), list) for key in keys):
        found = sorted(parsed)[:8] if isinstance(parsed, dict) else type(parsed).__name__
        raise InputError(f"{where}: expected the lists {sorted(keys)}, found {found}")
    return parsed


def _names_by_category(categories: list[dict[str, Any]]) -> dict[int, tuple[str, ...]]:
    """Names of the keypoints, by the id of the category that has them."""
    found = {each["id"]: tuple(each["keypoints"]) for each in categories if each.get("keypoints")}
    if not found:
        raise ValueError("expected a category with keypoints, found none (instances instead of person_keypoints?)")
    for names in found.values():
        if len({*names}) < len(names) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected each keypoint by a name of its own, found {list(names)}")
        if {*names} != {*next(iter(found.values()))}:
            raise ValueError("expected one skeleton, found categories with different keypoints")
    return found


def _skeleton(categories: list[dict[str, Any]], names: dict[int, tuple[str, ...]]) -> Skeleton:
    category, first = next(iter(names.items()))
    name = next(str(each.get("name", "own")) for each in categories if each["id"] == category)
    return skeleton_of_names(first, name=name, limbs=_limbs(categories, len(first)))


def _limbs(categories: list[dict[str, Any]], num_keypoints: int) -> tuple[tuple[int, int], ...]:
    """Pairs of keypoints, from 0, of the first category with keypoints; COCO counts them from 1."""
    edges = next(each.get("skeleton") or [] for each in categories if each.get("keypoints"))
    limbs = tuple((int(a) - 1, int(b) - 1) for a, b in edges)
    return tuple(limb for limb in limbs if all(0 <= end < num_keypoints for end in limb))


def _check_names(names: dict[int, tuple[str, ...]], skeleton: Skeleton) -> dict[int, list[int]]:
    """By category, the place in the file of each keypoint of the skeleton."""
    for found in names.values():
        if {*found} != {*skeleton.keypoint_names}:
            raise ValueError(
                f"expected the {skeleton.num_keypoints} keypoints of {skeleton.name}, found {len(found)}: {list(found)}"
            )
    return {category: [found.index(name) for name in skeleton.keypoint_names] for category, found in names.items()}


def _why_skipped(
    annotation: dict[str, Any], reference: Reference, persons: Mapping[int, Any], *, are_labelled: bool
) -> str | None:
    if annotation["category_id"] not in persons:
        return "other_category"
    if annotation.get("iscrowd"):
        return "crowd"
    if reference.is_labelled:
        return None
    return "unlabelled" if are_labelled else "no_box" if reference.box is None else None


def _reference(
    annotation: dict[str, Any], image: dict[str, Any], images: Location, places: dict[int, list[int]]
) -> Reference:
    name, file_name = f"annotation {annotation['id']}", image["file_name"]
    order = places.get(annotation["category_id"], next(iter(places.values())))
    table = _keypoints(annotation.get("keypoints"), name, len(order))[order]
    return Reference(
        sample_id=f"coco-{os.path.splitext(file_name)[0]}-{annotation['id']}",
        image=images.join(*file_name.split("/")),
        group=file_name,
        size=_size(image),
        box=_box(annotation.get("bbox"), name),
        keypoints=table[:, :2],
        visibility=table[:, 2].astype(np.uint8),
    )


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height as the file has them; None where it has none."""
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if width and height else None


def _keypoints(values: Any, name: str, num_keypoints: int) -> _Table:
    """In the file's order; a person without the key has none that is labelled, nor has a place that is no number."""
    if not values:
        values = [0] * (3 * num_keypoints)
    if not isinstance(values, list) or len(values) != 3 * num_keypoints:
        found = len(values) if isinstance(values, list) else repr(values)
        raise ValueError(f"{name}: keypoints: expected {3 * num_keypoints} numbers, found {found}")
    table = np.array(values, np.float64).reshape(-1, 3)
    if not np.isin(table[:, 2], (0, 1, 2)).all():
        raise ValueError(f"{name}: visibility: expected 0, 1 or 2, found {table[:, 2].tolist()}")
    table[~np.isfinite(table).all(axis=1), 2] = 0
    return table


def _box(values: Any, name: str) -> Corners | None:
    """None, so that the keypoints' box is taken, where there is none or it has no area."""
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"{name}: bbox: expected x, y, width and height, found {values!r}")
    x, y, width, height = map(float, values)
    if not (width > 0 and height > 0 and all(map(math.isfinite, (x, y, width, height)))):
        return None
    return box_from_coco(x, y, width, height)
