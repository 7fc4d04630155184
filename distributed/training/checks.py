"""What is checked before a training costs anything: that its tables can teach, and that they are apart."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from distributed.tables.labelled import count_labels
from distributed.tables.manifest import Manifest
from distributed.tables.reader import plan_bins, read_bin
from distributed.training.options import TrainingJob
from model.errors import InputError
from model.pose_model import new_model
from model.predictor import check_device

_SHOWN = 3  # examples in a message


def check_trainable(job: TrainingJob) -> None:
    """Passes if the options fit each other and the tables.

    Raises:
        InputError: they don't; says what was expected and what was found.
    """
    _check_options(job)
    new_model(job.spec, estimator=job.options.estimator)  # what can't be built, or fits no head, is refused here
    num_rows, workers = job.labelled.num_rows, max(1, job.options.max_workers)
    if num_rows < 2 * workers:
        raise InputError(f"{job.labelled.location.uri}: expected two rows a worker, found {num_rows} for {workers}")
    unlabelled = [
        name
        for name, count in zip(job.spec.skeleton.keypoint_names, count_labels(job.labelled), strict=True)
        if not count
    ]
    if unlabelled:
        raise InputError(f"{job.labelled.location.uri}: expected each keypoint labelled somewhere, never: {unlabelled}")
    if job.validation is not None:
        _check_apart(job.labelled, job.validation)


def _check_options(job: TrainingJob) -> None:
    options, workers = job.options, max(1, job.options.max_workers)
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


def _check_apart(labelled: Manifest, validation: Manifest) -> None:
    """Refuses validation rows that are trained on: whatever is measured on them would be too good."""
    known = _ids(labelled)
    shared = pc.unique(_ids(validation).filter(pc.is_in(_ids(validation), value_set=known)))
    if len(shared):
        raise InputError(
            f"{validation.location.uri}: expected rows that are not trained on, "
            f"found {len(shared)} of {labelled.location.uri}: {shared[:_SHOWN].to_pylist()}"
        )


def _ids(manifest: Manifest) -> pa.ChunkedArray:
    columns = [
        rows["sample_id"].cast(pa.string())
        for bin_ in plan_bins(manifest.segments)
        for rows in read_bin(manifest.location, bin_, columns=["sample_id"])
    ]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
