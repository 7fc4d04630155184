"""Training a model bundle: in the calling process, on one Ray Train worker or on many; `fitting` has the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from distributed.runs.logbook import Logbook, State
from distributed.runs.progress import Progress
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.storage.location import delete_folders, locate, read_bytes
from distributed.tables.labelled import COLUMNS, count_labels, freeze_labelled, shuffled_rows
from distributed.tables.reader import plan_bins, read_bin
from distributed.tables.skeletons import check_skeleton, choose_skeleton, fingerprint_of
from distributed.training.fitting import Rank, TrainingJob, TrainingOptions, fit_rank
from model.bundle import BUNDLE_FILE
from model.errors import InputError
from model.pose_model import make_spec, new_model
from model.predictor import check_device

_RAY_FOLDER = "_ray_train"  # Ray Train's own records, below the output while it works
_SHUFFLE_ROWS = 4096  # some 50 MB of JPEG: holds many drives at once


def train_model(
    labelled: str,
    *,
    out: str,
    options: TrainingOptions,
    validation: str | None = None,
    skeleton: str | None = None,
    config: dict[str, Any],
    ignored: frozenset[str] = frozenset(),
    progress: Progress,
) -> dict[str, Any]:
    """Fits a pose model and its loss head and publishes a bundle; returns the run's record (run.json).

    Args:
        labelled: location of a labelled table.
        out: location of the bundle.
        options: what to train, and how.
        validation: location of a labelled table that the metrics in the bundle are measured on.
        skeleton: see `choose_skeleton`.
        config: the resolved configuration, kept beside the bundle.
        ignored: keys of `config` that don't decide the result.
        progress: told of every batch; rows count once an epoch.

    Raises:
        InputError: a table or the output cannot be used.
        RunFailedError: storage or compute failed.
    """
    body = choose_skeleton(locate(labelled), named=skeleton)
    if validation:
        check_skeleton(locate(validation), body)
    spec = make_spec(options.estimator, head=options.head, skeleton=body)
    count = spec.skeleton.num_keypoints
    manifest = freeze_labelled(locate(labelled), expected_keypoints=count)
    job = TrainingJob(
        labelled=manifest,
        validation=freeze_labelled(locate(validation), expected_keypoints=count) if validation else None,
        out=locate(out),
        spec=spec,
        options=options,
    )
    _check_trainable(job)
    if not begin_run(job.out, config, inputs=_fingerprints(job), ignored=ignored):
        return {**read_run(job.out, expected="bundle"), "was_done": True}
    started = time.monotonic()
    (_train_in_process if options.workers == 0 else _train_on_ray)(job, progress)
    return publish_run(job.out, _record(job, seconds=time.monotonic() - started))


def _fingerprints(job: TrainingJob) -> dict[str, str | None]:
    validation = job.validation.fingerprint if job.validation else None
    return {
        "labelled_fingerprint": job.labelled.fingerprint,
        "validation_fingerprint": validation,
        "skeleton_fingerprint": fingerprint_of(job.spec.skeleton),
    }


def _check_trainable(job: TrainingJob) -> None:
    unlabelled = [
        name
        for name, count in zip(job.spec.skeleton.keypoint_names, count_labels(job.labelled), strict=True)
        if not count
    ]
    if unlabelled:
        raise InputError(f"{job.labelled.location.uri}: expected each keypoint labelled somewhere, never: {unlabelled}")
    new_model(job.spec, estimator=job.options.estimator)  # what can't be built, or fits no head, is refused here
    if job.options.workers == 0:
        check_device(job.options.device)
    if job.options.batch_size < 2 * job.options.workers:
        raise InputError(f"--batch-size: expected two images a worker, found {job.options.batch_size} for all")
    if job.labelled.num_rows < max(1, job.options.workers) * 2:
        raise InputError(f"{job.labelled.location.uri}: expected two rows a worker, found {job.labelled.num_rows}")


def _train_in_process(job: TrainingJob, progress: Progress) -> None:
    log, tell = Logbook(), _teller(job, progress)

    def count_rows(num_rows: int, errors: Mapping[str, int], note: str) -> None:
        log.add(num_rows, errors, note)
        tell(log.read())

    def read_epoch(epoch: int) -> Iterator[pa.Table]:
        return shuffled_rows(
            job.labelled,
            batch_size=job.options.batch_size,
            buffer_rows=_SHUFFLE_ROWS,
            seed=job.options.seed * 1_000_003 + epoch,
        )

    fit_rank(
        job,
        Rank(
            index=0,
            world_size=1,
            device=torch.device(job.options.device),
            wrap=lambda model: model,
            read_epoch=read_epoch,
            count_rows=count_rows,
            end_epoch=lambda _: None,
        ),
    )


def _teller(job: TrainingJob, progress: Progress) -> Callable[[State], None]:
    def tell(state: State) -> None:
        total = job.options.epochs * job.labelled.num_rows
        progress("train", state.num_rows, total, num_errors=sum(state.errors.values()), note=state.note)

    return tell


def _train_on_ray(job: TrainingJob, progress: Progress) -> None:
    from distributed.cluster import check_resources, read_source, train_on_workers, watched
    from distributed.tables.source import PoolSource

    options = job.options
    check_resources(workers=options.workers, cpus=options.cpus_per_worker, gpus=options.gpus_per_worker)
    bins = plan_bins(job.labelled.segments, max_bytes=1)
    with watched(_teller(job, progress)) as log:
        train_on_workers(
            _ray_worker,
            {"job": job, "log": log},
            dataset=read_source(PoolSource(bins, read=partial(read_bin, job.labelled.location, columns=COLUMNS))),
            workers=options.workers,
            cpus=options.cpus_per_worker,
            gpus=options.gpus_per_worker,
            records=job.out.join(_RAY_FOLDER),
        )
    delete_folders(job.out, prefix=_RAY_FOLDER)


def _ray_worker(shared: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    import ray.train
    import ray.train.torch

    job: TrainingJob = shared["job"]
    context = ray.train.get_context()
    shard = ray.train.get_dataset_shard("train")
    world_size = context.get_world_size()

    def read_epoch(epoch: int) -> Iterator[pa.Table]:
        return iter(
            shard.iter_batches(
                batch_size=job.options.batch_size // world_size,
                batch_format="pyarrow",
                local_shuffle_buffer_size=_SHUFFLE_ROWS // world_size,
                local_shuffle_seed=job.options.seed * 1_000_003 + epoch,
            )
        )

    fit_rank(
        job,
        Rank(
            index=context.get_world_rank(),
            world_size=world_size,
            device=ray.train.torch.get_device(),
            wrap=ray.train.torch.prepare_model,
            read_epoch=read_epoch,
            count_rows=shared["log"].add,
            end_epoch=ray.train.report,
        ),
    )


def _record(job: TrainingJob, *, seconds: float) -> dict[str, Any]:
    description = json.loads(read_bytes(job.out.join(BUNDLE_FILE)))
    num_images = job.options.epochs * job.labelled.num_rows
    return {
        "kind": "bundle",
        "num_rows": job.labelled.num_rows,
        "bad_files": {file.path: file.reason for file in job.labelled.bad_files},
        "metrics": description["metrics"],
        "unreadable_per_epoch": description["training"]["unreadable_per_epoch"],
        "seconds": round(seconds, 3),
        "images_per_second": round(num_images / seconds, 1),
    }
