"""A bundle over labelled rows: a table of its predictions beside the true losses and distances, without images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distributed.runs.progress import Progress, silent
from distributed.tables.labelled import COLUMNS, labels_of
from distributed.tables.manifest import Manifest
from distributed.tables.reader import Bin, boxes, image_buffers, plan_bins, read_bin
from distributed.tables.references import read_errors
from model.choices import Views
from model.metrics import PCK_THRESHOLD, head_lengths, normalised_distances, torso_lengths

if TYPE_CHECKING:
    from model.bundle import Bundle
    from model.predictor import Predictor

Numbers = NDArray[np.float64]


def evaluate_rows(
    bundle: Bundle,
    manifest: Manifest,
    *,
    bins: Sequence[Bin] | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    decode_threads: int = 2,
    views: Views = 1,
    is_compiled: bool | None = None,
    is_ranked: bool = False,
    progress: Progress = silent,
) -> pa.Table:
    """One row for each labelled row (or, given `bins`, each row of these), in the manifest's order.

    Runs in the calling process, without Ray.

    Columns: sample_id, predicted_loss, expected_pck (NaN where the bundle can't say), confidence, true_loss, error;
    `distances` (K,) of `normalised_distances` in torso lengths and `head_distances` (K,) in head lengths, NaN where a
    keypoint does not count; `keypoints` (2K,) predicted, in image pixels. Some 20 bytes a keypoint: a million rows of
    14 are 0.3 GB. With `is_ranked` also peak_entropy and `embedding` (D) float16, which selections can use too.
    """
    from model.predictor import Predictor  # PyTorch: reports use what is below without computing anything

    predictor = Predictor(
        bundle,
        device=device,
        batch_size=batch_size,
        decode_threads=decode_threads,
        views=views,
        is_compiled=is_compiled,
    )
    tables: list[pa.Table] = []
    done = num_errors = 0
    for bin_ in plan_bins(manifest.segments) if bins is None else bins:
        for rows in read_bin(manifest.location, bin_, columns=COLUMNS, images=manifest.images):
            tables.append(_evaluate(predictor, rows, is_ranked=is_ranked))
            done += len(rows)
            num_errors += len(rows) - tables[-1]["error"].null_count
            progress("evaluate", done, manifest.num_rows, num_errors=num_errors)
    return pa.concat_tables(tables)


def _evaluate(predictor: Predictor, rows: pa.Table, *, is_ranked: bool) -> pa.Table:
    labels = labels_of(rows)
    found = predictor.predict(image_buffers(rows), boxes(rows), labels=labels)
    is_labelled = labels.visibility > 0

    def distances(lengths: Numbers) -> pa.Array:
        shares = normalised_distances(found.keypoints, labels.keypoints, is_labelled, reference_lengths=lengths)
        return _lists(shares.astype(np.float32))

    skeleton = predictor.spec.skeleton
    table = pa.table(
        {
            "sample_id": rows["sample_id"],
            "predicted_loss": found.predicted_loss,
            "expected_pck": found.expected_pck,
            "confidence": found.confidence,
            "true_loss": found.true_loss,
            "error": pa.array(
                [before or after for before, after in zip(read_errors(rows), found.errors, strict=True)], pa.string()
            ),
            "distances": distances(torso_lengths(labels.keypoints, is_labelled, skeleton)),
            "head_distances": distances(head_lengths(labels.keypoints, is_labelled, skeleton)),
            "keypoints": _lists(found.keypoints.reshape(len(rows), -1)),
        }
    )
    if is_ranked:
        table = table.append_column("peak_entropy", pa.array(found.peak_entropy))
        table = table.append_column("embedding", _lists(found.embedding.astype(np.float16)))
    return table


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def distances_of(evaluated: pa.Table, name: str = "distances") -> Numbers:
    """(N, K) normalised distances of evaluated rows: `distances` in torso lengths, or `head_distances`."""
    column = evaluated[name].combine_chunks()
    return np.asarray(column.flatten(), np.float64).reshape(-1, column.type.list_size)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Evaluated rows as arrays, all (N,)."""

    predicted_loss: Numbers
    expected_pck: Numbers  # NaN where not known
    confidence: Numbers
    true_loss: Numbers
    is_error: NDArray[np.bool_]  # could not be read or scored
    num_right: NDArray[np.int64]  # keypoints within `PCK_THRESHOLD`
    num_judged: NDArray[np.int64]  # keypoints that count

    @property
    def is_evaluated(self) -> NDArray[np.bool_]:
        """True for rows with a predicted and a true loss."""
        return np.isfinite(self.predicted_loss) & np.isfinite(self.confidence) & np.isfinite(self.true_loss)

    @property
    def is_judged(self) -> NDArray[np.bool_]:
        """True for evaluated rows with a PCK of their own."""
        return self.is_evaluated & (self.num_judged > 0)

    @property
    def image_pck(self) -> Numbers:
        """PCK of each image; NaN where none of its keypoints counts."""
        shares = np.full(len(self.num_right), np.nan)
        return np.divide(self.num_right, self.num_judged, out=shares, where=self.num_judged > 0)

    def take(self, keep: NDArray[np.bool_]) -> Observed:
        """The rows that are kept."""
        return Observed(**{name: values[keep] for name, values in vars(self).items()})


def observed(evaluated: pa.Table) -> Observed:
    """The evaluated rows as arrays."""
    distances = distances_of(evaluated)
    return Observed(
        predicted_loss=np.asarray(evaluated["predicted_loss"], np.float64),
        expected_pck=np.asarray(evaluated["expected_pck"], np.float64),
        confidence=np.asarray(evaluated["confidence"], np.float64),
        true_loss=np.asarray(evaluated["true_loss"], np.float64),
        is_error=np.asarray(evaluated["error"].is_valid()),
        num_right=(distances <= PCK_THRESHOLD).sum(axis=1),
        num_judged=(~np.isnan(distances)).sum(axis=1),
    )
