"""Labelled tables: frozen, counted, and their rows as arrays of labels. Imports without Ray.

# B batch, K keypoints
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from distributed.schema import POOL, labelled, num_keypoints, skeleton_name
from distributed.storage.location import Location, locate, read_bytes
from distributed.tables.manifest import Manifest, freeze_pool
from distributed.tables.reader import plan_bins, read_bin
from model.errors import InputError
from model.skeleton import SKELETONS, Skeleton, read_skeleton

if TYPE_CHECKING:
    from model.predictor import Labels

COLUMNS = [*POOL.names, "keypoints", "visibility"]


class _Said(NamedTuple):
    """Keypoints and skeleton as the footer of one file has them."""

    num_keypoints: int
    skeleton: str | None  # None: its writer did not say


def freeze_labelled(location: Location, *, skeleton: Skeleton, image_root: Location | None = None) -> Manifest:
    """The manifest of a labelled table, all files of which are of one skeleton; see `freeze_pool`.

    Raises:
        InputError: as `freeze_pool`, or a file has another number of keypoints, or was written with another skeleton.
    """
    manifest, said = _freeze(location, image_root)
    _check(location, said, skeleton)
    return manifest


def freeze_with_skeleton(
    location: Location, *, named: str | None = None, image_root: Location | None = None
) -> tuple[Manifest, Skeleton]:
    """The manifest of a labelled table, and the skeleton of its keypoints: recorded, or named by the user.

    Args:
        location: location of the table.
        named: the user's word: lsp, mpii, coco or the location of a JSON file (see `model.skeleton`). Without it,
            the skeleton that the table's writer recorded; without that too, the one with as many keypoints.
        image_root: the folder that references are below; None: the table's own.

    Raises:
        InputError: as `freeze_pool`, or files of the table disagree with each other or with `named`, or there is no
            such skeleton.
    """
    skeleton = None if named is None else named_skeleton(named)
    manifest, said = _freeze(location, image_root)
    if skeleton is None:
        first = next(iter(said.values()))
        skeleton = _recorded(first, location)
    _check(location, said, skeleton)
    return manifest, skeleton


def _freeze(location: Location, image_root: Location | None) -> tuple[Manifest, dict[str, _Said]]:
    """The manifest, and what the footer of each of its files says."""
    said: dict[str, _Said] = {}
    refused: list[str] = []

    def expect(found: pa.Schema, path: str) -> pa.Schema:
        try:
            said[path] = _Said(num_keypoints(found, where=path), skeleton_name(found))
        except InputError as error:
            refused.append(str(error))
            raise
        return labelled(said[path].num_keypoints)

    manifest = freeze_pool(location, schema=expect, image_root=image_root)
    if refused:
        raise InputError(f"{location.uri}: {min(refused)}")
    return manifest, {file.path: said[file.path] for file in manifest.files}


def _check(location: Location, said: Mapping[str, _Said], skeleton: Skeleton) -> None:
    for path, file in said.items():
        where = f"{location.uri}: {path}"
        if file.num_keypoints != skeleton.num_keypoints:
            found = f"{file.num_keypoints} keypoints" + (f" ({file.skeleton})" if file.skeleton else "")
            raise InputError(f"{where}: expected {skeleton.num_keypoints} keypoints ({skeleton.name}), found {found}")
        if file.skeleton not in (None, skeleton.name):
            raise InputError(f"{where}: expected the skeleton {skeleton.name!r}, found {file.skeleton!r}")


def named_skeleton(name: str) -> Skeleton:
    """The skeleton that a user names: lsp, mpii, coco or the location of a JSON file.

    Raises:
        InputError: there is no such skeleton.
    """
    if name in SKELETONS:
        return SKELETONS[name]
    if not name.endswith(".json"):
        raise InputError(f"--skeleton: expected {', '.join(SKELETONS)} or a .json file, found {name!r}")
    return read_skeleton(read_bytes(locate(name)), where=name)


def _recorded(file: _Said, location: Location) -> Skeleton:
    if file.skeleton is not None:
        if file.skeleton not in SKELETONS:
            raise InputError(
                f"{location.uri}: written with the skeleton {file.skeleton!r}: give its file as --skeleton"
            )
        return SKELETONS[file.skeleton]
    for skeleton in SKELETONS.values():
        if skeleton.num_keypoints == file.num_keypoints:
            return skeleton
    known = ", ".join(f"{skeleton.name} {skeleton.num_keypoints}" for skeleton in SKELETONS.values())
    raise InputError(
        f"{location.uri}: {file.num_keypoints} keypoints: expected those of {known}, or a --skeleton file; found none"
    )


def labels_of(rows: pa.Table) -> Labels:
    """Keypoints (B, K, 2) and visibility (B, K); a keypoint that is not a finite number, or null, is not labelled."""
    from model.predictor import Labels  # PyTorch, which whoever only freezes a table need not wait for

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
