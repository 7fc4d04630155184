"""Poses and metadata of the selected rows: as the scores keep them, or poses predicted once more from the images.

# N selected rows, K keypoints
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from distributed.evaluation.slices import is_sliceable, texts_by_row
from distributed.reporting.origin import ScoredTable
from distributed.reporting.pool_rows import INDEX
from distributed.schema import SCORES
from distributed.tables import scores_reader
from distributed.tables.reader import boxes, image_buffers
from distributed.tables.scores_reader import ReadablePart, open_part, read_group
from model.bundle import Bundle
from model.predictor import Predictor
from model.roofline import count_work

_OWN = {*SCORES.names, "keypoints", "keypoint_miss", "embedding"}
PoseSource = Literal["scores", "predicted", "none"]

# Arithmetic that predicting again may cost a report: about ten minutes of two CPU cores.
_REPORT_FLOPS = 2e13
_BATCH_SIZE = 64
_DECODE_THREADS = 2


class Poses:
    """Gives the pose of each pool row of a selection.

    Args:
        stored: (K, 3) x, y, trust by the place of a selected row, where the scores have them.
        bundle: predicts where they have not; None: then there is no pose.
        num_rows: how many poses, the best ranks first, predicting may cost.

    Attributes:
        source: where they are from.
        num_rows: how many of the first ranks have one, if they are predicted.
    """

    def __init__(
        self, stored: dict[int, NDArray[np.float32]], *, bundle: Bundle | None, num_rows: int | None = None
    ) -> None:
        self.source: PoseSource = "scores" if stored else "predicted" if bundle else "none"
        self.num_rows = num_rows
        self._stored = stored
        self._predictor = (
            Predictor(bundle, batch_size=_BATCH_SIZE, decode_threads=_DECODE_THREADS)
            if bundle and self.source == "predicted"
            else None
        )

    def of(self, rows: pa.Table) -> list[NDArray[np.float32] | None]:
        """(K, 3) x, y in image pixels and trust (`trust_of`) of each pool row; None where there is none."""
        places = rows[INDEX].to_pylist()
        if self._predictor is None:
            return [self._stored.get(place) for place in places]
        chosen = [row for row, place in enumerate(places) if self.num_rows is None or place < self.num_rows]
        result: list[NDArray[np.float32] | None] = [None] * len(places)
        images, regions = image_buffers(rows), boxes(rows)
        found = self._predictor.predict([images[row] for row in chosen], [regions[row] for row in chosen])
        trust = trust_of(found.peaks, found.miss)
        for row, keypoints, trusted, error in zip(chosen, found.keypoints, trust, found.errors, strict=True):
            if error is None:
                result[row] = np.concatenate([keypoints, trusted[:, None]], axis=1)
        return result


def affordable_rows(bundle: Bundle) -> int:
    """How many images a report may predict with a bundle."""
    return int(_REPORT_FLOPS / count_flops(bundle))


def count_flops(bundle: Bundle) -> float:
    """The arithmetic of one image."""
    size = bundle.spec.input_size
    pixels = torch.zeros((1, size, size, 3), dtype=torch.uint8)
    return count_work(bundle.model, pixels, batch_size=_BATCH_SIZE, dtype=torch.float32).flops


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """By the place of a selected row; empty where the scores have no such column."""

    keypoints: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # (K, 3) x, y, trust; see `Poses`
    metadata: dict[str, dict[int, tuple[str, ...]]] = field(default_factory=dict)  # column -> row -> values


def read_parts(tables: Sequence[ScoredTable]) -> list[ReadablePart]:
    """The parts of all tables."""
    return scores_reader.read_parts([(table.location, table.record) for table in tables])


def metadata_of(parts: Sequence[ReadablePart]) -> list[str]:
    """The columns of metadata that all parts have."""
    names = [field.name for field in parts[0].schema if field.name not in _OWN and is_sliceable(field.type)]
    return [name for name in names if all(name in part.schema.names for part in parts)]


def read_scored_rows(parts: Sequence[ReadablePart], selected: pa.Table) -> ScoredRows:
    """Keypoints and metadata of the selected rows. Row groups that can't hold their losses are not read.

    Raises:
        InputError: a part is damaged.
        RunFailedError: the store failed.
    """
    found = ScoredRows(metadata={name: {} for name in metadata_of(parts)})
    ids = selected["sample_id"].combine_chunks()
    losses = np.sort(selected["predicted_loss"].to_numpy())
    for part in parts:
        columns = [name for name in ("keypoints", "keypoint_miss", *found.metadata) if name in part.schema.names]
        for rows, places in _hits(part, losses, ids, columns) if columns else ():
            if "keypoints" in columns:
                found.keypoints.update(zip(places, _keypoints(rows), strict=True))
            for name, values in found.metadata.items():
                values.update(zip(places, texts_by_row(rows[name]), strict=True))
    return found


def _hits(
    part: ReadablePart, losses: NDArray[np.float32], ids: pa.Array, columns: list[str]
) -> Iterator[tuple[pa.Table, list[int]]]:
    """Rows of a part that were selected, and which of the selected rows they are."""
    first = np.searchsorted(losses, part.least, side="left")
    end = np.searchsorted(losses, part.greatest, side="right")
    with open_part(part) as reader:
        for group in np.flatnonzero(first < end).tolist():
            places = pc.index_in(read_group(reader, part, group, ["sample_id"])["sample_id"], value_set=ids)
            is_hit = pc.is_valid(places)
            if pc.any(is_hit).as_py():
                yield (
                    read_group(reader, part, group, columns).filter(is_hit),
                    places.filter(is_hit).to_pylist(),
                )


def _keypoints(rows: pa.Table) -> list[NDArray[np.float32]]:
    """(K, 3) of each row: x, y and trust."""
    keypoints = _halves(rows["keypoints"]).reshape(len(rows), -1, 3)
    if "keypoint_miss" in rows.column_names:
        keypoints[..., 2] = trust_of(keypoints[..., 2], _halves(rows["keypoint_miss"]))
    return [*keypoints]


def trust_of(peaks: NDArray[np.float32], miss: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each keypoint can be trusted, 0 to 1: 1 - P(miss) where that is known, else its heatmap's peak."""
    return np.where(np.isnan(miss), peaks, 1 - miss)


def _halves(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """(N, size) of a column of fixed-size lists; NaN where there is none."""
    values = column.combine_chunks()
    missing = [float("nan")] * values.type.list_size
    flat = [row.as_py() or missing for row in values] if values.null_count else values.flatten()
    return np.asarray(flat, np.float32).reshape(len(values), -1)
