"""COCO keypoints, and the layouts in which CVAT and FiftyOne import them.

Source: cocodataset.org, "Data format"; CVAT's documentation, "COCO Keypoints" and "Raw" label constructor; FiftyOne's
documentation, "COCODetectionDataset".
"""

from __future__ import annotations

import json
import math
from typing import Any
from xml.sax.saxutils import quoteattr

from distributed.ingest.coco import box_to_coco
from distributed.reporting.items import Exported, Item, about
from model.skeleton import Skeleton

_VISIBLE = 2
_CATEGORY = 1
FIFTYONE_IMAGES = "data"
CVAT_IMAGES = "images/default"
CVAT_ANNOTATIONS = "annotations/person_keypoints_default.json"


def coco_json(exported: Exported) -> bytes:
    """The annotation file: an image and a person for each item, the pose and its peaks as predicted.

    Keypoints are marked visible: whoever labels moves them, or says that they are not. Beside what COCO names, images
    have `sample_id`, `rank`, `predicted_loss`, `expected_pck`, `group`, `reason`, `metadata`, and persons `score` and
    `keypoint_scores`.
    """
    skeleton = exported.skeleton
    return _dump(
        {
            "info": {"description": "lossight selection: predicted poses to correct", "bundle_id": exported.bundle_id},
            "licenses": [],
            "categories": [_category(skeleton)],
            "images": [_image(item, item.reference) | about(item) for item in exported.items],
            "annotations": [_person(item) | _scores(item) for item in exported.items if item.pose is not None],
        }
    )


def fiftyone_json(exported: Exported) -> bytes:
    """The labels.json beside data/, with a person for each item, which says what the selection says of it.

    `fiftyone.Dataset.from_dir(OUT, dataset_type=fiftyone.types.COCODetectionDataset,
    label_types=["detections", "keypoints"], extra_attrs=True)` reads it.
    """
    return _dump(
        {
            "info": {"description": "lossight selection", "bundle_id": exported.bundle_id},
            "licenses": [],
            "categories": [_category(exported.skeleton)],
            "images": [_image(item, item.reference) for item in exported.items],
            "annotations": [_person(item) | _scores(item) | about(item) for item in exported.items],
        }
    )


def cvat_json(exported: Exported) -> bytes:
    """The annotation file of a CVAT import, images named as in the task; nothing beyond what CVAT reads."""
    return _dump(
        {
            "info": {"description": "lossight selection"},
            "licenses": [],
            "categories": [_category(exported.skeleton)],
            "images": [_image(item, item.reference) for item in exported.items],
            "annotations": [_person(item) for item in exported.items if item.pose is not None],
        }
    )


def cvat_labels(skeleton: Skeleton) -> bytes:
    """The label with its skeleton, for the "Raw" tab of CVAT's label constructor: a task needs it before the import."""
    places = _circle(skeleton.num_keypoints)
    limbs = [
        f'<line x1="{places[a][0]}" y1="{places[a][1]}" x2="{places[b][0]}" y2="{places[b][1]}" stroke="black" '
        f'stroke-width="0.5" data-type="edge" data-node-from="{a + 1}" data-node-to="{b + 1}"></line>'
        for a, b in skeleton.limbs
    ]
    nodes = [
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x}" cy="{y}" stroke-width="0.1" data-type="element node" '
        f'data-element-id="{number}" data-node-id="{number}" data-label-name={quoteattr(name)}></circle>'
        for number, (name, (x, y)) in enumerate(zip(skeleton.keypoint_names, places, strict=True), start=1)
    ]
    label = {
        "name": "person",
        "type": "skeleton",
        "attributes": [],
        "sublabels": [{"name": name, "type": "points", "attributes": []} for name in skeleton.keypoint_names],
        "svg": "".join([*limbs, *nodes]),
    }
    return _dump([label])


def _circle(count: int) -> list[tuple[float, float]]:
    """Places on a canvas of 100 × 100; the order of keypoints says nothing of a body's shape."""
    angles = [2 * math.pi * index / count for index in range(count)]
    return [(round(50 + 40 * math.sin(angle), 2), round(50 - 40 * math.cos(angle), 2)) for angle in angles]


def _category(skeleton: Skeleton) -> dict[str, Any]:
    return {
        "id": _CATEGORY,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(skeleton.keypoint_names),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
    }


def _image(item: Item, file_name: str) -> dict[str, Any]:
    return {"id": item.rank, "file_name": file_name, "width": item.width, "height": item.height}


def _person(item: Item) -> dict[str, Any]:
    box = box_to_coco(item.box)
    pose = [] if item.pose is None else item.pose[:, :2].round(2).tolist()
    return {
        "id": item.rank,
        "image_id": item.rank,
        "category_id": _CATEGORY,
        "bbox": [round(value, 2) for value in box],
        "area": round(box[2] * box[3], 2),
        "iscrowd": 0,
        "segmentation": [],
        "num_keypoints": len(pose),
        "keypoints": [value for x, y in pose for value in (x, y, _VISIBLE)],
    }


def _scores(item: Item) -> dict[str, Any]:
    peaks = [] if item.pose is None else item.pose[:, 2].round(4).tolist()
    return {"score": None if item.score is None else round(item.score, 4), "keypoint_scores": peaks}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
