"""A skeleton of one's own, from a JSON file: names, and pairs of names or of 0-based indices.

{"name": "hand", "keypoint_names": ["wrist", "thumb", "pinky"], "limbs": [["wrist", "thumb"], [0, 2]]}

Further keys, all optional: `flip_pairs` (right, left), `torso_diagonals` (without them there is no PCK) and
`head_segment` (without it there is no PCKh). The "skeleton" of a bundle.json is such a description too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from model.errors import InputError
from model.skeleton import Skeleton

_REQUIRED = {"name", "keypoint_names"}
_OPTIONAL = {"flip_pairs", "limbs", "torso_diagonals", "head_segment"}


def read_skeleton(data: bytes, *, where: str) -> Skeleton:
    """The skeleton that the JSON describes.

    Raises:
        InputError: it is none: says what is wrong with it, in one line that begins with `where`.
    """
    try:
        fields = json.loads(data)
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
