"""CVAT's exports: "CVAT for images 1.1" (annotations.xml), and "COCO Keypoints 1.0" (a zip of COCO's JSON).

The XML says more: what was rejected, by a tag of that name, and coordinates to two decimals. Neither tells a corrected
skeleton from a predicted one that nobody touched.

Source: docs.cvat.ai, "CVAT for image" and "COCO Keypoints"
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from distributed.ingest.answers import Answer, Point, ToolExport, fingerprint_of, read_documents
from distributed.ingest.coco import read_coco_documents
from distributed.storage.location import Location
from model.errors import InputError

REJECTED = "rejected"  # the label of a tag; its attribute `reason` says why
_VERSION = "1.1"  # of the XML
_ROUNDING_PX = 0.005  # the XML has two decimals


def read_cvat(place: Location) -> ToolExport:
    """The answers of an export: an XML or JSON file, or a zip with them.

    Raises:
        InputError: it is none: says what was expected and found.
    """
    documents = read_documents(place, suffixes=(".xml", ".json"))
    as_xml = {uri: data for uri, data in documents.items() if data.lstrip()[:1] == b"<"}
    if not as_xml:
        return read_coco_documents(documents)
    answers: list[Answer] = []
    notes: dict[str, None] = {}
    names: dict[str, None] = {}
    for uri, data in as_xml.items():
        root = _parse(data, uri)
        version = root.findtext("version") or "none"
        if version != _VERSION:
            notes[f"tried version {version} of CVAT's XML, which is not known: version {_VERSION} is"] = None
        for label in root.iter("label"):
            if label.findtext("type") == "points" and label.findtext("parent"):
                names[label.findtext("name") or ""] = None
        try:
            answers += [_answer(image) for image in root.findall("image")]
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{uri}: expected CVAT's images, found one that fails with {type(error).__name__}: {error}"
            ) from error
    lists_all = bool(names)
    names.update(dict.fromkeys(name for answer in answers for name in answer.points))
    return ToolExport(
        answers=answers,
        names=tuple(names),
        lists_all=lists_all,
        rounding_px=_ROUNDING_PX,
        notes=tuple(notes),
        fingerprint=fingerprint_of(as_xml.values()),
    )


def _parse(data: bytes, uri: str) -> ET.Element:
    try:
        root = ET.fromstring(data)  # noqa: S314 - expat limits how far entities may grow
    except ET.ParseError as error:
        raise InputError(f"{uri}: expected CVAT's XML, found {data[:40]!r}: {error}") from error
    if root.tag != "annotations":
        raise InputError(f"{uri}: expected <annotations>, found <{root.tag}>")
    if root.find("track") is not None:
        raise InputError(f"{uri}: expected 'CVAT for images 1.1', found tracks: export in that format")
    return root


def _answer(image: ET.Element) -> Answer:
    about: dict[str, Any] = {
        "entry": f"image {image.get('id')}",
        "image": image.attrib["name"],
        "size": (int(image.attrib["width"]), int(image.attrib["height"])),
    }
    for tag in image.findall("tag"):
        if tag.get("label") == REJECTED:
            reasons = [each.text.strip() for each in tag.findall("attribute") if each.text and each.text.strip()]
            return Answer(**about, verdict="rejected", why=", ".join(reasons) or None)
    skeletons = image.findall("skeleton")
    if len(skeletons) > 1:
        return Answer(**about, verdict="unclear", why=f"{len(skeletons)} skeletons in it")
    points = dict(_points(skeletons[0])) if skeletons else {}
    return Answer(**about, points=points, verdict="pose" if points else "unanswered")


def _points(skeleton: ET.Element) -> Iterator[tuple[str, Point]]:
    for element in skeleton.findall("points"):
        if element.get("outside") == "1":
            continue
        x, y = map(float, element.attrib["points"].split(";")[0].split(","))
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"a keypoint at {x}, {y}")
        yield element.attrib["label"], Point(x, y, 1 if element.get("occluded") == "1" else 2)
