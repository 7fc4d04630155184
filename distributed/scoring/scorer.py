"""Pool rows in, scores rows out: Arrow around the predictor. Imports without Ray, and loads torch where it computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.runs.logbook import Log
from distributed.schema import FILE_ID, NO_METADATA, READ_ERROR, scores_schema
from distributed.scoring.options import ScoringOptions
from distributed.storage.location import Location
from distributed.tables.reader import boxes, image_buffers
from model.errors import InputError

if TYPE_CHECKING:
    from model.predictor import Predictions, Predictor

CRASHED = "crashed"  # the reason of a row that killed the process that scored it
_TRIES_TOGETHER = 2  # of a batch that never came back, before its rows are tried one by one


def make_predictor(model: Location, options: ScoringOptions, *, bundle_id: str | None = None) -> Predictor:
    """The predictor of a bundle, on the device where it computes.

    Raises:
        InputError: another bundle than the expected one lies there, or one that can't judge from so many views.
    """
    from distributed.storage.bundles import read_bundle
    from model.predictor import Predictor

    bundle = read_bundle(model)
    if bundle_id not in (None, bundle.bundle_id):
        raise InputError(
            f"{model.uri}: expected the bundle {bundle_id} that the run began with, found {bundle.bundle_id}"
        )
    return Predictor(
        bundle,
        device=options.device,
        batch_size=options.batch_size,
        decode_threads=options.threads,
        views=options.views,
        precision=options.precision,
        is_compiled=options.compile,
    )


class LossScorer:
    """Predicts the loss of every row of `in_flight_schema` rows; an actor's class under Ray, a plain object without.

    A batch that kills the process is tried a second time, and then row by row: the row that kills it once more ends as
    `crashed`. When the run is to stop, batches come back without rows.

    Args:
        model: where the bundle lies; loaded here, on the machine that computes, rather than shipped.
        options: how to compute, and what to write.
        log: told of every batch.
        metadata: columns of the pool that the scores keep.
        bundle_id: which bundle it must be: a process that starts late must not score with another.

    Raises:
        InputError: there is no bundle, or another one.
    """

    def __init__(
        self,
        model: Location,
        *,
        options: ScoringOptions,
        log: Log,
        metadata: pa.Schema = NO_METADATA,
        bundle_id: str | None = None,
    ) -> None:
        self._predictor = make_predictor(model, options, bundle_id=bundle_id)
        self._log = log
        self._must_stop = False
        self._seconds: dict[str, float] = {}
        self.schema = scores_schema(
            metadata=metadata,
            num_keypoints=self._predictor.spec.skeleton.num_keypoints if options.keypoints else None,
            embedding_dim=self._predictor.embedding_dim if options.embeddings else None,
        ).append(pa.field(FILE_ID, pa.dictionary(pa.int32(), pa.string())))

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One scores row for each pool row, in order: a predicted loss or the reason why there is none."""
        if self._must_stop or not len(rows):
            return self.schema.empty_table()
        batch = _name_of(rows)
        if self._log.begin(batch) < _TRIES_TOGETHER:
            scores = self._score(rows)
        else:
            scores = pa.concat_tables([self._score_alone(rows.slice(row, 1)) for row in range(len(rows))])
        self._report(scores)
        self._must_stop = self._log.finish(batch)
        return scores

    def _score_alone(self, row: pa.Table) -> pa.Table:
        name = f"{_name_of(row)} alone"
        if self._log.begin_row(name):
            return self._failed(row, CRASHED)
        scores = self._score(row)
        self._log.finish(name)
        return scores

    def _score(self, rows: pa.Table) -> pa.Table:
        found = self._predictor.predict(image_buffers(rows), boxes(rows))
        errors = pc.coalesce(rows[READ_ERROR].combine_chunks(), pa.array(found.errors, pa.string()))
        failed = errors.is_valid().to_numpy(zero_copy_only=False)
        values = [
            rows[field.name]
            if field.name in rows.column_names
            else errors
            if field.name == "error"
            else _column(_values(found, field.name), failed, is_list=pa.types.is_fixed_size_list(field.type))
            for field in self.schema
        ]
        return pa.table(values, schema=self.schema)

    def _failed(self, rows: pa.Table, reason: str) -> pa.Table:
        values = [
            rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
            for field in self.schema
        ]
        values[self.schema.get_field_index("error")] = pa.array([reason] * len(rows), pa.string())
        return pa.table(values, schema=self.schema)

    def _report(self, scores: pa.Table) -> None:
        errors = pc.value_counts(scores["error"].drop_null())
        self._log.add(len(scores), {item["values"].as_py(): item["counts"].as_py() for item in errors})
        for stage, seconds in self._predictor.seconds.items():
            self._log.add_seconds(stage, seconds - self._seconds.get(stage, 0.0))
        self._seconds = dict(self._predictor.seconds)


def _name_of(rows: pa.Table) -> str:
    return f"{rows['pool_file'][0]}:{rows['pool_row'][0]}+{len(rows)}"


def _values(found: Predictions, column: str) -> np.ndarray:
    """(N, ...) the quantity that a column of scores holds: that of its name, but for two."""
    if column == "keypoints":
        return np.dstack([found.keypoints, found.peaks])
    return np.asarray(getattr(found, "miss" if column == "keypoint_miss" else column))


def _column(values: np.ndarray, failed: np.ndarray, *, is_list: bool) -> pa.Array:
    """(N, ...) as numbers, or as fixed-size lists of float16; null where failed or unknown."""
    flat = values.reshape(len(failed), math.prod(values.shape[1:]))
    is_null = failed | np.isnan(flat[:, 0])
    if not is_list:
        return pa.array(flat[:, 0], mask=is_null)
    halves = pa.array(flat.astype(np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(halves, flat.shape[1], mask=pa.array(is_null))
