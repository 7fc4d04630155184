"""What happens during an epoch, added up on the device and looked at now and then; and when it must not go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from distributed.training.options import TrainingJob
from distributed.training.rank import Rank
from model.errors import InputError
from model.fit import Losses
from model.objective import find_method

_UNREADABLE = "unreadable:"  # before the reason
_MIN_ROWS = 1000  # of a rank, under which a rate of unreadable images says nothing yet


class Meter:
    """Sums of one rank over the batches of an epoch; reading them waits for the device, adding does not.

    Args:
        device: where the losses are.
        resumed: sums of the epoch before it was interrupted.
    """

    def __init__(self, device: torch.device, *, resumed: Mapping[str, float]) -> None:
        self._resumed = dict(resumed)
        self._sums = torch.zeros(3, device=device, dtype=torch.float64)
        self._first_bad = torch.zeros((), device=device, dtype=torch.int64)  # 0: none
        self._num_steps = 0
        self._num_rows = 0
        self._unreadable: Counter[str] = Counter()
        self._started = time.monotonic()

    def add(self, losses: Losses, *, num_rows: int, unreadable: Counter[str]) -> None:
        """Adds the losses of a step, for which so many rows were read, some of them unreadable."""
        self._num_steps += 1
        self._num_rows += num_rows
        self._unreadable.update(unreadable)
        self._sums += torch.stack([losses.pose.double(), losses.ranking.double(), losses.num_pairs.double()])
        is_bad = ~(losses.pose + losses.ranking).isfinite() & (self._first_bad == 0)
        self._first_bad = torch.where(is_bad, self._num_steps, self._first_bad)

    def check(self, job: TrainingJob, *, epoch: int, world_size: int) -> None:
        """Passes if all losses are numbers and, of so many rows that it can be told, few enough images are unreadable.

        Raises:
            InputError: the training diverged, or the data is too damaged.
        """
        if step := int(self._first_bad):
            step += int(self._resumed.get("steps", 0)) // world_size
            raise diverged(job, f"losses in step {step}", epoch=epoch)
        if self._num_rows >= _MIN_ROWS:
            _check_readable(job, self._num_rows, self._unreadable)

    def total(self, rank: Rank) -> dict[str, float]:
        """The sums of all ranks, and of the epoch before an interruption; seconds are those of the first rank."""
        pose, ranking, pairs = self._sums.tolist()
        mine = {"pose": pose, "ranking": ranking, "pairs": pairs, "steps": self._num_steps, "rows": self._num_rows}
        mine |= {f"{_UNREADABLE}{reason}": count for reason, count in self._unreadable.items()}
        mine |= {"seconds": time.monotonic() - self._started} if rank.is_first else {}
        total: Counter[str] = Counter()
        for part in rank.gather((mine, self._resumed)):
            for sums in part:
                total.update(sums)
        return dict(total)


def summarise_epoch(job: TrainingJob, sums: Mapping[str, float], world_size: int) -> dict[str, Any]:
    """The numbers of an epoch from the sums of all ranks.

    Raises:
        InputError: nothing taught in a whole epoch.
    """
    num_steps = max(1, sums["steps"])  # of all ranks
    unreadable = _unreadable_of(sums)
    _check_readable(job, int(sums["rows"]), unreadable)
    where = job.labelled.location.uri
    if sums["pose"] == 0:
        raise InputError(f"{where}: expected keypoints inside readable images, found none in a whole epoch")
    if find_method(job.spec.method).ranking_loss and sums["pairs"] == 0:
        raise InputError(
            f"{where}: expected pairs of images to rank, found none in a whole epoch: a larger --batch-size makes some"
        )
    return {
        "pose_loss": sums["pose"] / num_steps,
        "ranking_loss": sums["ranking"] / num_steps,
        "pairs_per_step": sums["pairs"] / num_steps * world_size,
        "num_rows": int(sums["rows"]),
        "num_dropped": max(0, job.labelled.num_rows - int(sums["rows"])),  # what equal shards left over
        "unreadable": dict(unreadable),
    }


def diverged(job: TrainingJob, what: str, *, epoch: int) -> InputError:
    """What to raise where `what` is no finite number in an epoch, counted from 0."""
    kept = f"; {job.out.join('last').uri} is the bundle of the epoch before" if epoch else ""
    return InputError(
        f"--learning-rate: expected finite numbers, found other {what} of epoch {epoch + 1}: "
        f"the training diverged{kept}"
    )


def _unreadable_of(sums: Mapping[str, float]) -> Counter[str]:
    return Counter(
        {
            name.removeprefix(_UNREADABLE): int(count)
            for name, count in sorted(sums.items())
            if name.startswith(_UNREADABLE)
        }
    )


def _check_readable(job: TrainingJob, num_rows: int, unreadable: Counter[str]) -> None:
    num_bad, allowed = unreadable.total(), job.options.max_error_rate
    if num_bad > allowed * num_rows:
        raise InputError(
            f"{job.labelled.location.uri}: expected at most {allowed:.1%} unreadable images (--max-error-rate), "
            f"found {num_bad} among {num_rows}: {dict(unreadable)}"
        )
