"""Coordinates that go in as COCO come back from every export as they went, to 0.01 px, and stay so for ten rounds."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.ingest.coco_entries import box_from_coco, box_to_coco
from distributed.ingest.ingest import ingest
from distributed.ingest.options import IngestOptions
from distributed.reporting.formats import Exported, Item, box_or_all, coco_json, tasks_json, within
from model.skeleton import COCO

TOLERANCE_PX = 0.01


class Person(NamedTuple):
    """A person in COCO's numbers: x, y, width, height from the corner; (K, 2) from the centre of the first pixel."""

    box: list[float]
    points: list[list[float]]


class Source(NamedTuple):
    width: int
    height: int
    persons: list[Person]


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """An image of at most 500 × 500 px with one to three persons in it."""
    width, height = draw(st.integers(8, 500)), draw(st.integers(8, 500))

    def place(low: float, high: float) -> float:
        return draw(st.integers(0, 100).map(lambda share: low + (high - low) * share / 100) | st.floats(low, high))

    def person() -> Person:
        x, y = place(0, width - 2), place(0, height - 2)
        box = [x, y, place(1, width - x), place(1, height - y)]
        return Person(box, [[place(0, width - 0.51), place(0, height - 0.51)] for _ in range(COCO.num_keypoints)])

    return Source(width, height, [person() for _ in range(draw(st.integers(1, 3)))])


def read_back(source: Source) -> Exported:
    """The source, ingested, as an export holds it whose predictions are the labels."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        pixels = np.zeros((source.height, source.width, 3), np.uint8)
        (folder / "images" / "a.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
        annotations = [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "bbox": person.box,
                "keypoints": [value for x, y in person.points for value in (x, y, 2)],
            }
            for number, person in enumerate(source.persons, start=1)
        ]
        content = {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names)}],
        }
        (folder / "persons.json").write_text(json.dumps(content))
        places = {"source": str(folder / "images"), "annotations": str(folder / "persons.json")}
        ingest(IngestOptions.model_validate({"kind": "coco", **places, "out": str(folder / "out"), "as": "labelled"}))
        (table,) = (folder / "out").glob("*.parquet")
        rows = pq.read_table(table).to_pylist()
    items = [_item(number, row, source) for number, row in enumerate(rows, start=1)]
    return Exported(items=items, skeleton=COCO, bundle_id="b")


def _item(rank: int, row: dict[str, Any], source: Source) -> Item:
    size = {"width": source.width, "height": source.height}
    pose = np.concatenate([np.reshape(row["keypoints"], (-1, 2)), np.ones((COCO.num_keypoints, 1))], axis=1)
    assert all(row["visibility"])
    return Item(
        rank=rank,
        sample_id=row["sample_id"],
        file_name=f"{rank}.jpg",
        reference=f"images/{rank}.jpg",
        **size,
        box=box_or_all(np.float32(row["box"]), **size),
        pose=within(pose, **size),
        predicted_loss=0.0,
        expected_pck=None,
        group=None,
        reason="loss",
        metadata={},
    )


def from_coco(data: bytes) -> list[Person]:
    people = json.loads(data)["annotations"]
    return [Person(each["bbox"], np.reshape(each["keypoints"], (-1, 3))[:, :2].tolist()) for each in people]


def from_label_studio(exported: Exported) -> list[Person]:
    """Persons as Label Studio's COCO converter computes them: percent / 100 × side (it rounds keypoints to pixels)."""
    persons = []
    for task in json.loads(tasks_json(exported)):
        box, *points = task["predictions"][0]["result"]
        width, height = box["original_width"] / 100, box["original_height"] / 100
        x, y, w, h = (box["value"][name] for name in ("x", "y", "width", "height"))
        places = [[point["value"]["x"] * width, point["value"]["y"] * height] for point in points]
        persons.append(Person([x * width, y * height, w * width, h * height], places))
    return persons


FORMATS = {
    "coco": lambda exported: from_coco(coco_json(exported)),
    "cvat": lambda exported: from_coco(coco_json(exported, "cvat")),
    "label-studio": from_label_studio,
    "fiftyone": lambda exported: from_coco(coco_json(exported, "fiftyone")),
}


def assert_same(found: list[Person], source: Source) -> None:
    for ours, theirs in zip(found, source.persons, strict=True):
        np.testing.assert_allclose(ours.box, theirs.box, rtol=0, atol=TOLERANCE_PX)
        np.testing.assert_allclose(ours.points, theirs.points, rtol=0, atol=TOLERANCE_PX)


@given(source=sources())
def test_every_format_gives_back_what_was_ingested(source: Source) -> None:
    exported = read_back(source)
    for read in FORMATS.values():
        assert_same(read(exported), source)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=2)
@given(source=sources())
def test_ten_rounds_change_nothing(kind: str, source: Source) -> None:
    last = source
    for _ in range(10):
        last = source._replace(persons=FORMATS[kind](read_back(last)))
    assert_same(last.persons, source)


def test_a_box_of_coco_by_hand() -> None:
    """Two by two pixels at the image's corner: from half a pixel before the first's centre to half after the next's."""
    assert box_from_coco(0, 0, 2, 2) == (-0.5, -0.5, 1.5, 1.5)
    assert box_to_coco((-0.5, -0.5, 1.5, 1.5)) == (0, 0, 2, 2)
    assert box_to_coco(box_or_all(None, width=7, height=5)) == (0, 0, 7, 5)
