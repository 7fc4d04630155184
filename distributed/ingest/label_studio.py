"""Label Studio's JSON export: a list of tasks, each with its annotations, drafts and predictions.

Places are percent of the image's sides. An annotation counts even where it equals the prediction, for a person has
submitted it, unless the server made it out of the prediction, for many tasks at once. Drafts and predictions don't
count. Two choices of our labelling configuration are read: `rejected`, of the
image, and `visibility`, of a keypoint.

Source: labelstud.io, "Export annotations", "Label Studio JSON format of annotated tasks"
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from distributed.ingest.answers import Answer, Point, ToolExport, Verdict, fingerprint_of, read_documents
from distributed.storage.location import Location
from model.errors import InputError
from model.json_text import parse_json

REJECTED, VISIBILITY, OCCLUDED = "rejected", "visibility", "occluded"
_OURS = {"keypointlabels", "rectanglelabels", "choices", "textarea"}  # types of regions that we know, or pass over

_Task = dict[str, Any]


def read_label_studio(place: Location) -> ToolExport:
    """The answers of a JSON export, or of a zip with one.

    Raises:
        InputError: it is none: says what was expected and found.
    """
    documents = read_documents(place, suffixes=(".json",))
    answers: list[Answer] = []
    others: Counter[str] = Counter()
    for uri, data in documents.items():
        try:
            for task in _tasks(data, uri):
                answers += _answers(task, others)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{uri}: expected tasks of Label Studio's JSON export, found one that fails with "
                f"{type(error).__name__}: {error}"
            ) from error
    names = dict.fromkeys(name for answer in answers for name in answer.points)
    notes = tuple(f"passed over {count} regions of the type {name!r}" for name, count in sorted(others.items()))
    return ToolExport(answers=answers, names=tuple(names), notes=notes, fingerprint=fingerprint_of(documents.values()))


def _tasks(data: bytes, uri: str) -> list[_Task]:
    try:
        tasks = parse_json(data)
    except ValueError as error:
        raise InputError(f"{uri}: expected Label Studio's JSON, found {data[:40]!r}") from error
    if isinstance(tasks, dict) and "images" in tasks:
        raise InputError(
            f"{uri}: expected Label Studio's JSON export, found COCO: use `ingest coco`, or export as JSON"
        )
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise InputError(f"{uri}: expected a list of tasks, found {type(tasks).__name__}")
    if any("data" not in task for task in tasks):
        raise InputError(f"{uri}: expected tasks with their data, found some without (JSON-MIN): export as JSON")
    return tasks


def _answers(task: _Task, others: Counter[str]) -> list[Answer]:
    data, entry = task["data"], f"task {task.get('id')}"
    image = data.get("image") or next((value for value in data.values() if _is_place(value)), "")
    sample_id = data.get("sample_id")
    about: dict[str, Any] = {
        "entry": entry,
        "image": str(image),
        "sample_id": sample_id if isinstance(sample_id, str) else None,
    }
    found = [_answer(each, about, others) for each in task.get("annotations") or ()]
    if found:
        return found
    return [Answer(**about, verdict="draft" if task.get("drafts") else "unanswered")]


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


def _answer(annotation: dict[str, Any], about: dict[str, Any], others: Counter[str]) -> Answer:
    results = annotation.get("result") or []
    others.update(each["type"] for each in results if each.get("type", "relation") not in {*_OURS, "relation"})
    rejection = _choices(results, REJECTED)
    reviews = annotation.get("reviews") or []
    points, double = _points(results)
    verdict: Verdict = "pose"
    why: str | None = None
    if annotation.get("was_cancelled"):
        verdict = "skipped"
    elif rejection:
        verdict, why = "rejected", ", ".join(rejection)
    elif annotation.get("last_action") == "rejected" or (reviews and reviews[-1].get("accepted") is False):
        verdict, why = "rejected", "in review"
    elif any(each.get("image_rotation") for each in results):
        verdict, why = "unclear", "the image was turned in the tool"
    elif double:
        verdict, why = "unclear", f"{double} was placed twice"
    elif not points:
        verdict = "unanswered"
    by, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    return Answer(
        **about,
        verdict=verdict,
        why=why,
        size=next(
            ((each["original_width"], each["original_height"]) for each in results if "original_width" in each), None
        ),
        points=points,
        # "Create Annotations From Predictions" names the prediction, and no time: nobody had it open.
        is_submitted=seconds is not None or annotation.get("parent_prediction") is None,
        annotator=str(by.get("email") or by.get("id")) if isinstance(by, dict) else None if by is None else str(by),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        at=str(annotation.get("updated_at") or annotation.get("created_at") or ""),
    )


def _choices(results: list[dict[str, Any]], name: str) -> list[str]:
    return [choice for each in results if each.get("from_name") == name for choice in each["value"].get("choices", ())]


def _points(results: list[dict[str, Any]]) -> tuple[dict[str, Point], str | None]:
    """The keypoints by name, and one that was placed twice."""
    occluded = {
        each["id"]
        for each in results
        if each.get("from_name") == VISIBILITY and OCCLUDED in each["value"].get("choices", ())
    }
    points: dict[str, Point] = {}
    double = None
    for each in results:
        if each.get("type") != "keypointlabels":
            continue
        value = each["value"]
        x, y = value["x"] / 100 * each["original_width"], value["y"] / 100 * each["original_height"]
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"a keypoint at {x}, {y}")
        for name in value.get("keypointlabels") or ():
            double = name if name in points else double
            points[name] = Point(x, y, 1 if each["id"] in occluded else 2)
    return points, double
