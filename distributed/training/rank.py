"""Rank: one training process among others, and what they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import pyarrow as pa
import torch
from torch import nn

Value = TypeVar("Value")


class Notice(Enum):
    """A notice that may come between two steps."""

    NONE = 0
    PREEMPTION = 1  # a machine will go away: keep what there is, and go on
    STOP = 2  # keep what there is, and end


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One training process among `world_size`; all make the same calls in the same order."""

    index: int
    world_size: int
    attempt: int  # of the lease: tells checkpoints apart
    device: torch.device
    wrap: Callable[[nn.Module], nn.Module]
    read_epoch: Callable[[int], Iterator[pa.Table]]  # epoch -> batches of this rank's rows, as many on each rank
    look_up: Callable[[], Notice]  # what has come; the same on all ranks
    count_rows: Callable[[int, Mapping[str, int], str], None]  # rows, unreadable ones by reason, note
    count_from: Callable[[int], None]  # rows of all ranks that are done: those that a killed attempt counted are not
    end_epoch: Callable[[dict[str, Any]], None]

    @property
    def is_first(self) -> bool:
        """True for the one process that writes."""
        return self.index == 0

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def take_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrites everybody's tensors with those of the first rank."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)
