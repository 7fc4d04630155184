"""The training loop of one process, alone or among others; what it knows of the others is in its `Rank`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from distributed.evaluation.evaluate import calibrate, evaluate_rows, summarise
from distributed.storage.bundles import write_bundle
from distributed.storage.location import Location
from distributed.tables.labelled import Collator
from distributed.tables.manifest import Manifest
from model.augment import AUGMENTATIONS, AugmentationName
from model.bundle import dump_bundle, load_bundle
from model.errors import InputError
from model.fit import Batch, FitOptions, RankingName, make_optimizer, make_schedule, train_step
from model.objective import Pairs
from model.pose_model import HeadName, ModelSpec, PoseModel, new_model

# Options that say how the work is spread: the bundle, and so its id, does not depend on them.
_HOW = frozenset({"cpus_per_worker", "gpus_per_worker", "decode_threads"})


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What to train, and how; see `jobs.train` for the words."""

    estimator: str = "hourglass"
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
    def device(self) -> str:
        """Where the calling process computes; a Ray Train worker is told its own."""
        return "cuda" if self.gpus_per_worker else "cpu"

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
class TrainingJob:
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
    count_rows: Callable[[int, Mapping[str, int], str], None]  # rows, unreadable ones by reason, note
    end_epoch: Callable[[dict[str, float]], None]


def fit_rank(job: TrainingJob, rank: Rank) -> None:
    """The training loop of one process; rank 0 leaves the bundle at the output."""
    options = job.options
    torch.manual_seed(options.seed)
    model = new_model(job.spec, estimator=options.estimator).to(rank.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
            _check_learnt(history[-1])
            rank.count_rows(0, {}, f"epoch {epoch + 1}/{options.epochs}, loss {history[-1]['pose_loss']:.5f}")
            rank.end_epoch(history[-1])
    unreadable = _sum_over_ranks(collate.skipped, rank)
    if rank.index == 0:
        per_epoch = {reason: count / options.epochs for reason, count in sorted(unreadable.items())}
        _write_bundle(job, model, history, unreadable=per_epoch)


def _sum_over_ranks(counts: Counter[str], rank: Rank) -> Counter[str]:
    if rank.world_size == 1:
        return counts
    parts: list[Counter[str]] = [Counter()] * rank.world_size
    torch.distributed.all_gather_object(parts, counts)
    return sum(parts, Counter[str]())


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
            rank.count_rows(num_rows, {"unreadable": num_rows - len(batch.labelled)}, "")


def _check_learnt(epoch: dict[str, float]) -> None:
    """Stops a training that can only end in a useless bundle.

    Raises:
        InputError: the loss is no number any more, or nothing that was read could teach.
    """
    if not math.isfinite(epoch["pose_loss"] + epoch["ranking_loss"]):
        raise InputError(f"--learning-rate: expected finite losses, found {epoch}: the training diverged")
    if epoch["pose_loss"] == 0:
        raise InputError("labelled rows: expected keypoints inside readable images, found none in a whole epoch")


def _epoch_metrics(epoch: int, sums: torch.Tensor) -> dict[str, float]:
    pose, ranking, steps = sums.tolist()
    return {"epoch": epoch + 1, "pose_loss": pose / max(1, steps), "ranking_loss": ranking / max(1, steps)}


def _write_bundle(
    job: TrainingJob, model: PoseModel, history: list[dict[str, float]], unreadable: dict[str, float]
) -> None:
    training = {
        "labelled_fingerprint": job.labelled.fingerprint,
        "num_rows": job.labelled.num_rows,
        "options": {name: value for name, value in asdict(job.options).items() if name not in _HOW},
        "unreadable_per_epoch": unreadable,
    }
    metrics: dict[str, Any] = {"history": history}
    calibration = None
    if job.validation is not None:
        fitted = load_bundle(dump_bundle(model, training={}, metrics={}))
        evaluated = evaluate_rows(fitted, job.validation)
        metrics["validation"] = summarise(evaluated, spec=job.spec)
        calibration = calibrate(evaluated)
    write_bundle(job.out, dump_bundle(model, training=training, metrics=metrics, calibration=calibration))
