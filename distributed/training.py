"""Training: one loop for the calling process, one Ray Train worker or many; a model bundle comes out.

The loop is `_fit_rank`. What differs between the three is a `Rank`: where its rows come from and what wraps the model.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from distributed.bundles import write_bundle
from distributed.evaluation import evaluate_rows, summarise
from distributed.labelled import COLUMNS, Collator, count_labels, freeze_labelled, shuffled_rows
from distributed.pool import Manifest, plan_bins
from distributed.progress import Progress
from distributed.runs import begin_run, publish_run, read_run
from distributed.storage import Location, delete_folders, locate, read_bytes
from model.augment import AUGMENTATIONS, AugmentationName
from model.bundle import BUNDLE_FILE, dump_bundle, load_bundle
from model.errors import InputError
from model.fit import Batch, FitOptions, RankingName, make_optimizer, make_schedule, train_step
from model.objective import Pairs
from model.pose_model import EstimatorName, HeadName, ModelSpec, PoseModel, make_spec
from model.skeleton import LSP

_RAY_FOLDER = "_ray_train"  # Ray Train's own records, below the output while it works
_SHUFFLE_ROWS = 4096  # some 50 MB of JPEG: holds many drives at once


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What to train, and how; see `jobs.train` for the words."""

    estimator: EstimatorName = "hourglass"
    head: HeadName = "conv"
    ranking: RankingName = "ll++"
    pairs: Pairs = "all"
    learning_rate: float = 1e-3
    head_learning_rate: float = 3e-4
    augmentation: AugmentationName = "paper"
    epochs: int = 80
    batch_size: int = 16  # of all workers together
    seed: int = 0
    workers: int = 1  # 0: in the calling process, without Ray
    cpus_per_worker: float = 2
    gpus_per_worker: float = 0
    decode_threads: int = 2

    @property
    def fit(self) -> FitOptions:
        """What the single-device code needs of it."""
        return FitOptions(
            ranking=self.ranking,
            pairs=self.pairs,
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
        )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What every rank must know; travels to the workers."""

    labelled: Manifest
    validation: Manifest | None
    out: Location
    spec: ModelSpec
    options: TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One training process among `world_size`."""

    index: int
    world_size: int
    device: torch.device
    wrap: Callable[[nn.Module], nn.Module]
    read_epoch: Callable[[int], Iterator[pa.Table]]  # epoch -> batches of rows
    count_rows: Callable[[int, int, str], None]  # rows, unreadable, note
    end_epoch: Callable[[dict[str, float]], None]


