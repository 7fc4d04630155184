"""The training loop of one process, alone or among others; what it knows of the others is in its `Rank`."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import nn

from distributed.tables.labelled import Collator
from distributed.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from distributed.training.journal import write_journal
from distributed.training.meter import Meter, diverged, summarise_epoch
from distributed.training.options import TrainingJob
from distributed.training.outcome import best_name, validate, write_best, write_last, write_outcome
from distributed.training.rank import Notice, Rank
from model.errors import InputError
from model.example import AUGMENTATIONS
from model.fit import Batch, Losses, make_optimizer, make_scaler, rate_share, train_step
from model.pose_model import new_model

_STEPS_BETWEEN_LOOKS = 10  # for notices, and at the losses: each look is a word with all other ranks


def fit_rank(job: TrainingJob, rank: Rank) -> None:
    """The training of one process, from the last checkpoint on; rank 0 leaves the bundle to be published.

    When a notice to stop comes, it leaves a checkpoint and returns.

    Raises:
        InputError: the training can only end in a useless bundle: losses are no numbers, nothing teaches, or too many
            images can't be read.
        RunFailedError: storage failed.
    """
    fitting = _Fitting(job, rank)
    with closing(fitting):
        while not fitting.is_over:
            if fitting.run_epoch() is Notice.STOP:
                return
        write_outcome(job, rank, fitting.model, fitting.state)


class _Fitting:
    """Model, optimiser and how far they are."""

    def __init__(self, job: TrainingJob, rank: Rank) -> None:
        options = job.options
        torch.manual_seed(options.seed)
        self.model = new_model(job.spec, estimator=options.estimator)
        if options.sync_batchnorm and rank.world_size > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.model = self.model.to(rank.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(self.model, options.fit)
        self._scaler = make_scaler(options.fit, rank.device)
        self.state = load_checkpoint(job.out, self.model, self._optimizer, device=rank.device)
        if self._scaler and self.state.scaler:
            self._scaler.load_state_dict(self.state.scaler)
        _check_agreed(job, rank, self.state)
        self._wrapped = rank.wrap(self.model)
        self._job, self._rank, self._options = job, rank, options
        self._rows_at_once = options.rows_per_batch(rank.world_size) * rank.world_size  # one batch of each rank
        self._num_batches = max(1, -(-job.labelled.num_rows // self._rows_at_once))
        self._threads = ThreadPoolExecutor(options.decode_threads, thread_name_prefix="decode")
        if rank.is_first:
            rank.count_from(self._rows_done())

    def close(self) -> None:
        self._threads.shutdown()

    @property
    def is_over(self) -> bool:
        """All epochs are done, or none has been better for as many as patience allows."""
        state, patience = self.state, self._options.patience
        is_stuck = patience is not None and state.epoch - (state.best_epoch or state.epoch) >= patience
        return state.epoch >= self._options.epochs or is_stuck

    def run_epoch(self) -> Notice:
        """The rest of the epoch that is to be done; STOP if it was left before its end."""
        epoch, first = self.state.epoch, self.state.rows // self._rows_at_once
        torch.manual_seed((self._options.seed * 1_000_003 + epoch) * 1_009 + self._rank.index)
        meter = Meter(self._rank.device, resumed=self.state.sums if self._rank.is_first else {})
        collate = self._collator(epoch)
        done, is_warned = first, False
        for step, made in enumerate(self._steps(collate, epoch, skip=first), start=1):
            batches = [self._to_device(each) for each in made]
            losses = self._step(batches, progress=(epoch + done / self._num_batches) / self._options.epochs)
            meter.add(losses, num_rows=sum(each.num_rows for each in made), unreadable=_sum(made))
            done += len(batches)
            if step % _STEPS_BETWEEN_LOOKS:
                continue
            meter.check(self._job, epoch=epoch, world_size=self._rank.world_size)
            notice = self._rank.look_up()
            if notice is Notice.STOP or (notice is Notice.PREEMPTION and not is_warned):
                self._check_finite(epoch)
                self._keep(epoch=epoch, rows=done * self._rows_at_once, sums=meter.total(self._rank))
                is_warned = True
            if notice is Notice.STOP:
                return notice
        self._end_epoch(meter)
        return self._rank.look_up()

    def _step(self, batches: Sequence[Batch], *, progress: float) -> Losses:
        options = self._options
        share = rate_share(options.schedule, progress, plateau_share=self.state.plateau.share)
        estimator, head = self._optimizer.param_groups
        estimator["lr"] = options.learning_rate * share
        head["lr"] = options.head_learning_rate
        return train_step(
            self._wrapped,
            self._optimizer,
            batches,
            spec=self._job.spec,
            options=options.fit,
            scaler=self._scaler,
        )

    def _collator(self, epoch: int) -> Collator:
        return Collator(
            spec=self._job.spec,
            augmentation=AUGMENTATIONS[self._options.augmentation],
            seed=self._options.seed,
            epoch=epoch,
            threads=self._threads,
            skipped=Counter(),
        )

    def _steps(self, collate: Collator, epoch: int, *, skip: int) -> Iterator[list[MadeBatch]]:
        """The batches of each step; while they train, the next is decoded."""
        self._wrapped.train()
        rows_of_epoch = islice(self._rank.read_epoch(epoch), skip, None)
        made = one_ahead(rows_of_epoch, collate)
        while batches := list(islice(made, self._options.accumulate)):
            yield batches

    def _to_device(self, made: MadeBatch) -> Batch:
        self._rank.count_rows(made.num_rows, made.unreadable, "")
        return Batch(*(tensor.to(self._rank.device, non_blocking=True) for tensor in made.batch))

    def _end_epoch(self, meter: Meter) -> None:
        rank, job, epoch = self._rank, self._job, self.state.epoch + 1
        meter.check(job, epoch=epoch - 1, world_size=rank.world_size)
        sums = meter.total(rank)
        entry = {"epoch": epoch, "num_workers": rank.world_size, **summarise_epoch(job, sums, rank.world_size)}
        self._check_finite(epoch - 1)
        found = validate(job, rank, self.model)
        entry |= {"learning_rate": self._optimizer.param_groups[0]["lr"], **found}
        entry |= {"seconds": round(meter.total(rank)["seconds"], 3), "ended_at": round(time.time(), 3)}
        loss = entry.get("validation_loss")
        is_best = loss is not None and (self.state.best_loss is None or loss < self.state.best_loss)
        self.state = dataclasses.replace(
            self.state,
            history=(*self.state.history, entry),
            plateau=self.state.plateau.after(entry["pose_loss"] if loss is None else loss),
        )
        if is_best:
            name = best_name(epoch=epoch, attempt=rank.attempt)
            self.state = dataclasses.replace(self.state, best_loss=loss, best_epoch=epoch, best=name)
        if rank.is_first and is_best:  # before the checkpoint that names it
            write_best(job, self.model, self.state, epoch=epoch)
        self._keep(epoch=epoch, rows=0, sums={})
        if rank.is_first:
            write_journal(job.out, self.state.history)
            write_last(job, self.model, self.state, epoch=epoch)
        rank.count_rows(0, {}, _note(entry, self._options.epochs) if rank.is_first else "")
        rank.end_epoch(entry)

    def _keep(self, *, epoch: int, rows: int, sums: dict[str, float]) -> None:
        """Rank 0 writes a checkpoint; all remember where they are."""
        scaler = self._scaler.state_dict() if self._scaler else None
        self.state = dataclasses.replace(self.state, epoch=epoch, rows=rows, sums=sums, scaler=scaler)
        if self._rank.is_first:
            save_checkpoint(self._job.out, self.state, self.model, self._optimizer, attempt=self._rank.attempt)

    def _check_finite(self, epoch: int) -> None:
        """Passes if all weights are numbers: the losses that were looked at are those before the last step.

        Raises:
            InputError: the training diverged.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
            raise diverged(self._job, "weights after a step", epoch=epoch)

    def _rows_done(self) -> int:
        return self.state.epoch * self._job.labelled.num_rows + self.state.rows


