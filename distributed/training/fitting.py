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

import torch
from torch import nn

from distributed.training.checkpoint import TrainState, checkpoint_name, load_checkpoint, save_checkpoint
from distributed.training.data import Collated, Collator, check_readable, one_ahead
from distributed.training.options import TrainingJob
from distributed.training.outcome import validate, write_journal, write_last, write_outcome
from distributed.training.rank import Notice, Rank
from model.errors import InputError
from model.example import AUGMENTATIONS
from model.fit import Batch, Losses, make_optimizer, make_scaler, rate_share, train_step
from model.memory import keep_freed_memory
from model.objective import find_method
from model.pose_model import new_model

_STEPS_BETWEEN_LOOKS = 10  # for notices, and at the losses: each look is a word with all other ranks
_MIN_ROWS = 1000  # of a rank, under which a rate of unreadable images says nothing yet
_UNREADABLE = "unreadable:"  # before the reason, in sums


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
        if rank.device.type == "cpu":
            keep_freed_memory()
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
            rank.count_from(self.state.epoch * job.labelled.num_rows + self.state.rows)

    def close(self) -> None:
        self._threads.shutdown()

    @property
    def is_over(self) -> bool:
        """All epochs are done, or none has been better for as many as patience allows."""
        state, patience = self.state, self._options.patience
        is_stuck = patience is not None and state.epoch - (state.best_epoch or state.epoch) >= patience
        return state.epoch >= self._options.epochs or is_stuck

    def run_epoch(self) -> Notice:
        """Trains the rest of the epoch; STOP if it was left before its end."""
        epoch, done = self.state.epoch, self.state.rows // self._rows_at_once
        torch.manual_seed((self._options.seed * 1_000_003 + epoch) * 1_009 + self._rank.index)
        meter = _Meter(self._job, self._rank, self.state)
        is_warned = False
        for step, collated in enumerate(self._batches_by_step(epoch, skip=done), start=1):
            progress = (epoch + done / self._num_batches) / self._options.epochs
            meter.add(self._step(collated, progress=progress), collated)
            done += len(collated)
            if step % _STEPS_BETWEEN_LOOKS:
                continue
            meter.check()
            notice = self._rank.look_up()
            if notice is Notice.STOP or (notice is Notice.PREEMPTION and not is_warned):
                self._check_finite()
                self._keep(dataclasses.replace(self.state, rows=done * self._rows_at_once, sums=meter.total()))
                is_warned = True
            if notice is Notice.STOP:
                return notice
        self._end_epoch(meter)
        return self._rank.look_up()

    def _batches_by_step(self, epoch: int, *, skip: int) -> Iterator[list[Collated]]:
        """The batches of each step; while they train, the next is decoded."""
        collate = Collator(
            spec=self._job.spec,
            augmentation=AUGMENTATIONS[self._options.augmentation],
            seed=self._options.seed,
            epoch=epoch,
            threads=self._threads,
        )
        self._wrapped.train()
        batches = one_ahead(islice(self._rank.read_epoch(epoch), skip, None), collate)
        while of_step := list(islice(batches, self._options.accumulate)):
            yield of_step

    def _step(self, collated: Sequence[Collated], *, progress: float) -> Losses:
        options, rank = self._options, self._rank
        for each in collated:
            rank.count_rows(each.num_rows, each.unreadable, "")
        estimator, head = self._optimizer.param_groups
        estimator["lr"] = options.learning_rate * rate_share(progress)
        head["lr"] = options.head_learning_rate
        return train_step(
            self._wrapped,
            self._optimizer,
            [Batch(*(tensor.to(rank.device, non_blocking=True) for tensor in each.batch)) for each in collated],
            spec=self._job.spec,
            options=options.fit,
            scaler=self._scaler,
        )

    def _end_epoch(self, meter: _Meter) -> None:
        """Validates, and writes what watchers read before the checkpoint: an epoch that is done has left it all."""
        rank, job, epoch = self._rank, self._job, self.state.epoch + 1
        meter.check()
        entry = {"epoch": epoch, "num_workers": rank.world_size, **meter.summary()}
        self._check_finite()
        found = validate(job, rank, self.model)
        entry |= {"learning_rate": self._optimizer.param_groups[0]["lr"], **found}
        entry |= {"seconds": round(meter.seconds, 3), "ended_at": round(time.time(), 3)}
        state, loss = self.state, entry.get("validation_loss")
        state = dataclasses.replace(
            state,
            epoch=epoch,
            rows=0,
            sums={},
            history=(*state.history, entry),
        )
        if loss is not None and (state.best_loss is None or loss < state.best_loss):
            best = checkpoint_name(epoch, rows=0, attempt=rank.attempt)
            state = dataclasses.replace(state, best_loss=loss, best_epoch=epoch, best=best)
        if rank.is_first:
            write_journal(job.out, state.history)
            write_last(job, self.model, state)
        self._keep(state)
        rank.count_rows(0, {}, _note(entry, self._options.epochs) if rank.is_first else "")
        rank.end_epoch(entry)

    def _keep(self, state: TrainState) -> None:
        """Rank 0 writes a checkpoint; all remember where they are."""
        self.state = dataclasses.replace(state, scaler=self._scaler.state_dict() if self._scaler else None)
        if self._rank.is_first:
            save_checkpoint(self._job.out, self.state, self.model, self._optimizer, attempt=self._rank.attempt)

    def _check_finite(self) -> None:
        """Passes if all weights are numbers: the losses that were looked at are those before the last step.

        Raises:
            InputError: the training diverged.
        """
        if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
            raise _diverged(self._job, "weights after a step", epoch=self.state.epoch)


