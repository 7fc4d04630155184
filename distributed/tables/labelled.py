"""Labelled rows as training batches and as labels for evaluation: Arrow in, arrays out. Imports without Ray.

# B batch, K keypoints
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from distributed.schema import POOL, labelled
from distributed.storage.location import Location
from distributed.tables.manifest import Manifest, freeze_pool
from distributed.tables.reader import boxes, image_buffers, plan_bins, read_bin
from model.errors import ImageError, InputError
from model.example import Augmentation, Example, make_example, sample_view
from model.fit import Batch
from model.pose_model import ModelSpec
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


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Turns labelled rows into training batches: decoded, augmented, unreadable images left out and counted.

    A row's augmentation depends on seed, epoch and its sample_id alone, whichever worker and batch it meets.
    """

    spec: ModelSpec
    augmentation: Augmentation
    seed: int
    epoch: int
    threads: Executor
    skipped: Counter[str]  # reason -> images

    def __call__(self, rows: pa.Table) -> Batch:
        """A batch of at most len(rows) examples, on the CPU."""
        labels, ids = labels_of(rows), rows["sample_id"].to_pylist()
        made = self.threads.map(
            self._example_or_reason, image_buffers(rows), boxes(rows), labels.keypoints, labels.visibility, ids
        )
        examples = []
        for example in made:
            if isinstance(example, Example):
                examples.append(example)
            else:
                self.skipped[example] += 1
        return _stack(examples, self.spec)

    def _example_or_reason(
        self,
        image: memoryview,
        box: np.ndarray | None,
        keypoints: np.ndarray,
        visibility: np.ndarray,
        sample_id: str,
    ) -> Example | str:
        rng = np.random.default_rng([self.seed, self.epoch, zlib.crc32(sample_id.encode())])
        view = sample_view(self.augmentation, rng=rng)
        try:
            return make_example(image, box, keypoints=keypoints, visibility=visibility, spec=self.spec, view=view)
        except ImageError as error:
            return error.reason


def is_in_share(key: str, *, share: float) -> bool:
    """Whether a key is among so large a share of all keys, drawn by a hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < share * 2**64


def _stack(examples: list[Example], spec: ModelSpec) -> Batch:
    if not examples:  # one blank image without labels teaches nothing, and keeps the ranks of a group in step
        size, count = spec.input_size, spec.skeleton.num_keypoints
        blank = Example(
            np.zeros((size, size, 3), np.uint8), np.zeros((count, 2), np.float32), np.zeros(count, np.bool_)
        )
        examples = [blank]
    pixels, keypoints, is_labelled = zip(*examples, strict=True)
    return Batch(
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(np.stack(keypoints)),
        torch.from_numpy(np.stack(is_labelled)),
    )


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
