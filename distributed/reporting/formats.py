"""Selected images in the formats of labelling tools: COCO, which CVAT and FiftyOne read too, Label Studio, and CSV.

Tools' answers come back through `distributed.reporting.labels`, which finds rows by the names that images have here.

Label Studio's own COCO export wants a RectangleLabels tag beside the KeyPointLabels, and from `model_index` the order
of the keypoints; it rounds keypoints to whole pixels, its JSON export does not.

Source: cocodataset.org, "Data format"; CVAT's documentation, "COCO Keypoints" and "Raw" label constructor; FiftyOne's
documentation, "COCODetectionDataset"; labelstud.io, "Import pre-annotated data", KeyPointLabels, RectangleLabels;
label_studio_sdk/converter/keypoints.py

# K keypoints
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from distributed.ingest.answers import name_mark
from distributed.ingest.coco_entries import box_from_coco, box_to_coco
from distributed.ingest.cvat import REJECTED as CVAT_REJECTED
from distributed.ingest.label_studio import OCCLUDED, REJECTED, VISIBILITY
from distributed.ingest.reference import Corners
from model.headers import image_format
from model.image import Bytes
from model.skeleton import Skeleton

_LONGEST = 80  # characters of an id that a name keeps
_LAST = 0.51  # from the last place in an image that is written to two decimals and read as inside, to W and H
_PERSON = "person"
_VISIBLE = 2  # of COCO
_CATEGORY = 1
_IMAGE, _BOX, _KEYPOINTS = "image", "box", "keypoints"  # names of Label Studio's tags
_POINT_PERCENT = 0.75  # width of a point as Label Studio draws it
_REASONS = ("blurred or dark", "no person", "wrong person in the box", "too small", "other")  # to reject an image
_LIKELY = 0.5  # trust under which a keypoint is more likely wrong than right
_RIGHT, _LEFT, _MIDDLE = "#ff8c28", "#46aaff", "#9aa0a6"
_COLUMNS = (
    "rank",
    "sample_id",
    "predicted_loss",
    "expected_pck",
    "group",
    "reason",
    "likely_wrong",
    "image",
    "width",
    "height",
)
_CORNERS = ("box_x0", "box_y0", "box_x1", "box_y1")
_BEGIN_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")

Cell = str | float | None


@dataclass(frozen=True, kw_only=True)
class Item:
    """A selected image. Coordinates are those of the tables (`distributed.ingest.coco_entries`)."""

    rank: int
    sample_id: str
    file_name: str  # safe, unique
    reference: str  # where a tool finds the image: below the export, or a URI
    width: int
    height: int
    box: Corners  # the whole image where the pool has none
    pose: NDArray[np.float64] | None  # (K, 3) x, y within the image, trust
    predicted_loss: float
    expected_pck: float | None
    group: str | None
    reason: str
    metadata: dict[str, str]

    @property
    def score(self) -> float | None:
        """The mean trust: the expected PCK where P(miss) is known, else the mean peak."""
        return None if self.pose is None else float(self.pose[:, 2].mean())


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The input of all formats."""

    items: list[Item]  # by rank
    skeleton: Skeleton
    bundle_id: str
    knows_misses: bool = False  # trust is 1 - P(miss), not a heatmap's peak

    def likely_wrong(self, item: Item) -> list[str]:
        """Names of the keypoints that are more likely wrong than right, the worst first; none where nobody knows."""
        if not self.knows_misses or item.pose is None:
            return []
        trust = item.pose[:, 2]
        return [self.skeleton.keypoint_names[index] for index in np.argsort(trust) if trust[index] < _LIKELY]


def safe_name(sample_id: str, image: Bytes) -> str:
    """A file name for an image that says which it is, and is another for each id, on any file system.

    Letters, digits, dots, hyphens and underscores stay; a hash keeps apart what the rest of the id did, letters that
    differ in case only among it.
    """
    words = re.sub(r"[^A-Za-z0-9._-]+", "_", sample_id).strip("._-")[:_LONGEST]
    suffix = image_format(memoryview(image).cast("B")) or "jpg"
    return f"{words or 'image'}-{name_mark(sample_id)}.{suffix}"


def ranked_name(name: str, *, rank: int, last: int) -> str:
    """The name with the rank before it, in as many digits as the last rank: tools that sort by name keep the order."""
    return f"{rank:0{max(4, len(str(last)))}d}-{name}"


def box_or_all(box: NDArray[np.floating] | None, *, width: int, height: int) -> Corners:
    """The box; the whole image where there is none."""
    if box is None:
        return box_from_coco(0, 0, width, height)
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def within(pose: NDArray[np.floating] | None, *, width: int, height: int) -> NDArray[np.float64] | None:
    """The pose with its points moved to the border where they lie outside; None if one is no number.

    The border is where COCO's numbers begin, 0, and the last hundredth that `ingest` takes for inside, W - 0.51.
    """
    if pose is None or not np.isfinite(pose).all():
        return None
    moved: NDArray[np.float64] = np.clip(np.asarray(pose, np.float64), 0.0, [width - _LAST, height - _LAST, 1.0])
    return moved


