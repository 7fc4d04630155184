"""COCO's persons and boxes, a row each: as published, as a detector lists them, or as a labelling tool exports them.

Source: https://cocodataset.org/#format-data, #format-results
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from distributed.ingest.answers import Answer, Point, ToolExport, fingerprint_of, read_documents
from distributed.ingest.coco_entries import faults_named, load_json, read_box, read_keypoints, read_size
from distributed.ingest.detections import find_detections
from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Found, Reference
from distributed.storage.location import Location, locate, read_bytes
from model.errors import InputError
from model.skeleton import Skeleton, skeleton_of_names

_WHOLE_PX = 0.5  # error of a coordinate that was rounded to whole pixels
_LABEL_STUDIO = "Label Studio"  # as its exports name their contributor
_LOSSY = (
    "Label Studio's COCO export rounds keypoints to whole pixels, and does not say which are occluded or which images "
    "were rejected: a pose that was left on a rejected image counts like any other; its JSON export tells"
)
_PERSON = "person"  # the category of boxes without keypoints


def find_coco(options: IngestOptions) -> Found:
    """Every person with a box of its own, in the order of the images and of their annotations' ids.

    Left out and counted: `crowd` (one box around many), `other_category`, and persons without a labelled keypoint:
    `unlabelled` where labels are wanted, `no_box` where there is no box either. The group is the image's name, since
    persons of one image share most of its pixels. For a pool the annotations may be boxes alone: instances, or the
    results of a detector.

    Raises:
        InputError: the annotations are no such JSON: names the entry, what was expected and what was found.
    """
    images, annotations = locate(options.source), locate(options.annotations or "")
    data, are_labelled = read_bytes(annotations), options.as_ == "labelled"
    content = load_json(data, where=annotations.uri)
    if isinstance(content, list):
        return find_detections(content, data, options)
    for name in ("images", "min_box_score"):
        if getattr(options, name) is not None:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag}: expected the results of a detector beside it, found {annotations.uri}")
    parsed = _lists(content, where=annotations.uri)
    skipped: Counter[str] = Counter()
    references = []
    with faults_named(annotations.uri):
        order = {image["id"]: (place, image["file_name"], image) for place, image in enumerate(parsed["images"])}
        are_boxes = not are_labelled and options.skeleton is None
        names = (are_boxes and _persons(parsed["categories"])) or _names_by_category(parsed["categories"])
        skeleton = _chosen_skeleton(options.skeleton, parsed["categories"], names)
        places = _check_names(names, skeleton) if skeleton else {category: [] for category in names}
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
        parsed = _lists(load_json(data, where=uri), where=uri)
        with faults_named(uri):
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
                size=read_size(image),
                points=points,
            )
        )
    return found


def _named_points(annotation: dict[str, Any], by_category: dict[int, tuple[str, ...]]) -> list[tuple[str, Point]]:
    """The labelled keypoints."""
    names = by_category[annotation["category_id"]]
    table = read_keypoints(annotation.get("keypoints"), f"annotation {annotation.get('id')}", len(names))
    return [
        (name, Point(x, y, int(visibility)))
        for name, (x, y, visibility) in zip(names, table.tolist(), strict=True)
        if visibility
    ]


def _lists(content: Any, *, where: str) -> dict[str, Any]:
    keys = {"images", "annotations", "categories"}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        found = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{where}: expected the lists {sorted(keys)}, found {found}")
    return content


def _names_by_category(categories: list[dict[str, Any]]) -> dict[int, tuple[str, ...]]:
    """Names of the keypoints, by the id of the category that has them."""
    found = {each["id"]: tuple(each["keypoints"]) for each in categories if each.get("keypoints")}
    if not found:
        raise ValueError("expected a category with keypoints, found none: boxes alone make a pool (--as pool)")
    for names in found.values():
        if len({*names}) < len(names) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected each keypoint by a name of its own, found {list(names)}")
        if {*names} != {*next(iter(found.values()))}:
            raise ValueError("expected one skeleton, found categories with different keypoints")
    return found


def _persons(categories: list[dict[str, Any]]) -> dict[int, tuple[str, ...]]:
    """The categories of persons of a file that has boxes alone, without names of keypoints; none of another file."""
    if any(each.get("keypoints") for each in categories):
        return {}
    found = [each["id"] for each in categories if each["name"] == _PERSON or len(categories) == 1]
    if not found:
        raise ValueError(f"expected a category {_PERSON!r}, found {[each['name'] for each in categories][:8]}")
    return dict.fromkeys(found, ())


def _chosen_skeleton(
    named: str | None, categories: list[dict[str, Any]], names: dict[int, tuple[str, ...]]
) -> Skeleton | None:
    """The skeleton that was asked for, or the file's; None where it has boxes alone."""
    if named is None:
        return _skeleton(categories, names) if any(names.values()) else None
    from distributed.tables.labelled import named_skeleton  # PyTorch takes seconds

    return named_skeleton(named)


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
    """Places in the file of the skeleton's keypoints, by category."""
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
    table = read_keypoints(annotation.get("keypoints") if order else None, name, len(order))[order]
    return Reference(
        sample_id=f"coco-{os.path.splitext(file_name)[0]}-{annotation['id']}",
        image=images.join(*file_name.split("/")),
        group=file_name,
        size=read_size(image),
        box=read_box(annotation.get("bbox"), name),
        keypoints=table[:, :2],
        visibility=table[:, 2].astype(np.uint8),
    )
