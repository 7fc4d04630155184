"""The training loop of one process, alone or among others; what it knows of the others is in its `Rank`."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from distributed.tables.labelled import Collator
from distributed.training.checkpoint import load_checkpoint, save_checkpoint
from distributed.training.journal import write_journal
from distributed.training.meter import Meter, summarise_epoch
from distributed.training.options import TrainingJob
from distributed.training.outcome import validate, write_best, write_last, write_outcome
from distributed.training.rank import Notice, Rank
from model.augment import AUGMENTATIONS
from model.fit import Batch, Losses, make_optimizer, make_scaler, train_step
from model.pose_model import new_model
from model.schedule import head_rate_share, rate_share

_STEPS_BETWEEN_LOOKS = 10  # for notices, and at the losses: each look is a word with all other ranks


def fit_rank(job: TrainingJob, rank: Rank) -> None:
    """The training of one process, from the last checkpoint on; rank 0 leaves the bundle at the output.

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
        self.model = new_model(job.spec, estimator=options.estimator, head_bends_estimator=options.attach_features)
        if options.sync_batchnorm and rank.world_size > 1:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        self.model = self.model.to(rank.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(self.model, options.fit)
        self._scaler = make_scaler(options.fit, rank.device)
        self.state = load_checkpoint(job.out, self.model, self._optimizer, device=rank.device)
        if self._scaler and self.state.scaler:
            self._scaler.load_state_dict(self.state.scaler)
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
        started, epoch, first = time.monotonic(), self.state.epoch, self.state.rows // self._rows_at_once
        torch.manual_seed((self._options.seed * 1_000_003 + epoch) * 1_009 + self._rank.index)
        meter = Meter(self._rank.device, resumed=self.state.sums if self._rank.is_first else {})
        collate = self._collator(epoch)
        done, is_warned = first, False
        for step, (num_rows, batches) in enumerate(self._steps(collate, epoch, skip=first), start=1):
            losses = self._step(batches, progress=(epoch + done / self._num_batches) / self._options.epochs)
            meter.add(losses, num_rows=num_rows)
            done += len(batches)
            if step % _STEPS_BETWEEN_LOOKS:
                continue
            meter.check(self._job, epoch=epoch, unreadable=collate.skipped)
            notice = self._rank.look_up()
            if notice is Notice.STOP or (notice is Notice.PREEMPTION and not is_warned):
                self._keep(epoch=epoch, rows=done * self._rows_at_once, sums=meter.total(self._rank, collate.skipped))
                is_warned = True
            if notice is Notice.STOP:
                return notice
        self._end_epoch(meter, collate.skipped, seconds=time.monotonic() - started)
        return Notice.NONE

    def _step(self, batches: Sequence[Batch], *, progress: float) -> Losses:
        options = self._options
        share = rate_share(options.schedule, progress, plateau_share=self.state.plateau.share)
        estimator, head = self._optimizer.param_groups
        estimator["lr"] = options.learning_rate * share
        head["lr"] = options.head_learning_rate * head_rate_share(progress)
        return train_step(
            self._wrapped,
            self._optimizer,
            batches,
            spec=self._job.spec,
            options=options.fit,
            has_held_out=options.held_out_share > 0,
            head_is_learning=self.state.epoch >= options.head_warm_up_epochs,
            scaler=self._scaler,
        )

    def _collator(self, epoch: int) -> Collator:
        return Collator(
            spec=self._job.spec,
            augmentation=AUGMENTATIONS[self._options.augmentation],
            seed=self._options.seed,
            epoch=epoch,
            held_out_share=self._options.held_out_share,
            threads=self._threads,
            skipped=Counter(),
        )

    def _steps(self, collate: Collator, epoch: int, *, skip: int) -> Iterator[tuple[int, list[Batch]]]:
        """For each step its rows, and their batches on the rank's device; while they train, the next is decoded."""
        self._wrapped.train()
        rows_of_epoch = islice(self._rank.read_epoch(epoch), skip, None)
        made = one_ahead(rows_of_epoch, collate)
        while batches := list(islice(made, self._options.accumulate)):
            yield sum(num_rows for num_rows, _ in batches), [self._to_device(*batch) for batch in batches]

    def _to_device(self, num_rows: int, batch: Batch) -> Batch:
        self._rank.count_rows(num_rows, {"unreadable": num_rows - len(batch.labelled)}, "")
        return Batch(*(tensor.to(self._rank.device, non_blocking=True) for tensor in batch))

    def _end_epoch(self, meter: Meter, unreadable: Counter[str], *, seconds: float) -> None:
        rank, job, epoch = self._rank, self._job, self.state.epoch + 1
        meter.check(job, epoch=epoch - 1, unreadable=unreadable)
        sums = meter.total(rank, unreadable)
        entry = {"epoch": epoch, "num_workers": rank.world_size, **summarise_epoch(job, sums, rank.world_size)}
        found = validate(job, rank, self.model)
        entry |= {"learning_rate": self._optimizer.param_groups[0]["lr"], **found}
        entry |= {"seconds": round(seconds, 3), "ended_at": round(time.time(), 3)}
        loss = entry.get("validation_loss")
        is_best = loss is not None and (self.state.best_loss is None or loss < self.state.best_loss)
        self.state = dataclasses.replace(
            self.state,
            history=(*self.state.history, entry),
            plateau=self.state.plateau.after(entry["pose_loss"] if loss is None else loss),
            best_loss=loss if is_best else self.state.best_loss,
            best_epoch=epoch if is_best else self.state.best_epoch,
        )
        if rank.is_first and is_best:  # before the checkpoint that says so
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

    def _rows_done(self) -> int:
        return self.state.epoch * self._job.labelled.num_rows + self.state.rows


def one_ahead(rows_of_epoch: Iterator[pa.Table], collate: Collator) -> Iterator[tuple[int, Batch]]:
    """How many rows, and the batch that they make; the next one is in the making while this one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as ahead:

        def make_next() -> tuple[int, Batch] | None:
            rows = next(rows_of_epoch, None)
            return None if rows is None else (len(rows), collate(rows))

        upcoming = ahead.submit(make_next)
        while (made := upcoming.result()) is not None:
            upcoming = ahead.submit(make_next)
            yield made


def _note(entry: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {entry['epoch']}/{epochs}", f"loss {entry['pose_loss']:.5f}"]
    if entry.get("validation_pck") is not None:
        parts.append(f"PCK {entry['validation_pck']:.3f}")
    return ", ".join(parts)
