"""Training a model bundle: in the calling process, on one Ray Train worker or on many; `fitting` has the loop.

PyTorch is imported once it is known that there is something to train.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from distributed.evaluation.held_out import check_apart, write_trained_ids
from distributed.runs.lease import hold
from distributed.runs.logbook import State
from distributed.runs.progress import Progress, silent
from distributed.runs.record import RUN_FILE, begin_run, check_run, publish_run, read_run
from distributed.storage.location import locate, read_bytes
from distributed.tables.labelled import count_labels, freeze_labelled, freeze_with_skeleton
from distributed.tables.references import find_root
from distributed.training.options import TrainingJob, TrainingOptions
from model.calibration import read_calibration
from model.description import BUNDLE_FILE, find_doubts
from model.errors import InputError, StoppedError

if TYPE_CHECKING:
    from model.pose_model import PoseModel


def train_model(
    labelled: str,
    *,
    out: str,
    options: TrainingOptions,
    validation: str | None = None,
    image_root: str | None = None,
    skeleton: str | None = None,
    config: dict[str, Any] | None = None,
    ignored: frozenset[str] = frozenset(),
    address: str | None = None,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Fits a pose model and its loss head and publishes a bundle; returns the run's record (run.json).

    A training that was killed, wherever, goes on from its last checkpoint when called again.

    Args:
        labelled: location of a labelled table.
        out: location of the bundle.
        options: what to train, and how.
        validation: location of a labelled table that the best epoch is chosen by, and the bundle calibrated on.
        image_root: the folder that references of both tables are below; None: each table's own.
        skeleton: see `freeze_with_skeleton`.
        config: the resolved configuration, kept beside the bundle; None: the options.
        ignored: keys of `config` that don't decide the result.
        address: the Ray cluster; one is started on this machine if it is None. Of no use for 0 workers.
        progress: told of every batch; rows count once an epoch.
        should_stop: asked all the time; once it says yes, a checkpoint is left.

    Raises:
        InputError: a table or the output cannot be used, or the training can't end in anything useful.
        LeaseError: another run of this output is at work.
        StoppedError: `should_stop` said yes; the same call goes on.
        RunFailedError: storage or compute failed; the same call goes on.
    """
    root = find_root(image_root)
    table, body = freeze_with_skeleton(locate(labelled), named=skeleton, image_root=root)
    judged = freeze_labelled(locate(validation), skeleton=body, image_root=root) if validation else None
    inputs = {
        "labelled_fingerprint": table.fingerprint,
        "validation_fingerprint": judged.fingerprint if judged else None,
        "skeleton_fingerprint": body.fingerprint,
    }
    config, target = options.resolved() if config is None else config, locate(out)
    check_run(target, config, inputs=inputs, ignored=ignored)
    if target.join(RUN_FILE).exists:  # before a cluster is asked for, and PyTorch imported
        return {**read_run(target, expected="bundle"), "was_done": True}
    from distributed.training.checkpoint import delete_checkpoints
    from distributed.training.outcome import publish_outcome
    from model.pose_model import absolute_estimator, make_spec

    options = options.model_copy(update={"estimator": absolute_estimator(options.estimator)})
    spec = make_spec(options.estimator, method=options.method, skeleton=body, is_frame_reduced=options.reduce_frames)
    job = TrainingJob(labelled=table, validation=judged, out=target, spec=spec, options=options)
    check_trainable(job)
    if options.max_workers:
        from distributed.cluster.connection import connect
        from distributed.cluster.resources import check_resources

        connect(address)
        check_resources(workers=options.min_workers, cpus=options.cpus_per_worker, gpus=options.gpus_per_worker)
    with hold(job.out) as lease:
        should_stop = lease.ends(should_stop)
        if not begin_run(job.out, config, inputs=inputs, ignored=ignored):
            return {**read_run(job.out, expected="bundle"), "was_done": True}
        started, tell = time.monotonic(), _teller(job, progress)
        if options.max_workers:
            from distributed.training.workers import fit_on_workers

            fit_on_workers(job, tell, should_stop, attempt=lease.attempt)
        else:
            from distributed.training.in_process import fit_in_process

            fit_in_process(job, tell, should_stop, attempt=lease.attempt)
        if should_stop():
            raise StoppedError(f"{out}: stopped; a checkpoint is kept, the same command goes on")
        lease.check()
        write_trained_ids(job.out, job.labelled)
        publish_outcome(job)
        record = publish_run(job.out, _record(job, seconds=time.monotonic() - started))
        delete_checkpoints(job.out)
        return record


