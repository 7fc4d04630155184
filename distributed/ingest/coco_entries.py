"""Entries of COCO's JSON: boxes, keypoints and sizes in our frame, and what is wrong with them in one line.

In all tables and in `model`, (0, 0) is the centre of the top-left pixel: an image reaches from -0.5 to W - 0.5. COCO
counts keypoints likewise, so they stay as they are, and boxes from the image's corner, as x, y, width, height.
Label Studio and FiftyOne keep shares of W and H; their own COCO imports and exports divide and multiply COCO's numbers
by the sides, so our exports do the same: what comes back through any of them is what went out. (Their canvas counts
from the corner: it shows keypoints of COCO half a pixel up and left.)

Source: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; https://cocodataset.org/#format-data;
label_studio_sdk/converter/keypoints.py; fiftyone/utils/coco.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distributed.ingest.reference import Corners
from model.errors import InputError
from model.json_text import parse_json

_CORNER = 0.5  # from the image's corner to the centre of its first pixel


def box_from_coco(x: float, y: float, width: float, height: float) -> Corners:
    """The corners, in our frame, of a box that COCO writes as x, y, width, height."""
    x0, y0 = x - _CORNER, y - _CORNER
    return x0, y0, x0 + width, y0 + height


def box_to_coco(box: Corners) -> tuple[float, float, float, float]:
    """A box in our frame as COCO writes it: x, y, width, height. Undoes `box_from_coco`."""
    x0, y0, x1, y1 = box
    return x0 + _CORNER, y0 + _CORNER, x1 - x0, y1 - y0


def load_json(data: bytes, *, where: str) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: it is none.
    """
    try:
        return parse_json(data)
    except ValueError as error:
        raise InputError(f"{where}: expected COCO's JSON, found {data[:40]!r}") from error


@contextmanager
def faults_named(uri: str) -> Iterator[None]:
    """Turns what fails on entries of the file into one line.

    Raises:
        InputError: names the file, what was expected and what was found.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{uri}: expected COCO's images, annotations and categories with their keys, "
            f"found entries that fail with {type(error).__name__}: {error}"
        ) from error
    except ValueError as error:
        raise InputError(f"{uri}: {error}") from error


def read_size(image: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height as the file has them; None where it has none."""
    width, height = image.get("width"), image.get("height")
    return (int(width), int(height)) if width and height else None


def read_keypoints(values: Any, name: str, num_keypoints: int) -> NDArray[np.float64]:
    """(K, 3) x, y, visibility in the file's order; nothing is labelled without values, or where one is no number.

    Raises:
        ValueError: they are something else.
    """
    if not values:
        values = [0] * (3 * num_keypoints)
    if not isinstance(values, list) or len(values) != 3 * num_keypoints:
        found = len(values) if isinstance(values, list) else repr(values)
        raise ValueError(f"{name}: keypoints: expected {3 * num_keypoints} numbers, found {found}")
    table = np.array(values, np.float64).reshape(-1, 3)
    if not np.isin(table[:, 2], (0, 1, 2)).all():
        raise ValueError(f"{name}: visibility: expected 0, 1 or 2, found {table[:, 2].tolist()}")
    table[~np.isfinite(table).all(axis=1), 2] = 0
    return table


def read_box(values: Any, name: str) -> Corners | None:
    """The corners in our frame; None where there is no box, or one without an area.

    Raises:
        ValueError: it is something else.
    """
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"{name}: bbox: expected x, y, width and height, found {values!r}")
    x, y, width, height = map(float, values)
    if not (width > 0 and height > 0 and all(map(math.isfinite, (x, y, width, height)))):
        return None
    return box_from_coco(x, y, width, height)
