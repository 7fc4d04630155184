"""Label Studio: tasks with predicted keypoints, and the labelling configuration that they belong to.

Source: labelstud.io, "Import pre-annotated data" and the KeyPointLabels tag: places are percent of the image.
"""

from __future__ import annotations

import json
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from distributed.reporting.items import Exported, Item, about
from model.skeleton import Skeleton

_FROM, _TO = "keypoints", "image"  # names of the tags
_POINT_PERCENT = 0.75  # width of a point as it is drawn
_RIGHT, _LEFT, _MIDDLE = "#ff8c28", "#46aaff", "#9aa0a6"


def tasks_json(exported: Exported) -> bytes:
    """A task for each item; the data manager of Label Studio shows and filters by what is in `data`."""
    names = exported.skeleton.keypoint_names
    tasks = [_task(item, names, exported.bundle_id) for item in exported.items]
    return json.dumps(tasks, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def config_xml(skeleton: Skeleton) -> bytes:
    """The labelling configuration: the image and one label for each keypoint, sides by colour."""
    labels = [
        f"    <Label value={quoteattr(name)} background={quoteattr(_colour(skeleton, index))}/>"
        for index, name in enumerate(skeleton.keypoint_names)
    ]
    lines = [
        "<View>",
        f'  <Image name="{_TO}" value="$image" zoom="true" zoomControl="true"/>',
        f'  <KeyPointLabels name="{_FROM}" toName="{_TO}" strokeWidth="2">',
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
        "result": _points(item, item.pose, names),
    }
    return {"data": data, "predictions": [prediction]}


def _points(item: Item, pose: NDArray[np.float64], names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{item.rank}-{index}",
            "type": "keypointlabels",
            "from_name": _FROM,
            "to_name": _TO,
            "original_width": item.width,
            "original_height": item.height,
            "image_rotation": 0,
            "score": round(float(peak), 4),
            "value": {
                # From the image's corner, not from the middle of its first pixel.
                "x": round((float(x) + 0.5) / item.width * 100, 4),
                "y": round((float(y) + 0.5) / item.height * 100, 4),
                "width": _POINT_PERCENT,
                "keypointlabels": [name],
            },
        }
        for index, (name, (x, y, peak)) in enumerate(zip(names, pose, strict=True))
    ]


def _colour(skeleton: Skeleton, index: int) -> str:
    if index in {right for right, _ in skeleton.flip_pairs}:
        return _RIGHT
    return _LEFT if index in {left for _, left in skeleton.flip_pairs} else _MIDDLE
