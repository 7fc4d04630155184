"""COCO person keypoints: one row a person, from the JSON as published (`person_keypoints_*.json`).

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
from typing import Any

import numpy as np

from distributed.ingest.reference import Corners, Found, Reference
from distributed.storage.location import Location, read_bytes
from model.errors import InputError
from model.skeleton import COCO

_CORNER = 0.5  # from the image's corner to the centre of its first pixel


def box_from_coco(x: float, y: float, width: float, height: float) -> Corners:
    """The corners, in our frame, of a box that COCO writes as x, y, width, height."""
    x0, y0 = x - _CORNER, y - _CORNER
    return x0, y0, x0 + width, y0 + height


def box_to_coco(box: Corners) -> tuple[float, float, float, float]:
    """A box in our frame as COCO writes it: x, y, width, height. Undoes `box_from_coco`."""
    x0, y0, x1, y1 = box
    return x0 + _CORNER, y0 + _CORNER, x1 - x0, y1 - y0


def find_coco(images: Location, annotations: Location, *, are_labelled: bool) -> Found:
    """Every person with a box of its own, in the order of the images and of their annotations' ids.

    Left out and counted: `crowd` (one box around many), `other_category`, and persons without a labelled keypoint:
    `unlabelled` where labels are wanted, `no_box` where there is no box either. The group is the image's name, since
    persons of one image share most of its pixels.

    Args:
        images: the folder below which the images lie, under their `file_name`.
        annotations: the JSON.
        are_labelled: whether labels are wanted; a pool has persons without a keypoint too.

    Raises:
        InputError: the file is no such JSON: names the entry, what was expected and what was found.
    """
    data = read_bytes(annotations)
    parsed = _parse(data, where=annotations.uri)
    skipped: Counter[str] = Counter()
    references = []
    try:
        order = {image["id"]: (place, image["file_name"]) for place, image in enumerate(parsed["images"])}
        persons = _person_categories(parsed["categories"])
        for annotation in sorted(parsed["annotations"], key=lambda each: (order[each["image_id"]], each["id"])):
            reference = _reference(annotation, order[annotation["image_id"]][1], images)
            reason = _why_skipped(annotation, reference, persons, are_labelled=are_labelled)
            if reason:
                skipped[reason] += 1
            else:
                references.append(reference)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{annotations.uri}: expected COCO's images, annotations and categories with their keys, "
            f"found entries that fail with {type(error).__name__}: {error}"
        ) from error
    except ValueError as error:
        raise InputError(f"{annotations.uri}: {error}") from error
    return Found(
        references=references,
        skeleton=COCO,
        skipped=dict(sorted(skipped.items())),
        fingerprint=hashlib.sha256(data).hexdigest()[:16],
    )


def _parse(data: bytes, *, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise InputError(f"{where}: expected COCO's JSON, found {data[:40]!r}") from error
    keys = {"images", "annotations", "categories"}
    if not isinstance(parsed, dict) or not all(isinstance(parsed.get(key), list) for key in keys):
        found = sorted(parsed)[:8] if isinstance(parsed, dict) else type(parsed).__name__
        raise InputError(f"{where}: expected the lists {sorted(keys)}, found {found}")
    return parsed


def _person_categories(categories: list[dict[str, Any]]) -> set[int]:
    """Ids of the categories with keypoints, which must be COCO's."""
    with_keypoints = {each["id"]: each["keypoints"] for each in categories if each.get("keypoints")}
    if not with_keypoints:
        raise ValueError("expected a category with keypoints, found none (instances instead of person_keypoints?)")
    for names in with_keypoints.values():
        if tuple(names) != COCO.keypoint_names:
            raise ValueError(f"expected the {COCO.num_keypoints} keypoints of coco, found {len(names)}: {names}")
    return set(with_keypoints)


def _why_skipped(
    annotation: dict[str, Any], reference: Reference, persons: set[int], *, are_labelled: bool
) -> str | None:
    if annotation["category_id"] not in persons:
        return "other_category"
    if annotation.get("iscrowd"):
        return "crowd"
    if reference.is_labelled:
        return None
    return "unlabelled" if are_labelled else "no_box" if reference.box is None else None


def _reference(annotation: dict[str, Any], file_name: str, images: Location) -> Reference:
    name = f"annotation {annotation['id']}"
    keypoints, visibility = _keypoints(annotation.get("keypoints"), name)
    return Reference(
        sample_id=f"coco-{os.path.splitext(file_name)[0]}-{annotation['id']}",
        image=images.join(*file_name.split("/")),
        group=file_name,
        box=_box(annotation.get("bbox"), name),
        keypoints=keypoints,
        visibility=visibility,
    )


def _keypoints(values: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) and (K,); a person without the key has none that is labelled."""
    if values is None:
        values = [0] * (3 * COCO.num_keypoints)
    if not isinstance(values, list) or len(values) != 3 * COCO.num_keypoints:
        found = len(values) if isinstance(values, list) else repr(values)
        raise ValueError(f"{name}: keypoints: expected {3 * COCO.num_keypoints} numbers, found {found}")
    table = np.array(values, np.float64).reshape(-1, 3)
    if not np.isin(table[:, 2], (0, 1, 2)).all():
        raise ValueError(f"{name}: visibility: expected 0, 1 or 2, found {table[:, 2].tolist()}")
    is_number = np.isfinite(table).all(axis=1)
    return table[:, :2], np.where(is_number, table[:, 2], 0).astype(np.uint8)


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
