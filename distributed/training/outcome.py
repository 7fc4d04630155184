"""What a training leaves: the last bundle after each epoch, the best so far, and the one that counts at the end.

OUT/last     the bundle after the newest epoch
OUT          the one with the least loss on the validation rows, or the last without such; calibrated, with its metrics

The second is written by whoever holds the lease; until then it lies below the checkpoints, as the best one so far does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from distributed.evaluation.rows import evaluate_rows
from distributed.evaluation.summary import calibrate, summarise
from distributed.storage.bundles import read_bundle, write_bundle
from distributed.storage.location import Location, read_bytes
from distributed.tables.manifest import Manifest
from distributed.tables.reader import plan_bins
from distributed.training.checkpoint import FOLDER, OUTCOME, TrainState
from distributed.training.options import TrainingJob
from distributed.training.rank import Rank
from distributed.training.teaching import teach_head
from model.bundle import BUNDLE_FILE, WEIGHTS_FILE, Bundle, dump_bundle, load_bundle
from model.pose_model import PoseModel

LAST = "last"
_TIMES = frozenset({"seconds", "ended_at"})  # the bundle's id must not depend on them


def validate(job: TrainingJob, rank: Rank, model: PoseModel) -> dict[str, Any]:
    """Loss, PCK and Spearman correlation on all validation rows, as an epoch's entries; nothing without such rows."""
    if job.validation is None:
        return {}
    rank.take_from_first(model.buffers())  # batch norms have seen other images on each rank; the first's are kept
    found = summarise(_evaluate(job, job.validation, rank, _snapshot(model)), spec=job.spec)
    return {
        "validation_loss": found["mean_true_loss"],
        "validation_pck": found["pck"],
        "validation_spearman": found["spearman"]["predicted_loss"],
    }


def best_name(*, epoch: int, attempt: int) -> str:
    """What a best bundle is called among the checkpoints: its own name, so that it replaces no other."""
    return f"best-e{epoch:04d}-a{attempt:04d}"


def write_best(job: TrainingJob, model: PoseModel, state: TrainState, *, epoch: int) -> None:
    """Keeps the bundle as the best so far, under the name that the state has for it."""
    _write(job, model, state.history, epoch=epoch, at=job.out.join(FOLDER, state.best or ""))


def write_last(job: TrainingJob, model: PoseModel, state: TrainState, *, epoch: int) -> None:
    """Keeps the bundle as the newest."""
    _write(job, model, state.history, epoch=epoch, at=job.out.join(LAST))


def write_outcome(job: TrainingJob, rank: Rank, model: PoseModel, state: TrainState) -> None:
    """Chooses the bundle, teaches and calibrates its head, and leaves it for `publish_outcome`.

    A keypoint head, which learns few numbers, is calibrated on the rows that taught it: they are many. On the demo's
    300 validation rows, of a few drives, the failures to expect of the pool were off by half. Other heads, which have
    fitted their rows, are calibrated on the validation rows.
    """
    metrics: dict[str, Any] = {"history": _timeless(state.history)}
    epoch = state.epoch
    if rank.is_first:  # once more: a kill may have come between its files
        write_last(job, model, state, epoch=epoch)
    if state.best is not None:
        best = read_bundle(job.out.join(FOLDER, state.best))
        model, epoch = best.model.to(rank.device), best.training["epoch"]
    calibration = teach_head(job, rank, model)
    if job.validation is not None:
        evaluated = _evaluate(job, job.validation, rank, _snapshot(model))
        metrics["validation"] = summarise(evaluated, spec=job.spec)
        calibration = calibration or calibrate(evaluated)
    if rank.is_first:
        training = _origin(job, state.history, epoch=epoch)
        files = dump_bundle(model, training=training, metrics=metrics, calibration=calibration)
        write_bundle(job.out.join(FOLDER, OUTCOME), files)


def publish_outcome(job: TrainingJob) -> None:
    """Puts the bundle where the training's output is."""
    place = job.out.join(FOLDER, OUTCOME)
    write_bundle(job.out, {name: read_bytes(place.join(name)) for name in (WEIGHTS_FILE, BUNDLE_FILE)})


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


def _write(job: TrainingJob, model: PoseModel, history: Sequence[dict[str, Any]], *, epoch: int, at: Location) -> None:
    metrics = {"history": _timeless(history)}
    write_bundle(at, dump_bundle(model, training=_origin(job, history, epoch=epoch), metrics=metrics))


def _origin(job: TrainingJob, history: Sequence[dict[str, Any]], *, epoch: int) -> dict[str, Any]:
    unreadable: Counter[str] = Counter()
    for entry in history:
        unreadable.update(entry["unreadable"])
    return {
        "labelled_fingerprint": job.labelled.fingerprint,
        "validation_fingerprint": job.validation and job.validation.fingerprint,
        "num_rows": job.labelled.num_rows,
        "options": job.options.decisive(),
        "epoch": epoch,
        "unreadable_per_epoch": {reason: count / len(history) for reason, count in sorted(unreadable.items())},
    }


def _timeless(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in _TIMES} for entry in history]