def check_trainable(job: TrainingJob) -> None:
    """Passes if the options fit each other and the tables: checked before a training costs anything.

    Raises:
        InputError: they don't; says what was expected and what was found.
    """
    from model.pose_model import new_model
    from model.predictor import check_device

    options, uri, workers = job.options, job.labelled.location.uri, max(1, job.options.max_workers)
    if not options.max_workers:
        check_device(options.device)
    if options.batch_size < 2 * workers * options.accumulate:
        accumulated = f" and {options.accumulate} batches a step" if options.accumulate > 1 else ""
        raise InputError(
            f"--batch-size: expected two images a worker, for {workers} workers{accumulated}, "
            f"found {options.batch_size} for all"
        )
    if options.max_workers > 1 and options.gpus_per_worker % 1:
        raise InputError(
            f"--gpus-per-worker: expected whole GPUs for more than one worker, found {options.gpus_per_worker:g}"
        )
    if options.sync_batchnorm and not options.gpus_per_worker:
        raise InputError("--sync-batchnorm: expected --gpus-per-worker, found CPUs, which PyTorch has no such norm for")
    if options.precision == "float16" and not options.gpus_per_worker:
        raise InputError("--precision float16: expected --gpus-per-worker, found CPUs; bfloat16 works there")
    if options.patience is not None and job.validation is None:
        raise InputError("--patience: expected --validation, whose loss tells when to end, found none")
    model = new_model(job.spec, estimator=options.estimator)  # raises if it can't be built, or fits no head
    if not options.epochs:
        _check_fitted(job, model)
    if job.labelled.num_rows < 2 * workers:
        raise InputError(f"{uri}: expected two rows a worker, found {job.labelled.num_rows} for {workers}")
    counts = zip(job.spec.skeleton.keypoint_names, count_labels(job.labelled), strict=True)
    if unlabelled := [name for name, count in counts if not count]:
        raise InputError(f"{uri}: expected each keypoint labelled somewhere, never: {unlabelled}")
    if job.validation is not None:
        check_apart(job.labelled, job.validation)


def _check_fitted(job: TrainingJob, model: PoseModel) -> None:
    """Passes if the model is of use without an epoch: all of the estimator is fitted, and its head is taught apart."""
    from model.hourglass import StackedHourglass
    from model.vitpose import VitPose

    estimator, skeleton = job.options.estimator, job.spec.skeleton
    if job.spec.method != "keypoint":
        raise InputError(f"--epochs 0: expected --method keypoint, whose head is taught apart, found {job.spec.method}")
    if isinstance(model.estimator, StackedHourglass):
        raise InputError(f"--epochs 0: expected an estimator with weights, such as vitpose:FOLDER, found {estimator}")
    if isinstance(model.estimator, VitPose) and not model.estimator.is_fitted:
        raise InputError(
            f"--epochs 0: expected a checkpoint of the {skeleton.num_keypoints} keypoints of {skeleton.name}, "
            f"found another number in {estimator}: its last layer has to be trained"
        )


def _teller(job: TrainingJob, progress: Progress) -> Callable[[State], None]:
    def tell(state: State) -> None:
        total = job.options.epochs * job.labelled.num_rows
        progress("train", state.num_rows, total, num_errors=sum(state.errors.values()), note=state.note)

    return tell


def _record(job: TrainingJob, *, seconds: float) -> dict[str, Any]:
    from distributed.training.outcome import METRICS_FILE

    description = json.loads(read_bytes(job.out.join(BUNDLE_FILE)))
    metrics, training = description["metrics"], description["training"]
    epochs = [json.loads(line) for line in read_bytes(job.out.join(METRICS_FILE)).splitlines()]
    num_images, epoch_seconds = (sum(epoch[name] for epoch in epochs) for name in ("num_rows", "seconds"))
    return {
        "kind": "bundle",
        "num_rows": job.labelled.num_rows,
        "num_dropped_per_epoch": max((entry["num_dropped"] for entry in metrics["history"]), default=0),
        "bad_files": {file.path: file.reason for file in job.labelled.bad_files},
        "epoch": training["epoch"],
        "metrics": metrics,
        "warnings": find_doubts(metrics, read_calibration(description["calibration"])),
        "unreadable_per_epoch": training["unreadable_per_epoch"],
        "seconds": round(seconds, 3),  # of this attempt
        # validation included, starts not
        "images_per_second": round(num_images / epoch_seconds, 1) if epochs else None,
    }