class _Meter:
    """Sums of one rank over the batches of an epoch; reading them waits for the device, adding does not."""

    def __init__(self, job: TrainingJob, rank: Rank, state: TrainState) -> None:
        self._job, self._rank, self._epoch = job, rank, state.epoch
        self._resumed = state.sums if rank.is_first else {}  # of the epoch before it was interrupted
        self._losses = torch.zeros(3, device=rank.device, dtype=torch.float64)
        self._first_bad = torch.zeros((), device=rank.device, dtype=torch.int64)  # 0: none
        self._steps = self._rows = 0
        self._unreadable: Counter[str] = Counter()
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time of the first rank in this epoch, before an interruption too."""
        return self._resumed.get("seconds", 0.0) + time.monotonic() - self._started

    def add(self, losses: Losses, collated: Sequence[Collated]) -> None:
        """Adds a step: its losses, and the batches that it was made of."""
        self._steps += 1
        for each in collated:
            self._rows += each.num_rows
            self._unreadable.update(each.unreadable)
        self._losses += torch.stack([losses.pose.double(), losses.ranking.double(), losses.num_pairs.double()])
        is_bad = ~(losses.pose + losses.ranking).isfinite() & (self._first_bad == 0)
        self._first_bad = torch.where(is_bad, self._steps, self._first_bad)

    def check(self) -> None:
        """Passes if all losses are numbers and, once enough rows were read to tell, few enough images are unreadable.

        Raises:
            InputError: the training diverged, or the data is too damaged.
        """
        if step := int(self._first_bad):
            step += int(self._resumed.get("steps", 0)) // self._rank.world_size
            raise _diverged(self._job, f"losses in step {step}", epoch=self._epoch)
        if self._rows >= _MIN_ROWS:
            check_readable(self._job, self._rows, self._unreadable)

    def total(self) -> dict[str, float]:
        """The sums of all ranks, and of the epoch before an interruption."""
        pose, ranking, pairs = self._losses.tolist()
        mine = {"pose": pose, "ranking": ranking, "pairs": pairs, "steps": self._steps, "rows": self._rows}
        mine |= {f"{_UNREADABLE}{reason}": count for reason, count in self._unreadable.items()}
        mine |= {"seconds": time.monotonic() - self._started} if self._rank.is_first else {}
        total: Counter[str] = Counter()
        for part in self._rank.gather((mine, self._resumed)):
            for sums in part:
                total.update(sums)
        return dict(total)

    def summary(self) -> dict[str, Any]:
        """The numbers of an epoch that is over, of all ranks.

        Raises:
            InputError: nothing taught in a whole epoch, or too many images could not be read.
        """
        job, sums = self._job, self.total()
        num_steps, num_rows = max(1, sums["steps"]), int(sums["rows"])
        reasons = sorted(name for name in sums if name.startswith(_UNREADABLE))
        unreadable = Counter({name.removeprefix(_UNREADABLE): int(sums[name]) for name in reasons})
        check_readable(job, num_rows, unreadable)
        where = job.labelled.location.uri
        if sums["pose"] == 0:
            raise InputError(f"{where}: expected keypoints inside readable images, found none in a whole epoch")
        if find_method(job.spec.method).ranking_loss and sums["pairs"] == 0:
            raise InputError(
                f"{where}: expected pairs of images to rank, found none in a whole epoch: "
                "a larger --batch-size makes some"
            )
        return {
            "pose_loss": sums["pose"] / num_steps,
            "ranking_loss": sums["ranking"] / num_steps,
            "pairs_per_step": sums["pairs"] / num_steps * self._rank.world_size,
            "num_rows": num_rows,
            "num_dropped": max(0, job.labelled.num_rows - num_rows),  # left over by equal shards
            "unreadable": dict(unreadable),
        }


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


def _diverged(job: TrainingJob, what: str, *, epoch: int) -> InputError:
    """The error for `what` that is no finite number in an epoch, counted from 0."""
    kept = f"; {job.out.join('last').uri} is the bundle of the epoch before" if epoch else ""
    return InputError(
        f"--learning-rate: expected finite numbers, found other {what} of epoch {epoch + 1}: "
        f"the training diverged{kept}"
    )


def _note(entry: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {entry['epoch']}/{epochs}", f"loss {entry['pose_loss']:.5f}"]
    if entry.get("validation_pck") is not None:
        parts.append(f"PCK {entry['validation_pck']:.3f}")
    return ", ".join(parts)
