"""The selected images of a report: thumbnails, poses and what a filter goes by, as the columns that the page reads."""

from __future__ import annotations

import base64
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distributed.evaluation.slices import texts_by_row
from distributed.reporting.rows import INDEX, Metadata, Missing, Poses, metadata_columns
from distributed.tables.reader import boxes, image_buffers
from distributed.tables.references import read_errors
from model.skeleton import Skeleton
from model.spec import ModelSpec
from model.thumbnail import Format, Thumbnail, make_thumbnails, pack_pose

# 10,000 photographs of people of the small format are 20 MB as text; more need not be.
_LARGE, _SMALL = Format(side=128, quality=60), Format(side=112, quality=45)
_MOST_LARGE = 2500  # rows
_MOST_BYTES = 20 * 10**6  # of all thumbnails as text: then the first ranks alone have one
_ENLARGED = Format(side=400, quality=70, kind="jpeg")  # of the first ranks, for a closer look
_MOST_ENLARGED, _MOST_ENLARGED_BYTES = 400, 8 * 10**6
# Of 64, see `looks_of`. In the demo's pool, so near are 66 % of the frames of a drive that are less than half a second
# apart, and 0.03 % of those of different drives.
_ALIKE_BITS = 10
_PLAIN_MARGIN = 1.25  # around the box, where no bundle says how much its model saw
_THREADS = 2
_UNSURE_MISS, _UNSURE_PEAK = 128, 38  # of 255, under which a limb is thin: 1 - P(miss) of a half, or a peak of 0.15
_LONG_PREFIX = 8  # characters
_MOST_CHOICES = 60  # values of a column that a filter offers


@dataclass
class Gallery:
    """Columns of the page, by the place of the selected row."""

    pictures: dict[int, str] = field(default_factory=dict)  # base64
    enlarged: dict[int, str] = field(default_factory=dict)  # of the first ranks
    poses: dict[int, str] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)  # see `looks_of`
    absent: dict[int, str] = field(default_factory=dict)  # why there is no picture
    metadata: Metadata = field(default_factory=dict)  # of the pool

    @property
    def num_poses(self) -> int:
        """Number of poses that are drawn."""
        return len(self.poses)


def make_gallery(
    tables: Iterable[pa.Table], *, poses: Poses, missing: Missing, margin: float | None, num_rows: int
) -> Gallery:
    """The gallery of a selection of `num_rows` rows, from the pool rows of it that are found.

    Args:
        tables: pool rows with their places, see `read_rows`.
        poses: gives their poses.
        missing: knows the reasons for the others once the tables are read.
        margin: of the crops that the model saw.
        num_rows: of the selection.
    """
    small = _LARGE if num_rows <= _MOST_LARGE else _SMALL
    make = partial(make_thumbnails, margin=_PLAIN_MARGIN if margin is None else margin)
    gallery = Gallery()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="thumbnails") as threads:
        for rows in tables:
            images, regions, places = image_buffers(rows), boxes(rows), rows[INDEX].to_pylist()
            formats = [(small, _ENLARGED) if place < _MOST_ENLARGED else (small,) for place in places]
            made = threads.map(make, images, regions, formats)
            for place, thumbnails, pose, error in zip(places, made, poses.of(rows), read_errors(rows), strict=True):
                if error:
                    gallery.absent[place] = f"the image can't be read: {error}"
                else:
                    _add(gallery, place, thumbnails, pose, side=small.side)
            for name in metadata_columns(rows.schema):
                gallery.metadata.setdefault(name, {}).update(zip(places, texts_by_row(rows[name]), strict=True))
    gallery.absent.update(missing.reasons)
    _keep_within(gallery)
    return gallery


def _add(
    gallery: Gallery, place: int, thumbnails: list[Thumbnail] | None, pose: NDArray[np.floating] | None, *, side: int
) -> None:
    if thumbnails is None:
        gallery.absent[place] = "the image can't be read"
        return
    small, *enlarged = thumbnails
    gallery.pictures[place] = base64.b64encode(small.data).decode()
    gallery.enlarged.update((place, base64.b64encode(each.data).decode()) for each in enlarged)
    gallery.looks[place] = small.looks
    if pose is not None:
        packed = pack_pose(pose[:, :2], pose[:, 2], to_image=small.to_image, side=side)
        gallery.poses[place] = base64.b64encode(packed).decode()


