"""The predicted poses of selected rows: those that the scores kept, or predicted once more from the images.

# K keypoints
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from distributed.reporting.pool_rows import INDEX
from distributed.reporting.scored_rows import trust_of
from distributed.tables.reader import boxes, image_buffers
from model.bundle import Bundle
from model.predictor import Predictor
from model.roofline import count_work

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
