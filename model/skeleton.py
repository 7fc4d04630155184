"""Skeletons: keypoint names, left/right pairs, limbs, and the lengths that PCK and PCKh are normalised by.

Keypoint order is the data set's own, so that published annotations need no re-indexing. A skeleton of one's own is a
JSON file of names, and of pairs of names or of 0-based indices:

{"name": "hand", "keypoint_names": ["wrist", "thumb", "pinky"], "limbs": [["wrist", "thumb"], [0, 2]]}

Further keys, all optional: `flip_pairs` (right, left), `torso_diagonals` (without them there is no PCK) and
`head_segment` (without it there is no PCKh). The "skeleton" of a bundle.json is such a description too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.errors import InputError
from model.json_text import parse_json

_REQUIRED = {"name", "keypoint_names"}
_OPTIONAL = {"flip_pairs", "limbs", "torso_diagonals", "head_segment"}


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """One body layout. Indices are 0-based positions in `keypoint_names`."""

    name: str
    keypoint_names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]  # (right, left): swapped when an image is mirrored
    limbs: tuple[tuple[int, int], ...]  # drawn as lines
    torso_diagonals: tuple[tuple[int, int], ...]  # PCK: normalised by the longer one that is labelled; may be none
    head_segment: tuple[int, int] | None  # PCKh: neck to head top; None: there is no head

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints, K."""
        return len(self.keypoint_names)

    @property
    def fingerprint(self) -> str:
        """Hash of all fields: a file of the same name may hold another skeleton tomorrow."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def flip_order(self) -> tuple[int, ...]:
        """Permutation of length K that swaps left and right: keypoint i of the mirrored body is flip_order[i]."""
        order = list(range(self.num_keypoints))
        for right, left in self.flip_pairs:
            order[right], order[left] = left, right
        return tuple(order)


# Leeds Sports Pose, 14 joints. Source: Johnson & Everingham, BMVC 2010; joint order as in joints.mat.
LSP = Skeleton(
    name="lsp",
    keypoint_names=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "neck",
        "head_top",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    limbs=(
        (0, 1),
        (1, 2),
        (5, 4),
        (4, 3),
        (2, 3),
        (2, 8),
        (3, 9),
        (8, 9),
        (6, 7),
        (7, 8),
        (11, 10),
        (10, 9),
        (12, 13),
        (8, 12),
        (9, 12),
    ),
    torso_diagonals=((9, 2), (8, 3)),
    head_segment=(12, 13),
)

# MPII Human Pose, 16 joints. Source: Andriluka et al., CVPR 2014; joint ids as in the data set's README.
MPII = Skeleton(
    name="mpii",
    keypoint_names=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "upper_neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    limbs=(
        (0, 1),
        (1, 2),
        (5, 4),
        (4, 3),
        (2, 6),
        (3, 6),
        (6, 7),
        (7, 8),
        (8, 9),
        (7, 12),
        (7, 13),
        (10, 11),
        (11, 12),
        (15, 14),
        (14, 13),
    ),
    torso_diagonals=((13, 2), (12, 3)),
    head_segment=(8, 9),
)

# COCO person keypoints, 17 joints; limbs as in the data set's own `categories`. Source: Lin et al., ECCV 2014.
COCO = Skeleton(
    name="coco",
    keypoint_names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    flip_pairs=((2, 1), (4, 3), (6, 5), (8, 7), (10, 9), (12, 11), (14, 13), (16, 15)),
    limbs=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
    torso_diagonals=((5, 12), (6, 11)),
    head_segment=None,  # neither neck nor head top
)

SKELETONS = {skeleton.name: skeleton for skeleton in (LSP, MPII, COCO)}


def skeleton_of_names(
    names: Sequence[str], *, name: str, limbs: Sequence[tuple[int, int]] = (), known: Sequence[Skeleton] = ()
) -> Skeleton:
    """The skeleton whose keypoints have these names: one of `known` or of ours, in its own order; else a new one.

    A new one has the names' order, and what its names tell: `left_x` and `right_x` are a pair, shoulders and hips make
    a torso.
    """
    for each in (*known, *SKELETONS.values()):
        if set(each.keypoint_names) == set(names):
            return each

    def pair(first: str, second: str) -> list[tuple[int, int]]:
        return [(names.index(first), names.index(second))] if first in names and second in names else []

    rights = [each for each in names if each.startswith("right_")]
    return Skeleton(
        name=name,
        keypoint_names=tuple(names),
        flip_pairs=tuple(found for each in rights for found in pair(each, each.replace("right_", "left_", 1))),
        limbs=tuple(limbs),
        torso_diagonals=(*pair("left_shoulder", "right_hip"), *pair("right_shoulder", "left_hip")),
        head_segment=None,
    )


def dump_skeleton(skeleton: Skeleton) -> bytes:
    """The JSON file that `read_skeleton` reads."""
    fields = {key: value for key, value in asdict(skeleton).items() if value is not None}
    return json.dumps(fields, indent=1).encode() + b"\n"


def read_skeleton(data: bytes, *, where: str) -> Skeleton:
    """The skeleton that the JSON describes.

    Raises:
        InputError: it is none: says what is wrong with it, in one line that begins with `where`.
    """
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise InputError(f"{where}: expected a skeleton in JSON, found {data[:40]!r}") from error
    if not isinstance(fields, dict) or fields.keys() - _REQUIRED - _OPTIONAL or _REQUIRED - fields.keys():
        found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        raise InputError(f"{where}: expected the keys {sorted(_REQUIRED | _OPTIONAL)}, found {found}")
    try:
        return _build(fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _build(fields: dict[str, Any]) -> Skeleton:
    names = fields["keypoint_names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"keypoint_names: expected names, found {names!r}")
    if len(set(names)) < len(names):
        raise ValueError("keypoint_names: expected each name once, found one twice")
    if not isinstance(fields["name"], str) or not fields["name"]:
        raise ValueError(f"name: expected a text, found {fields['name']!r}")
    pairs = {key: _pairs(fields.get(key), names, key) for key in _OPTIONAL}
    swapped = [index for pair in pairs["flip_pairs"] for index in pair]
    if len(set(swapped)) < len(swapped):
        raise ValueError("flip_pairs: expected each keypoint in one pair at most, found one twice")
    return Skeleton(
        name=fields["name"],
        keypoint_names=tuple(names),
        flip_pairs=pairs["flip_pairs"],
        limbs=pairs["limbs"],
        torso_diagonals=pairs["torso_diagonals"],
        head_segment=pairs["head_segment"][0] if pairs["head_segment"] else None,
    )


def _pairs(value: Any, names: Sequence[str], key: str) -> tuple[tuple[int, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise TypeError(f"{key}: expected pairs of keypoints, found {value!r}")
    listed = [value] if key == "head_segment" else value
    return tuple(_pair(item, names, key) for item in listed)


def _pair(value: Any, names: Sequence[str], key: str) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{key}: expected two keypoints, found {value!r}")
    first, second = (_index(item, names, key) for item in value)
    if first == second:
        raise ValueError(f"{key}: expected two different keypoints, found {value!r}")
    return first, second


def _index(item: Any, names: Sequence[str], key: str) -> int:
    if isinstance(item, str) and item in names:
        return names.index(item)
    if type(item) is int and 0 <= item < len(names):
        return item
    raise ValueError(f"{key}: expected a keypoint's name or an index below {len(names)}, found {item!r}")