def _about(item: Item) -> dict[str, Any]:
    """The fields that every export has of an image beside its pose; JSON values."""
    return {
        "sample_id": item.sample_id,
        "rank": item.rank,
        "predicted_loss": item.predicted_loss,
        "expected_pck": item.expected_pck,
        "group": item.group,
        "reason": item.reason,
        "metadata": item.metadata,
    }


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"


# COCO


def coco_json(exported: Exported, tool: Literal["coco", "cvat", "fiftyone"] = "coco") -> bytes:
    """The annotation file: an image and a person for each item, the pose as predicted.

    Keypoints are marked visible: whoever labels moves them, or says that they are not. Beside what COCO names, persons
    have `score`, `keypoint_scores` and `likely_wrong` (names of keypoints), and images have `sample_id`,
    `rank`, `predicted_loss`, `expected_pck`, `group`,
    `reason`, `metadata`. FiftyOne has these of persons, so there each item has one, with a pose or without:
    `fiftyone.Dataset.from_dir(OUT, dataset_type=fiftyone.types.COCODetectionDataset,
    label_types=["detections", "keypoints"], extra_attrs=True)`. CVAT gets nothing beyond what it reads.
    """
    skeleton, items = exported.skeleton, exported.items
    info = {"description": f"lossight selection{': predicted poses to correct' if tool == 'coco' else ''}"}
    category = {
        "id": _CATEGORY,
        "name": _PERSON,
        "supercategory": _PERSON,
        "keypoints": list(skeleton.keypoint_names),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
    }
    return _dump(
        {
            "info": info if tool == "cvat" else {**info, "bundle_id": exported.bundle_id},
            "licenses": [],
            "categories": [category],
            "images": [
                {"id": item.rank, "file_name": item.reference, "width": item.width, "height": item.height}
                | (_about(item) if tool == "coco" else {})
                for item in items
            ],
            "annotations": [
                _person(item)
                | ({} if tool == "cvat" else {**_scores(item), "likely_wrong": exported.likely_wrong(item)})
                | (_about(item) if tool == "fiftyone" else {})
                for item in items
                if tool == "fiftyone" or item.pose is not None
            ],
        }
    )


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
    trust = [] if item.pose is None else item.pose[:, 2].round(4).tolist()
    return {"score": None if item.score is None else round(item.score, 4), "keypoint_scores": trust}


def cvat_labels(skeleton: Skeleton) -> bytes:
    """The labels for the "Raw" tab of CVAT's label constructor, which a task needs before the import.

    They are the person with its skeleton, and a tag with which an image is rejected.
    """
    # On a circle in a canvas of 100 × 100: the order of keypoints says nothing of a body's shape.
    angles = [2 * math.pi * index / skeleton.num_keypoints for index in range(skeleton.num_keypoints)]
    places = [(round(50 + 40 * math.sin(angle), 2), round(50 - 40 * math.cos(angle), 2)) for angle in angles]
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
        "name": _PERSON,
        "type": "skeleton",
        "attributes": [],
        "sublabels": [{"name": name, "type": "points", "attributes": []} for name in skeleton.keypoint_names],
        "svg": "".join([*limbs, *nodes]),
    }
    reason = {"name": "reason", "mutable": False, "input_type": "select", "default_value": "other", "values": _REASONS}
    return _dump([label, {"name": CVAT_REJECTED, "type": "tag", "attributes": [reason]}])


# Label Studio: places are percent of the image


def tasks_json(exported: Exported) -> bytes:
    """A task for each item; the data manager of Label Studio shows and filters by what is in `data`.

    Each has its person's box as a prediction, with a pose or without, so that one knows who is meant. `hint` is shown
    above the image.
    """
    return _dump(
        [
            {
                "data": {
                    "image": item.reference,
                    **_about(item),
                    "likely_wrong": exported.likely_wrong(item),
                    "hint": _hint(item, exported),
                },
                "predictions": [_prediction(item, exported)],
            }
            for item in exported.items
        ]
    )


def _hint(item: Item, exported: Exported) -> str:
    likely = exported.likely_wrong(item)
    return f"rank {item.rank}: the person in the box{'; likely wrong: ' if likely else ''}{', '.join(likely)}"


