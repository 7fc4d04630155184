"""References to the images or persons of a raw data set, and the table rows that are read from them.

# K keypoints
"""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from distributed.runs.progress import Progress
from distributed.storage.location import Location, list_files, read_bytes
from distributed.storage.threads import ask_at_once
from distributed.tables.parquet import Row
from model.errors import ImageError, InputError
from model.headers import has_more_pages
from model.image import image_size
from model.skeleton import Skeleton

_AHEAD = 32  # images in memory at once: of a store, each is a request

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1 image pixels


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One image, or one person in it."""

    sample_id: str
    image: Location
    group: str | None = None
    captured_at: datetime.datetime | None = None
    size: tuple[int, int] | None = None  # width, height that the annotations are of; None: they don't say
    box: Corners | None = None  # image pixels; None: that of the keypoints
    keypoints: np.ndarray | None = None  # (K, 2) image pixels
    visibility: np.ndarray | None = None  # (K,)
    metadata: Mapping[str, Any] = field(default_factory=dict)  # further columns

    @property
    def is_labelled(self) -> bool:
        """True if any keypoint is labelled."""
        return self.visibility is not None and bool(self.visibility.any())


@dataclass(frozen=True, kw_only=True)
class Found:
    """The contents of a source, in the order of the table that is made of it."""

    references: list[Reference]
    skeleton: Skeleton | None = None  # None: it holds no labels
    columns: tuple[pa.Field, ...] = ()  # of the metadata
    skipped: dict[str, int] = field(default_factory=dict)  # why it was left out -> persons, or files
    notes: tuple[str, ...] = ()  # sentences for the user
    fingerprint: str | None = None  # of the file with the annotations


def check_images(references: Iterable[Reference], *, below: Location, named_by: str) -> None:
    """Passes if every image is there; by one listing, so that nothing is written before one is found missing.

    Raises:
        InputError: names the first that is missing, and how many are.
    """
    there = {file.path for file in list_files(below, suffix="")}
    missing = sorted({reference.image.uri for reference in references if reference.image.path not in there})
    if missing:
        raise InputError(f"{missing[0]}: expected an image named by {named_by}, found none ({len(missing)} missing)")


def read_rows(references: list[Reference], counts: Counter[str], *, progress: Progress) -> Iterator[Row]:
    """The tables' rows. An image that can't be decoded is kept as it is: scoring will say why.

    Persons of one image that follow each other cost one reading; each has the image's bytes in its row.

    Raises:
        InputError: an image has another size than its annotations say; names it.
    """
    persons = [[*own] for _, own in itertools.groupby(references, key=lambda reference: reference.image.path)]
    done = 0
    for start in range(0, len(persons), _AHEAD):
        batch = persons[start : start + _AHEAD]
        images = ask_at_once(batch[0][0].image, read_bytes, [own[0].image for own in batch])
        for own, image in zip(batch, images, strict=True):
            counts["images"] += 1
            counts["more_pages"] += has_more_pages(memoryview(image))
            counts["unreadable"] += not _check_size(own[0], image)
            for reference in own:
                done += 1
                progress("ingest", done, len(references))
                yield _row(reference, image, counts)


def _check_size(reference: Reference, image: bytes) -> bool:
    """True if the pixels as stored are those that were annotated; False if the image's header can't be read."""
    try:
        size = image_size(image)
    except ImageError:
        return False
    if reference.size is not None and reference.size != size:
        expected, found = (f"{width} x {height} px" for width, height in (reference.size, size))
        raise InputError(
            f"{reference.image.uri}: expected {expected}, as its annotations say, found {found}: it was scaled, or "
            "annotated as turned by an EXIF orientation, which is ignored here"
        )
    return True


def _row(reference: Reference, image: bytes, counts: Counter[str]) -> Row:
    row: Row = {
        "sample_id": reference.sample_id,
        "image": image,
        "group": reference.group,
        "captured_at": reference.captured_at,
        "box": None if reference.box is None else list(reference.box),
        **reference.metadata,
    }
    if reference.keypoints is None or reference.visibility is None:
        return row
    visibility = np.where(_is_inside(reference.keypoints, image), reference.visibility, 0).astype(np.uint8)
    counts["keypoints_outside"] += int(((visibility == 0) & (reference.visibility > 0)).sum())
    if row["box"] is None:
        row["box"] = _box_of(reference.keypoints[visibility > 0])
    return {**row, "keypoints": reference.keypoints.ravel(), "visibility": visibility}


def _box_of(keypoints: np.ndarray) -> list[float] | None:
    """The joints' bounding box, which stands in for a person detector's, as in the paper. None if it has no area."""
    has_area = len(keypoints) > 1 and bool((np.ptp(keypoints, axis=0) > 0).all())
    return [*keypoints.min(axis=0), *keypoints.max(axis=0)] if has_area else None


def _is_inside(keypoints: np.ndarray, image: bytes) -> np.ndarray:
    """(K,) whether a keypoint lies in the image; all of them where the image's size can't be read."""
    try:
        size = np.array(image_size(image))
    except ImageError:
        return np.ones(len(keypoints), np.bool_)
    return np.asarray(((keypoints > -0.5) & (keypoints < size - 0.5)).all(axis=1))