class MadeBatch(NamedTuple):
    """Some rows as a batch, on the CPU."""

    num_rows: int
    unreadable: Counter[str]  # of them, by reason
    batch: Batch


def one_ahead(rows_of_epoch: Iterator[pa.Table], collate: Collator) -> Iterator[MadeBatch]:
    """The batches of an epoch; the next one is in the making while this one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as ahead:

        def make_next() -> MadeBatch | None:
            rows = next(rows_of_epoch, None)
            if rows is None:
                return None
            before = collate.skipped.copy()
            batch = collate(rows)
            return MadeBatch(len(rows), collate.skipped - before, batch)

        upcoming = ahead.submit(make_next)
        while (made := upcoming.result()) is not None:
            upcoming = ahead.submit(make_next)
            yield made


def _sum(made: Sequence[MadeBatch]) -> Counter[str]:
    return sum((each.unreadable for each in made), Counter[str]())


def _check_agreed(job: TrainingJob, rank: Rank, state: TrainState) -> None:
    """Passes if all ranks found the same checkpoint.

    Raises:
        InputError: they did not: each has a disk of its own there.
    """
    found = rank.gather((state.epoch, state.rows))
    if len(set(found)) > 1:
        raise InputError(
            f"{job.out.uri}: expected a location that all machines share, found checkpoints of epochs "
            f"{sorted({epoch for epoch, _ in found})} on different ones"
        )


def _note(entry: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {entry['epoch']}/{epochs}", f"loss {entry['pose_loss']:.5f}"]
    if entry.get("validation_pck") is not None:
        parts.append(f"PCK {entry['validation_pck']:.3f}")
    return ", ".join(parts)