def _keep_within(gallery: Gallery) -> None:
    """Drops the pictures of the last ranks beyond what a page may hold."""
    for place in _beyond(gallery.pictures, _MOST_BYTES):
        del gallery.pictures[place]
        gallery.poses.pop(place, None)
    for place in _beyond(gallery.enlarged, _MOST_ENLARGED_BYTES):
        del gallery.enlarged[place]


def _beyond(pictures: Mapping[int, str], most_bytes: int) -> list[int]:
    """The places of the last pictures, without which the others take no more than so many bytes."""
    places = sorted(pictures)
    spent = np.cumsum([len(pictures[place]) for place in places])
    return places[int(np.searchsorted(spent, most_bytes, side="right")) :]


def find_alike(looks: Mapping[int, int], group: Sequence[int], count: int) -> list[int]:
    """(N,) for each of `count` images the first of its group that it looks like; itself where it is like none.

    Args:
        looks: by place, see `looks_of`.
        group: (N,) the number of each group; -1 of none, which is a group of its own.
        count: N.
    """
    alike = list(range(count))
    firsts: dict[int, tuple[list[int], list[int]]] = {}  # by group: looks and places of those that are like none before
    for place in sorted(looks):
        known, places = firsts.setdefault(group[place], ([], []))
        bits = np.bitwise_count(np.array(known, np.uint64) ^ np.uint64(looks[place]))
        if len(bits) and bits.min() <= _ALIKE_BITS:
            alike[place] = places[int(bits.argmin())]
        else:
            known.append(looks[place])
            places.append(place)
    return alike


def shorten(ids: Sequence[str]) -> list[str]:
    """The ids without what all of them begin with, where that is long: what is left tells them apart."""
    ends = zip(min(ids), max(ids), strict=False) if len(ids) > 1 else ()
    prefix = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends))
    cut = max(prefix.rfind(mark) for mark in "/_-.:") + 1
    return [f"…{each[cut:]}" for each in ids] if cut >= _LONG_PREFIX else list(ids)


def page_data(
    gallery: Gallery, selected: pa.Table, *, metadata: Metadata, spec: ModelSpec | None, key: str
) -> dict[str, Any]:
    """The input of the page's script, JSON values only; `key` is what the browser remembers decisions by."""
    skeleton = spec.skeleton if spec else None
    count = len(selected)
    groups, group = _encode(selected["group"].to_pylist())
    reasons, reason = _encode(selected["reason"].to_pylist())
    return {
        "key": key,
        "ids": (ids := selected["sample_id"].to_pylist()),
        "short": shorten(ids),
        "alike": find_alike(gallery.looks, group, count),
        "large": [gallery.enlarged.get(place, "") for place in range(count)],
        "loss": [f"{value:.3g}" for value in selected["predicted_loss"].to_pylist()],
        "pck": [_finite(value) for value in selected["expected_pck"].to_pylist()],
        "groups": groups,
        "group": group,
        "reasons": reasons,
        "reason": reason,
        "columns": [_column(name, values, count) for name, values in metadata.items()],
        "pictures": [gallery.pictures.get(place, "") for place in range(count)],
        "poses": [gallery.poses.get(place, "") for place in range(count)],
        "absent": gallery.absent,
        "unsure": _UNSURE_MISS if spec and spec.method == "keypoint" else _UNSURE_PEAK,
        "limbs": [] if skeleton is None else [[a, b, _side(skeleton, a, b)] for a, b in skeleton.limbs],
    }


def _encode(values: Sequence[str | None]) -> tuple[list[str], list[int]]:
    """The different values, the most frequent first, and the number of each; −1 of none."""
    counts = Counter(value for value in values if value is not None)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    numbers = {name: number for number, name in enumerate(names)}
    return names, [-1 if value is None else numbers[value] for value in values]


def _column(name: str, values: Mapping[int, tuple[str, ...]], count: int) -> dict[str, Any]:
    counts = Counter(word for words in values.values() for word in words)
    names = sorted(counts, key=lambda word: (-counts[word], word))
    numbers = {word: number for number, word in enumerate(names)}
    codes = [[numbers[word] for word in values.get(place, ())] for place in range(count)]
    return {"name": name, "values": names, "codes": codes, "filter": 1 < len(names) <= _MOST_CHOICES}


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)


def _side(skeleton: Skeleton, a: int, b: int) -> str:
    limb = {a, b}
    if limb <= {right for right, _ in skeleton.flip_pairs}:
        return "right"
    return "left" if limb <= {left for _, left in skeleton.flip_pairs} else "middle"
