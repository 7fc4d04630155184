"""Label Studio: tasks with boxes and predicted keypoints, and the labelling configuration that they belong to.

Places are percent of the image. Its own COCO export wants a RectangleLabels tag beside the KeyPointLabels, and from
`model_index` the order of the keypoints; it rounds keypoints to whole pixels, its JSON export does not.

Source: labelstud.io, "Import pre-annotated data", KeyPointLabels, RectangleLabels;
label_studio_sdk/converter/keypoints.py
"""

from __future__ import annotations

import json
from typing import Any
from xml.sax.saxutils import quoteattr

from distributed.reporting.items import Exported, Item, about, relative_box, relative_points
from model.skeleton import Skeleton

_IMAGE, _BOX, _KEYPOINTS = "image", "box", "keypoints"  # names of the tags
_PERSON = "person"
_POINT_PERCENT = 0.75  # width of a point as it is drawn
_RIGHT, _LEFT, _MIDDLE = "#ff8c28", "#46aaff", "#9aa0a6"


def tasks_json(exported: Exported) -> bytes:
    """A task for each item; the data manager of Label Studio shows and filters by what is in `data`."""
    names = exported.skeleton.keypoint_names
    tasks = [_task(item, names, exported.bundle_id) for item in exported.items]
    return json.dumps(tasks, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def config_xml(skeleton: Skeleton) -> bytes:
    """The labelling configuration: the image, a box and one label for each keypoint, sides by colour."""
    labels = [
        f'    <Label value={quoteattr(name)} model_index="{index}" background={quoteattr(_colour(skeleton, index))}/>'
        for index, name in enumerate(skeleton.keypoint_names)
    ]
    lines = [
        "<View>",
        f'  <Image name="{_IMAGE}" value="$image" zoom="true" zoomControl="true"/>',
        f'  <RectangleLabels name="{_BOX}" toName="{_IMAGE}">',
        f'    <Label value="{_PERSON}" background="{_MIDDLE}"/>',
        "  </RectangleLabels>",
        f'  <KeyPointLabels name="{_KEYPOINTS}" toName="{_IMAGE}" strokeWidth="2">',
        *labels,
        "  </KeyPointLabels>",
        "</View>",
    ]
    return "\n".join([*lines, ""]).encode()


def _task(item: Item, names: tuple[str, ...], bundle_id: str) -> dict[str, Any]:
    data = {"image": item.reference, **about(item)}
    if item.pose is None:
        return {"data": data, "predictions": []}
    prediction = {
        "model_version": bundle_id,
        "score": round(item.score or 0.0, 4),
        "result": [_box(item), *_points(item, item.pose[:, 2].tolist(), names)],
    }
    return {"data": data, "predictions": [prediction]}


def _box(item: Item) -> dict[str, Any]:
    x, y, width, height = map(_percent, relative_box(item))
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [_PERSON]}
    return {"id": f"{item.rank}-box", "type": "rectanglelabels", "from_name": _BOX, **_on_image(item), "value": value}


def _points(item: Item, peaks: list[float], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{item.rank}-{index}",
            "type": "keypointlabels",
            "from_name": _KEYPOINTS,
            **_on_image(item),
            "score": round(peak, 4),
            "value": {"x": _percent(x), "y": _percent(y), "width": _POINT_PERCENT, "keypointlabels": [name]},
        }
        for index, (name, (x, y), peak) in enumerate(zip(names, relative_points(item), peaks, strict=True))
    ]


def _on_image(item: Item) -> dict[str, Any]:
    return {
        "to_name": _IMAGE,
        "original_width": item.width,
        "original_height": item.height,
        "image_rotation": 0,
    }


def _percent(share: float) -> float:
    return round(share * 100, 6)


def _colour(skeleton: Skeleton, index: int) -> str:
    if index in {right for right, _ in skeleton.flip_pairs}:
        return _RIGHT
    return _LEFT if index in {left for _, left in skeleton.flip_pairs} else _MIDDLE
