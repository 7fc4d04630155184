"""MPII Human Pose: one row a person, from the .mat as published or from the JSON lists that HRNet and others train on.

Both number pixels from 1. Source: Andriluka et al., "2D Human Pose Estimation: New Benchmark and State of the Art
Analysis", CVPR 2014; the README of mpii_human_pose_v1_u12_1.mat.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Corners, Found, Reference
from distributed.storage.location import Location, first_line, locate, read_bytes
from model.errors import InputError
from model.json_text import parse_json
from model.skeleton import MPII

_K = MPII.num_keypoints
_FIRST_PIXEL = 1  # MPII numbers pixels from 1, our tables from 0
# `scale` is the person's height in units of 200 px; `objpos` lies a little high, and common practice moves it down.
_HEIGHT_PX = 200.0
_LOWER_PX = 15.0  # times the scale. Source: Newell et al., ECCV 2016, their code


class _Person(NamedTuple):
    """A person as the file has it, pixels numbered from 1."""

    image: str
    keypoints: np.ndarray  # (K, 2)
    visibility: np.ndarray  # (K,)
    centre: tuple[float, float] | None
    scale: float | None


def find_mpii(options: IngestOptions) -> Found:
    """Every person, in the order of the file; persons of one image follow each other and share its name as group.

    The box is the square of the person's height around their centre, or the keypoints' where the file has no scale.
    Left out and counted: persons without a labelled keypoint, as `unlabelled` where labels are wanted (test images),
    as `no_box` where there is no box either.

    The annotations are mpii_human_pose_v1_u12_1.mat, or JSON: a list of image, joints, joints_vis, center, scale.

    Raises:
        InputError: the file is neither: says what was expected and what was found.
    """
    images, annotations = locate(options.source), locate(options.annotations or "")
    data, are_labelled = read_bytes(annotations), options.as_ == "labelled"
    is_json = annotations.path.lower().endswith(".json")
    try:
        persons = list(_from_json(data) if is_json else _from_mat(data))
    except Exception as error:  # SciPy lets through whatever a damaged file makes it stumble over
        expected = "a JSON list of image, joints, joints_vis, center, scale" if is_json else "'RELEASE' in a .mat file"
        raise InputError(f"{annotations.uri}: expected {expected}: {first_line(error)}") from error
    skipped: Counter[str] = Counter()
    references = []
    names: Counter[str] = Counter()
    for person in _together(persons):
        reference = _reference(person, images, names)
        if reference.is_labelled or (reference.box and not are_labelled):
            references.append(reference)
        else:
            skipped["unlabelled" if are_labelled else "no_box"] += 1
    return Found(
        references=references,
        skeleton=MPII,
        skipped=dict(sorted(skipped.items())),
        fingerprint=hashlib.sha256(data).hexdigest()[:16],
    )


def _together(persons: list[_Person]) -> list[_Person]:
    """Persons sorted so that those of one image are neighbours; images in the order of their first person."""
    order: dict[str, int] = {}
    for person in persons:
        order.setdefault(person.image, len(order))
    return sorted(persons, key=lambda person: order[person.image])


def _reference(person: _Person, images: Location, names: Counter[str]) -> Reference:
    """The id is the image and the person's centre, which the .mat and the JSON agree on; further ones are numbered."""
    centre = "" if person.centre is None else f"-{person.centre[0]:.0f}-{person.centre[1]:.0f}"
    name = f"mpii-{os.path.splitext(person.image)[0]}{centre}"
    names[name] += 1
    return Reference(
        sample_id=name if names[name] == 1 else f"{name}-{names[name]}",
        image=images.join(*person.image.split("/")),
        group=person.image,
        box=_box(person),
        keypoints=person.keypoints - _FIRST_PIXEL,
        visibility=person.visibility,
    )


def _box(person: _Person) -> Corners | None:
    if person.centre is None or person.scale is None:
        return None
    x, y = (np.array(person.centre) - _FIRST_PIXEL).tolist()
    y += _LOWER_PX * person.scale
    half = _HEIGHT_PX * person.scale / 2
    return x - half, y - half, x + half, y + half


def _centre_and_scale(x: Any, y: Any, scale: Any) -> tuple[tuple[float, float] | None, float | None]:
    """None where it is missing: left out, empty, not a number, or the -1 of some files."""
    numbers = [float(value) if value is not None and np.size(value) == 1 else np.nan for value in (x, y, scale)]
    centre = (numbers[0], numbers[1]) if np.isfinite(numbers[:2]).all() and numbers[0] != -1 else None
    return centre, numbers[2] if numbers[2] > 0 and np.isfinite(numbers[2]) else None


def _from_json(data: bytes) -> Iterator[_Person]:
    """Persons of a list of image, joints, joints_vis, center and scale; the joints are missing of test images."""
    entries = parse_json(data)
    if not isinstance(entries, list):
        raise TypeError(f"found {type(entries).__name__}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise TypeError(f"found entry {number} without an image")
        joints = np.asarray(entry.get("joints", np.full((_K, 2), np.nan)), np.float64)
        flags = np.asarray(entry.get("joints_vis", np.zeros(_K)), np.float64)
        if joints.shape != (_K, 2) or flags.shape != (_K,):
            raise ValueError(f"found entry {number} with joints {joints.shape} and joints_vis {flags.shape}")
        place = entry.get("center", [None, None])
        if not isinstance(place, list) or len(place) != 2:
            raise ValueError(f"found entry {number} with center {place!r}")
        is_labelled = (flags > 0) & np.isfinite(joints).all(axis=1)
        centre, scale = _centre_and_scale(place[0], place[1], entry.get("scale"))
        yield _Person(entry["image"], joints, np.where(is_labelled, 2, 0).astype(np.uint8), centre, scale)


def _from_mat(data: bytes) -> Iterator[_Person]:
    """Persons of RELEASE.annolist, an entry an image, and its annorect, an entry a person or none at all."""
    release = scipy.io.loadmat(io.BytesIO(data), struct_as_record=False, squeeze_me=True)["RELEASE"]
    for entry in np.atleast_1d(release.annolist):
        for person in np.atleast_1d(entry.annorect):
            if hasattr(person, "_fieldnames"):  # an image without persons has an empty array
                yield _from_struct(str(entry.image.name), person)


def _from_struct(image: str, person: Any) -> _Person:
    keypoints, visibility = np.full((_K, 2), np.nan), np.zeros(_K, np.uint8)
    points = getattr(getattr(person, "annopoints", None), "point", ())
    for point in np.atleast_1d(np.asarray(points, dtype=object)):
        if not 0 <= int(point.id) < _K:
            raise ValueError(f"found joint {point.id} in {image}")
        keypoints[int(point.id)] = point.x, point.y
        # Empty for the joints of the head, and a text in some: only a 0 says occluded.
        visibility[int(point.id)] = 1 if str(getattr(point, "is_visible", "")) == "0" else 2
    visibility[~np.isfinite(keypoints).all(axis=1)] = 0
    place = getattr(person, "objpos", None)
    centre, scale = _centre_and_scale(
        getattr(place, "x", None), getattr(place, "y", None), getattr(person, "scale", None)
    )
    return _Person(image, keypoints, visibility, centre, scale)
