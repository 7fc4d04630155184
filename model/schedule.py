"""How fast the estimator learns: shares of its peak rate, from the training's progress or its losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "plateau", "constant"]

WARM_UP_SHARE = 0.05  # of the training
_FINAL_SHARE = 0.01  # of the peak rate, at the end of the cosine, and at least on a plateau. Source: the paper's set-up
_PLATEAU_FACTOR = 0.5  # Source: the paper's set-up, as is the patience
_PLATEAU_PATIENCE = 5
_PLATEAU_MARGIN = 1e-4  # an improvement by a smaller share is none


def rate_share(schedule: ScheduleName, progress: float, *, plateau_share: float = 1.0) -> float:
    """Share of the peak rate at a moment of the training: a linear warm-up, then what the schedule says.

    Args:
        schedule: "cosine" falls to 1 %; "plateau" is at `plateau_share`; "constant" stays.
        progress: share of the training that is done, 0 to 1: a function of it is the same for any number of workers,
            and needs no state.
        plateau_share: from `Plateau`.
    """
    if progress < WARM_UP_SHARE:
        return max(progress / WARM_UP_SHARE, _FINAL_SHARE)
    if schedule == "cosine":
        done = min(1.0, (progress - WARM_UP_SHARE) / (1 - WARM_UP_SHARE))
        return _FINAL_SHARE + (1 - _FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2
    return plateau_share if schedule == "plateau" else 1.0


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Halves the rate whenever the loss has not fallen for some epochs; a value, so that a checkpoint can keep it."""

    best: float = math.inf
    num_epochs_since: int = 0
    share: float = 1.0

    def after(self, loss: float) -> Plateau:
        """The state after an epoch with this loss."""
        if loss < self.best * (1 - _PLATEAU_MARGIN):
            return Plateau(best=loss, share=self.share)
        if self.num_epochs_since + 1 > _PLATEAU_PATIENCE:
            return Plateau(best=self.best, share=max(_FINAL_SHARE, _PLATEAU_FACTOR * self.share))
        return Plateau(best=self.best, num_epochs_since=self.num_epochs_since + 1, share=self.share)
