"""Labelled tables: frozen, counted, and their rows as arrays of labels. Imports without Ray.

# B batch, K keypoints
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from distributed.schema import POOL, labelled
from distributed.storage.location import Location
from distributed.tables.manifest import Manifest, freeze_pool
from distributed.tables.reader import plan_bins, read_bin
from model.errors import InputError
from model.predictor import Labels

COLUMNS = [*POOL.names, "keypoints", "visibility"]


def freeze_labelled(location: Location, *, expected_keypoints: int) -> Manifest:
    """The manifest of a labelled table; see `freeze_pool`.

    Raises:
        InputError: as `freeze_pool`, or the table has another number of keypoints.
    """
    return freeze_pool(location, schema=labelled(expected_keypoints))


def labels_of(rows: pa.Table) -> Labels:
    """Keypoints (B, K, 2) and visibility (B, K); a keypoint that is not a finite number, or null, is not labelled."""
    flat = _fixed_lists(rows["keypoints"], np.float32, np.nan)
    keypoints = flat.reshape(len(rows), flat.shape[1] // 2, 2)
    visibility = _fixed_lists(rows["visibility"], np.uint8, 0)
    return Labels(keypoints, np.where(np.isfinite(keypoints).all(axis=2), visibility, 0).astype(np.uint8))


def _fixed_lists(column: pa.ChunkedArray, dtype: type, missing: float) -> np.ndarray:
    """(B, list size): a fixed-size list column with nulls, of lists or of items, replaced by `missing`."""
    combined = column.combine_chunks()
    size = combined.type.list_size
    if not combined.null_count:
        return np.asarray(combined.flatten().fill_null(missing), dtype).reshape(-1, size)
    rows = [row.as_py() or [None] * size for row in combined]
    return np.array([[missing if item is None else item for item in row] for row in rows], dtype).reshape(-1, size)


def count_labels(manifest: Manifest) -> np.ndarray:
    """(K,) how many rows label each keypoint.

    Raises:
        InputError: no row labels any.
    """
    counts: np.ndarray | None = None
    for bin_ in plan_bins(manifest.segments):
        for rows in read_bin(manifest.location, bin_, columns=["keypoints", "visibility"]):
            found = (labels_of(rows).visibility > 0).sum(axis=0)
            counts = found if counts is None else counts + found
    if counts is None or not counts.any():
        raise InputError(f"{manifest.location.uri}: expected at least one labelled keypoint, found none")
    return counts