def _prediction(item: Item, exported: Exported) -> dict[str, Any]:
    on_image = {
        "to_name": _IMAGE,
        "original_width": item.width,
        "original_height": item.height,
        "image_rotation": 0,
    }
    x, y, width, height = box_to_coco(item.box)
    left, top = max(0.0, x / item.width), max(0.0, y / item.height)
    right, bottom = min(1.0, (x + width) / item.width), min(1.0, (y + height) / item.height)
    box = {
        "x": _percent(left),
        "y": _percent(top),
        "width": _percent(max(0.0, right - left)),
        "height": _percent(max(0.0, bottom - top)),
        "rotation": 0,
        "rectanglelabels": [_PERSON],
    }
    pose = [] if item.pose is None else item.pose.tolist()
    points = [
        {
            "id": f"{item.rank}-{index}",
            "type": "keypointlabels",
            "from_name": _KEYPOINTS,
            **on_image,
            "score": round(trust, 4),
            "value": {
                "x": _percent(x / item.width),
                "y": _percent(y / item.height),
                "width": _POINT_PERCENT,
                "keypointlabels": [name],
            },
        }
        for index, (name, (x, y, trust)) in enumerate(zip(exported.skeleton.keypoint_names, pose, strict=bool(pose)))
    ]
    return {
        "model_version": exported.bundle_id,
        "score": round(item.score or 0.0, 4),
        "result": [
            {"id": f"{item.rank}-box", "type": "rectanglelabels", "from_name": _BOX, **on_image, "value": box},
            *points,
        ],
    }


def config_xml(skeleton: Skeleton) -> bytes:
    """The labelling configuration: the image, a box and one label for each keypoint, sides by colour.

    A keypoint that is selected can be marked as occluded, and an image rejected with a reason.
    """
    labels = [
        f'    <Label value={quoteattr(name)} model_index="{index}" background={quoteattr(_colour(skeleton, index))}/>'
        for index, name in enumerate(skeleton.keypoint_names)
    ]
    lines = [
        "<View>",
        '  <Header value="$hint" size="5"/>',
        f'  <Image name="{_IMAGE}" value="$image" zoom="true" zoomControl="true"/>',
        f'  <RectangleLabels name="{_BOX}" toName="{_IMAGE}">',
        f'    <Label value="{_PERSON}" background="{_MIDDLE}"/>',
        "  </RectangleLabels>",
        f'  <KeyPointLabels name="{_KEYPOINTS}" toName="{_IMAGE}" strokeWidth="2">',
        *labels,
        "  </KeyPointLabels>",
        f'  <Choices name="{VISIBILITY}" toName="{_IMAGE}" perRegion="true" whenTagName="{_KEYPOINTS}" '
        'choice="multiple" showInline="true">',
        f'    <Choice value="{OCCLUDED}"/>',
        "  </Choices>",
        '  <Header value="Can this image not be labelled?" size="6"/>',
        f'  <Choices name="{REJECTED}" toName="{_IMAGE}" choice="single" showInline="true">',
        *(f"    <Choice value={quoteattr(reason)}/>" for reason in _REASONS),
        "  </Choices>",
        "</View>",
    ]
    return "\n".join([*lines, ""]).encode()


def _percent(share: float) -> float:
    return round(share * 100, 6)


def _colour(skeleton: Skeleton, index: int) -> str:
    if index in {right for right, _ in skeleton.flip_pairs}:
        return _RIGHT
    return _LEFT if index in {left for _, left in skeleton.flip_pairs} else _MIDDLE


# CSV


def selection_csv(exported: Exported) -> bytes:
    """A row for each item: what the selection says, where the image is, its box, metadata, and the predicted pose."""
    metadata = sorted({name for item in exported.items for name in item.metadata})
    points = [f"{name}_{part}" for name in exported.skeleton.keypoint_names for part in ("x", "y", "peak")]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow([defused(name) for name in (*_COLUMNS, *_CORNERS, *metadata, *points)])
    for item in exported.items:
        cells: list[Cell] = [item.rank, item.sample_id, item.predicted_loss, item.expected_pck, item.group, item.reason]
        cells += [
            ", ".join(exported.likely_wrong(item)),
            item.reference,
            item.width,
            item.height,
            *(round(value, 2) for value in item.box),
        ]
        cells += [item.metadata.get(name) for name in metadata]
        cells += [None] * len(points) if item.pose is None else [round(float(value), 3) for value in item.pose.ravel()]
        writer.writerow([defused(cell) for cell in cells])
    return text.getvalue().encode()


def _seen(text: str) -> str:
    """The text as a spreadsheet takes it: wide characters are narrow, blanks and marks before it nothing."""
    return unicodedata.normalize("NFKC", text).lstrip(" \ufeff\u200b")


def defused(cell: Cell) -> Cell:
    """The cell; a text that a spreadsheet would take for a formula with an apostrophe before it. Numbers stay."""
    return f"'{cell}" if isinstance(cell, str) and _seen(cell).startswith(_BEGIN_FORMULAS) else cell