def train_model(
    labelled: str,
    *,
    out: str,
    options: TrainingOptions,
    validation: str | None = None,
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
        config: the resolved configuration, kept beside the bundle.
        ignored: keys of `config` that don't decide the result.
        progress: told of every batch; rows count once an epoch.

    Raises:
        InputError: a table or the output cannot be used.
        RunFailedError: storage or compute failed.
    """
    spec = make_spec(options.estimator, head=options.head, skeleton=LSP)
    count = spec.skeleton.num_keypoints
    manifest = freeze_labelled(locate(labelled), expected_keypoints=count)
    job = _Job(
        labelled=manifest,
        validation=freeze_labelled(locate(validation), expected_keypoints=count) if validation else None,
        out=locate(out),
        spec=spec,
        options=options,
    )
    _check_trainable(job)
    if not begin_run(job.out, {**config, "labelled_fingerprint": manifest.fingerprint}, ignored=ignored):
        return {**read_run(job.out, expected="bundle"), "was_done": True}
    started = time.monotonic()
    (_train_in_process if options.workers == 0 else _train_on_ray)(job, progress)
    return publish_run(job.out, _record(job, seconds=time.monotonic() - started))


def _check_trainable(job: _Job) -> None:
    unlabelled = [
        name
        for name, count in zip(job.spec.skeleton.keypoint_names, count_labels(job.labelled), strict=True)
        if not count
    ]
    if unlabelled:
        raise InputError(f"{job.labelled.location.uri}: expected each keypoint labelled somewhere, never: {unlabelled}")
    if job.labelled.num_rows < max(1, job.options.workers) * 2:
        raise InputError(f"{job.labelled.location.uri}: expected two rows a worker, found {job.labelled.num_rows}")


def _fit_rank(job: _Job, rank: Rank) -> None:
    """The training loop of one process; rank 0 leaves the bundle at the output."""
    options = job.options
    torch.manual_seed(options.seed)
    model = PoseModel(job.spec).to(rank.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wrapped = rank.wrap(model)
    optimizer = make_optimizer(model, options.fit)
    rows_per_rank = job.labelled.num_rows // rank.world_size
    num_steps = options.epochs * -(-rows_per_rank // (options.batch_size // rank.world_size))
    schedule = make_schedule(optimizer, num_steps=num_steps)
    with ThreadPoolExecutor(options.decode_threads) as threads:
        collate = Collator(
            spec=job.spec,
            augmentation=AUGMENTATIONS[options.augmentation],
            seed=options.seed,
            threads=threads,
            skipped=Counter(),
        )
        history = []
        for epoch in range(options.epochs):
            wrapped.train()
            sums = torch.zeros(3)
            for batch in _batches(collate, rank, epoch):
                losses = train_step(wrapped, optimizer, batch, spec=job.spec, options=options.fit)
                schedule.step()
                sums += torch.tensor([losses.pose, losses.ranking, 1.0])
            history.append(_epoch_metrics(epoch, sums))
            rank.count_rows(0, 0, f"epoch {epoch + 1}/{options.epochs}, loss {history[-1]['pose_loss']:.5f}")
            rank.end_epoch(history[-1])
    if rank.index == 0:
        _write_bundle(job, model, history, unreadable=dict(collate.skipped))


def _batches(collate: Collator, rank: Rank, epoch: int) -> Iterator[Batch]:
    """The epoch's batches on the rank's device; while one trains, the next is decoded."""
    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as ahead:
        rows_of_epoch = rank.read_epoch(epoch)

        def make_next() -> tuple[Batch, int] | None:
            rows = next(rows_of_epoch, None)
            return None if rows is None else (collate(rows, epoch=epoch), len(rows))

        upcoming = ahead.submit(make_next)
        while (made := upcoming.result()) is not None:
            upcoming = ahead.submit(make_next)
            batch, num_rows = made
            yield Batch(*(tensor.to(rank.device, non_blocking=True) for tensor in batch))
            rank.count_rows(num_rows, num_rows - len(batch.labelled), "")


def _epoch_metrics(epoch: int, sums: torch.Tensor) -> dict[str, float]:
    pose, ranking, steps = sums.tolist()
    return {"epoch": epoch + 1, "pose_loss": pose / max(1, steps), "ranking_loss": ranking / max(1, steps)}


def _write_bundle(job: _Job, model: PoseModel, history: list[dict[str, float]], unreadable: dict[str, int]) -> None:
    training = {
        "labelled_fingerprint": job.labelled.fingerprint,
        "num_rows": job.labelled.num_rows,
        "options": asdict(job.options),
        "unreadable": unreadable,
    }
    metrics: dict[str, Any] = {"history": history}
    if job.validation is not None:
        fitted = load_bundle(dump_bundle(model, training={}, metrics={}))
        metrics["validation"] = summarise(evaluate_rows(fitted, job.validation), spec=job.spec)
    write_bundle(job.out, dump_bundle(model, training=training, metrics=metrics))


def _train_in_process(job: _Job, progress: Progress) -> None:
    done = Counter[str]()

    def count_rows(num_rows: int, num_errors: int, note: str) -> None:
        done.update(rows=num_rows, errors=num_errors)
        total = job.options.epochs * job.labelled.num_rows
        progress("train", done["rows"], total, num_errors=done["errors"], note=note)

    def read_epoch(epoch: int) -> Iterator[pa.Table]:
        return shuffled_rows(
            job.labelled,
            batch_size=job.options.batch_size,
            buffer_rows=_SHUFFLE_ROWS,
            seed=job.options.seed * 1_000_003 + epoch,
        )

    _fit_rank(
        job,
        Rank(
            index=0,
            world_size=1,
            device=torch.device("cuda" if job.options.gpus_per_worker else "cpu"),
            wrap=lambda model: model,
            read_epoch=read_epoch,
            count_rows=count_rows,
            end_epoch=lambda _: None,
        ),
    )


def _train_on_ray(job: _Job, progress: Progress) -> None:
    from distributed.cluster import check_resources, read_source, train_on_workers, watched
    from distributed.source import PoolSource

    options = job.options
    check_resources(cpus=options.workers * options.cpus_per_worker + 1, gpus=options.workers * options.gpus_per_worker)
    total = options.epochs * job.labelled.num_rows
    with watched("train", total=total, progress=progress) as count_rows:
        train_on_workers(
            _ray_worker,
            {"job": job, "count_rows": count_rows},
            dataset=read_source(PoolSource(job.labelled, plan_bins(job.labelled, max_bytes=1), columns=COLUMNS)),
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

    job: _Job = shared["job"]
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

    _fit_rank(
        job,
        Rank(
            index=context.get_world_rank(),
            world_size=world_size,
            device=ray.train.torch.get_device(),
            wrap=ray.train.torch.prepare_model,
            read_epoch=read_epoch,
            count_rows=shared["count_rows"],
            end_epoch=ray.train.report,
        ),
    )


def _record(job: _Job, *, seconds: float) -> dict[str, Any]:
    description = json.loads(read_bytes(job.out.join(BUNDLE_FILE)))
    num_images = job.options.epochs * job.labelled.num_rows
    return {
        "kind": "bundle",
        "num_rows": job.labelled.num_rows,
        "metrics": description["metrics"],
        "unreadable": description["training"]["unreadable"],
        "seconds": round(seconds, 3),
        "images_per_second": round(num_images / seconds, 1),
    }
