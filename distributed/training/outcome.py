"""What a training leaves: the last bundle and the best after each epoch, and the one that counts at the end.

OUT/last     the bundle after the newest epoch      OUT/best     the one with the least loss on the validation rows
OUT          the best, or the last without validation; calibrated, and with its metrics
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from distributed.evaluation.rows import evaluate_rows
from distributed.evaluation.summary import calibrate, summarise
from distributed.storage.bundles import read_bundle, write_bundle
from distributed.tables.manifest import Manifest
from distributed.tables.reader import plan_bins
from distributed.training.checkpoint import TrainState
from distributed.training.options import HOW, TrainingJob
from distributed.training.rank import Rank
from model.bundle import Bundle, dump_bundle, load_bundle
from model.pose_model import PoseModel

BEST, LAST = "best", "last"
_TIMES = frozenset({"seconds", "ended_at"})  # the bundle's id must not depend on them


def validate(job: TrainingJob, rank: Rank, model: PoseModel) -> dict[str, Any]:
    """Loss, PCK and Spearman correlation on all validation rows, as an epoch's entries; nothing without such rows."""
    if job.validation is None:
        return {}
    found = summarise(_evaluate(job, job.validation, rank, _snapshot(model)), spec=job.spec)
    return {
        "validation_loss": found["mean_true_loss"],
        "validation_pck": found["pck"],
        "validation_spearman": found["spearman"]["predicted_loss"],
    }


def write_best(job: TrainingJob, model: PoseModel, state: TrainState, *, epoch: int) -> None:
    """Keeps the bundle as the best so far."""
    _write(job, model, state.history, epoch=epoch, name=BEST)


def write_last(job: TrainingJob, model: PoseModel, state: TrainState, *, epoch: int) -> None:
    """Keeps the bundle as the newest."""
    _write(job, model, state.history, epoch=epoch, name=LAST)


def write_outcome(job: TrainingJob, rank: Rank, model: PoseModel, state: TrainState) -> None:
    """Chooses the bundle, calibrates it on the validation rows, and writes it where the training's output is."""
    metrics: dict[str, Any] = {"history": _timeless(state.history)}
    calibration, epoch = None, state.epoch
    if job.validation is not None:
        if state.best_epoch is not None:
            best = read_bundle(job.out.join(BEST))
            model, epoch = best.model, best.training["epoch"]
        evaluated = _evaluate(job, job.validation, rank, _snapshot(model))
        metrics["validation"] = summarise(evaluated, spec=job.spec)
        calibration = calibrate(evaluated)
    if rank.is_first:
        training = _origin(job, state.history, epoch=epoch)
        write_bundle(job.out, dump_bundle(model, training=training, metrics=metrics, calibration=calibration))


def _evaluate(job: TrainingJob, rows: Manifest, rank: Rank, bundle: Bundle) -> pa.Table:
    """Every validation row once: each rank evaluates its share, and all have all results."""
    bins = plan_bins(rows.segments, max_bytes=1)[rank.index :: rank.world_size]
    mine = bins and evaluate_rows(
        bundle,
        rows,
        bins=bins,
        device=str(rank.device),
        decode_threads=job.options.decode_threads,
        is_compiled=False,  # it would take longer than an epoch's few batches
    )
    return pa.concat_tables([table for table in rank.gather(mine) if table])


def _snapshot(model: PoseModel) -> Bundle:
    """A copy for evaluation: the model itself goes on training."""
    return load_bundle(dump_bundle(model, training={}, metrics={}))


def _write(job: TrainingJob, model: PoseModel, history: Sequence[dict[str, Any]], *, epoch: int, name: str) -> None:
    metrics = {"history": _timeless(history)}
    write_bundle(job.out.join(name), dump_bundle(model, training=_origin(job, history, epoch=epoch), metrics=metrics))


def _origin(job: TrainingJob, history: Sequence[dict[str, Any]], *, epoch: int) -> dict[str, Any]:
    unreadable: Counter[str] = Counter()
    for entry in history:
        unreadable.update(entry["unreadable"])
    return {
        "labelled_fingerprint": job.labelled.fingerprint,
        "validation_fingerprint": job.validation and job.validation.fingerprint,
        "num_rows": job.labelled.num_rows,
        "options": {name: value for name, value in asdict(job.options).items() if name not in HOW},
        "epoch": epoch,
        "unreadable_per_epoch": {reason: count / len(history) for reason, count in sorted(unreadable.items())},
    }


def _timeless(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in _TIMES} for entry in history]
