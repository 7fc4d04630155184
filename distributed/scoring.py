"""Scoring a pool: the one line from Parquet row to scores row, under Ray or in the calling process."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from distributed.bundles import read_bundle
from distributed.pool import BIN_BYTES, Manifest, freeze_pool, plan_bins, read_file
from distributed.progress import Progress
from distributed.runs import begin_run, publish_run, read_run
from distributed.schema import POOL, SCORES
from distributed.scorer import LossScorer
from distributed.scores import ScoresPart, write_part
from distributed.storage import Location, locate, write_bytes
from model.errors import InputError, RunFailedError
from model.predictor import check_device

MAX_ROW_GROUP_BYTES = 512 * 2**20  # uncompressed; a row group is read at once
_MANIFEST_FILE = "manifest.json"
_ATTEMPT = "attempt-"
_BINS_PER_ACTOR = 4  # with fewer, the last bin leaves actors idle
_BATCHES_PER_CALL = 4  # device batches in one call of an actor: decoding overlaps with computing inside a call


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """How the work is spread; nothing here changes a score."""

    actors: int = 1
    cpus_per_actor: float = 2
    gpus_per_actor: float = 0
    batch_size: int = 64
    decode_threads: int = 2
    in_process: bool = False  # without Ray, in the calling process: a breakpoint works

    @property
    def device(self) -> str:
        """Where a scorer computes."""
        return "cuda" if self.gpus_per_actor else "cpu"


def score_pool(
    pool: str, *, model: str, out: str, options: ScoringOptions, config: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Scores every row of a pool and publishes the scores table; returns its record (run.json).

    Every pool row ends as exactly one scores row: with a predicted loss, or with the reason why there is none. A run
    that was stopped starts afresh, under an attempt of its own: what another attempt wrote is never touched, so that a
    second run of the same output can't spoil the first. A published run is returned as it is, with `was_done`.

    Args:
        pool: location of a pool or labelled table.
        model: location of a model bundle.
        out: location of the scores.
        options: how the work is spread.
        config: the resolved configuration, kept beside the output; what decides the scores is added here.
        progress: told of every batch.

    Raises:
        InputError: pool, bundle or output cannot be used.
        RunFailedError: storage or compute failed; the same call starts again.
    """
    bundle = locate(model)
    bundle_id = read_bundle(bundle).bundle_id
    manifest = freeze_pool(locate(pool))
    _check_readable_in_pieces(manifest)
    if options.in_process:
        check_device(options.device)
    target = locate(out)
    identity = {"bundle_id": bundle_id, "pool_fingerprint": manifest.fingerprint}
    if not begin_run(target, config, inputs=identity, ignored=frozenset(config)):
        return {**read_run(target, expected="scores"), "was_done": True}
    write_bytes(target.join(_MANIFEST_FILE), json.dumps(manifest.as_json(), indent=1).encode())

    started = time.monotonic()
    score = _score_in_process if options.in_process else _score_on_ray
    parts = score(manifest, model=bundle, out=target, options=options, progress=progress)
    _reconcile(manifest, parts)
    return publish_run(target, _record(manifest, parts, seconds=time.monotonic() - started, **identity))


def _check_readable_in_pieces(manifest: Manifest) -> None:
    """Refuses row groups that no actor could hold.

    Raises:
        InputError: names the file, the most and the found.
    """
    for file in manifest.files:
        largest = max(file.row_group_bytes, default=0)
        if largest > MAX_ROW_GROUP_BYTES:
            raise InputError(
                f"{manifest.location.join(file.path).uri}: expected row groups of at most "
                f"{MAX_ROW_GROUP_BYTES >> 20} MiB, found {largest >> 20} MiB: ingest it again"
            )


def _score_on_ray(
    manifest: Manifest, *, model: Location, out: Location, options: ScoringOptions, progress: Progress
) -> list[ScoresPart]:
    from distributed.cluster import actor_pool, read_source, watched
    from distributed.sink import ScoresSink
    from distributed.source import PoolSource

    num_bytes = sum(bin_.num_bytes for bin_ in plan_bins(manifest))
    max_bytes = min(BIN_BYTES, num_bytes // (_BINS_PER_ACTOR * options.actors))
    bins = plan_bins(manifest, max_bytes=max_bytes)
    sink = ScoresSink(out, attempt=_new_attempt())
    with watched("score", total=manifest.num_rows, progress=progress) as count_rows:
        (
            read_source(PoolSource(manifest, bins, columns=POOL.names))
            .map_batches(
                LossScorer,
                fn_constructor_kwargs={**_scorer_arguments(model, options), "count_rows": count_rows},
                batch_size=_BATCHES_PER_CALL * options.batch_size,
                batch_format="pyarrow",
                zero_copy_batch=True,
                **actor_pool(size=options.actors, cpus=options.cpus_per_actor, gpus=options.gpus_per_actor),
            )
            .write_datasink(sink)
        )
    return sink.parts


def _score_in_process(
    manifest: Manifest, *, model: Location, out: Location, options: ScoringOptions, progress: Progress
) -> list[ScoresPart]:
    done = Counter[str]()

    def count_rows(num_rows: int, num_errors: int) -> None:
        done.update(rows=num_rows, errors=num_errors)
        progress("score", done["rows"], manifest.num_rows, num_errors=done["errors"])

    scorer = LossScorer(**_scorer_arguments(model, options), count_rows=count_rows)
    attempt = _new_attempt()
    parts = []
    for index, file in enumerate(manifest.files):
        scores = [scorer(rows) for rows in read_file(manifest, file, columns=POOL.names)]
        parts.append(write_part(out, f"{attempt}/part-{index:06d}.parquet", _concat(scores)))
    return parts


def _concat(scores: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(scores) if scores else SCORES.empty_table()


def _scorer_arguments(model: Location, options: ScoringOptions) -> dict[str, Any]:
    return {
        "model": model,
        "batch_size": options.batch_size,
        "device": options.device,
        "decode_threads": options.decode_threads,
    }


def _new_attempt() -> str:
    return f"{_ATTEMPT}{uuid.uuid4().hex[:8]}"


def _reconcile(manifest: Manifest, parts: Sequence[ScoresPart]) -> None:
    """Rows in = rows out, for each pool file.

    Raises:
        RunFailedError: names a file whose rows were lost or doubled.
    """
    written = Counter[str]()
    for part in parts:
        written.update(part.rows_by_file)
    for file in manifest.files:
        if written[file.path] != file.num_rows:
            raise RunFailedError(f"{file.path}: expected {file.num_rows} scores rows, found {written[file.path]}")


def _record(manifest: Manifest, parts: Sequence[ScoresPart], *, seconds: float, **identity: str) -> dict[str, Any]:
    errors = Counter[str]()
    for part in parts:
        errors.update(part.errors)
    num_failed = sum(errors.values())
    # The rows of a file that can't be opened are unknown; it counts as a file of average size.
    num_lost = len(manifest.bad_files) * manifest.num_rows / len(manifest.files)
    return {
        "kind": "scores",
        **identity,
        "parts": sorted(part.path for part in parts if part.num_rows),
        "num_rows": manifest.num_rows,
        "num_scored": manifest.num_rows - num_failed,
        "errors": dict(sorted(errors.items())),
        "bad_files": {file.path: file.reason for file in manifest.bad_files},
        "error_rate": (num_failed + num_lost) / (manifest.num_rows + num_lost),
        "seconds": round(seconds, 3),
        "images_per_second": round(manifest.num_rows / seconds, 1),
    }
