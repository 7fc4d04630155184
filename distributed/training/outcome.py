"""The outputs of a training: after each epoch what watchers read and the newest bundle, at the end the one that counts.

OUT/metrics.jsonl    a line an epoch, and the same in OUT/tensorboard
OUT/last             the bundle after the newest epoch
OUT                  the one with the least loss on the validation rows, or the last without such; calibrated, with its
                     metrics

The last is published by whoever holds the lease; until then it lies below the checkpoints.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from distributed.evaluation.rows import evaluate_rows
from distributed.evaluation.summary import calibrate, summarise
from distributed.storage.bundles import write_bundle
from distributed.storage.location import Location, read_bytes, write_bytes
from distributed.tables.manifest import Manifest
from distributed.tables.reader import plan_bins
from distributed.training.checkpoint import FOLDER, OUTCOME, TrainState, load_weights
from distributed.training.options import TrainingJob
from distributed.training.rank import Rank
from distributed.training.teaching import teach_head
from model.bundle import Bundle, dump_bundle
from model.description import BUNDLE_FILE, WEIGHTS_FILE
from model.pose_model import PoseModel
from model.roofline import flops_per_image

LAST = "last"
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FILE = "tensorboard/events.out.tfevents.0.lossight"
_TIMES = frozenset({"seconds", "ended_at"})  # the bundle's id must not depend on them


def validate(job: TrainingJob, rank: Rank, model: PoseModel) -> dict[str, Any]:
    """Loss, PCK and Spearman correlation on all validation rows, as an epoch's entries; nothing without such rows."""
    if job.validation is None:
        return {}
    rank.take_from_first(model.buffers())  # batch norms have seen other images on each rank; the first's are kept
    found = summarise(_evaluate(job, job.validation, rank, model), spec=job.spec)
    return {
        "validation_loss": found["mean_true_loss"],
        "validation_pck": found["pck"],
        "validation_spearman": found["spearman"]["predicted_loss"],
    }


def write_journal(out: Location, history: Sequence[dict[str, Any]]) -> None:
    """Writes metrics.jsonl and a TensorBoard event file with every number of every epoch.

    Both are made anew each time: an epoch that was done twice, since a worker died in between, is in them once.
    """
    lines = [json.dumps(epoch, sort_keys=True) for epoch in history]
    write_bytes(out.join(METRICS_FILE), "\n".join([*lines, ""]).encode())
    write_bytes(out.join(TENSORBOARD_FILE), _events(history))


def write_last(job: TrainingJob, model: PoseModel, state: TrainState) -> None:
    """Writes the bundle after the newest epoch; a keypoint head in it is not taught yet."""
    metrics = {"history": _timeless(state.history)}
    files = dump_bundle(model, training=_origin(job, state, epoch=state.epoch), metrics=metrics)
    write_bundle(job.out.join(LAST), files)


def write_outcome(job: TrainingJob, rank: Rank, model: PoseModel, state: TrainState) -> None:
    """Chooses the best weights, teaches and calibrates their head, and leaves the bundle for `publish_outcome`.

    A keypoint head, which learns few numbers, is calibrated on the rows that taught it: they are many. On the demo's
    300 validation rows, of a few drives, the failures to expect of the pool were off by half. Other heads, which have
    fitted their rows, are calibrated on the validation rows.
    """
    metrics: dict[str, Any] = {"history": _timeless(state.history)}
    epoch = state.epoch
    if state.best is not None and state.best_epoch is not None:
        model, epoch = PoseModel(job.spec), state.best_epoch
        load_weights(job.out, state.best, model)
        model.to(rank.device)
    calibration = teach_head(job, rank, model)
    if job.validation is not None:
        evaluated = _evaluate(job, job.validation, rank, model)
        metrics["validation"] = summarise(evaluated, spec=job.spec)
        calibration = calibration or calibrate(evaluated)
    if rank.is_first:
        if not state.history:
            write_journal(job.out, ())
        flops = flops_per_image(model, input_size=job.spec.input_size)
        training = {**_origin(job, state, epoch=epoch), "flops_per_image": flops}
        files = dump_bundle(model, training=training, metrics=metrics, calibration=calibration)
        write_bundle(job.out.join(FOLDER, OUTCOME), files)


def publish_outcome(job: TrainingJob) -> None:
    """Puts the bundle where the training's output is."""
    place = job.out.join(FOLDER, OUTCOME)
    write_bundle(job.out, {name: read_bytes(place.join(name)) for name in (WEIGHTS_FILE, BUNDLE_FILE)})


def _evaluate(job: TrainingJob, rows: Manifest, rank: Rank, model: PoseModel) -> pa.Table:
    """Every validation row once: each rank evaluates its share, and all have all results.

    The model is left in evaluation mode.
    """
    bins = plan_bins(rows.segments, max_bytes=1)[rank.index :: rank.world_size]
    mine = bins and evaluate_rows(
        Bundle(model=model, bundle_id=""),
        rows,
        bins=bins,
        device=str(rank.device),
        decode_threads=job.options.decode_threads,
        is_compiled=False,  # it would take longer than an epoch's few batches
    )
    return pa.concat_tables([table for table in rank.gather(mine) if table])


def _origin(job: TrainingJob, state: TrainState, *, epoch: int) -> dict[str, Any]:
    """Provenance of a bundle."""
    unreadable: Counter[str] = Counter()
    for entry in state.history:
        unreadable.update(entry["unreadable"])
    return {
        "labelled_fingerprint": job.labelled.fingerprint,
        "validation_fingerprint": job.validation and job.validation.fingerprint,
        "num_rows": job.labelled.num_rows,
        "options": job.options.decisive(),
        "epoch": epoch,
        "unreadable_per_epoch": {reason: count / len(state.history) for reason, count in sorted(unreadable.items())},
    }


def _timeless(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name not in _TIMES} for entry in history]


def _events(history: Sequence[dict[str, Any]]) -> bytes:
    from tensorboardX import SummaryWriter  # takes a while, and only training needs it

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for epoch in history:
                for name, value in epoch.items():
                    if isinstance(value, int | float) and name not in ("epoch", "ended_at"):
                        writer.add_scalar(name, value, epoch["epoch"], walltime=epoch["ended_at"])
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
