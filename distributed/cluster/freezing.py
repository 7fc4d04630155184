"""Files of a pool looked into by tasks on the cluster: their ids stay there, and doubled ones are found there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import ray

from distributed.cluster.faults import reported
from distributed.cluster.work import run_tasks
from distributed.tables.ids import Hashes, doubled, split

_TASK_FILES = 500  # a task has their footers in memory, and asks for more than a hundred at once
_TASKS_PER_CPU = 4
_PART_ROWS = 16_000_000  # hashes that one task sorts: 128 MB
_MOST_PARTS = 256  # beyond, shares of tasks are so small that Ray would send them to the driver
_SPLIT_ROWS = 4_000_000  # hashes that one task divides among the parts

Item = TypeVar("Item")
Found = TypeVar("Found")


class TasksOfFreezing:
    """`manifest.Spread` by tasks; what they find is references until the driver has to see it."""

    def inspect(
        self, function: Callable[[Sequence[Item]], tuple[list[Found], Hashes]], items: Sequence[Item]
    ) -> tuple[list[Found], list[Any]]:
        """The function's findings for all items, in order, and references to sorted hashes of ids."""
        cpus = ray.cluster_resources().get("CPU", 1)
        size = max(1, min(_TASK_FILES, int(len(items) / (_TASKS_PER_CPU * cpus))))
        remote = ray.remote(num_cpus=1, num_returns=2)(_called)
        refs = [remote.remote(function, items[start : start + size]) for start in range(0, len(items), size)]
        with reported():
            found = [each for first, _ in refs for each in ray.get(first)]
        return found, [second for _, second in refs]

    def doubles(self, hashes: Sequence[Any], *, num_rows: int) -> Hashes:
        """The hashes that occur more than once; of all others, none leaves the cluster."""
        count = min(_MOST_PARTS, -(-num_rows // _PART_ROWS))
        find = ray.remote(num_cpus=1)(lambda *some: doubled(some))
        with reported():
            if count <= 1:
                return np.asarray(ray.get(find.remote(*hashes)), np.uint64)
            group = max(1, len(hashes) * _SPLIT_ROWS // num_rows)
            divide = ray.remote(num_cpus=1, num_returns=count)(lambda *some: split(some, count))
            parts = [divide.remote(*hashes[start : start + group]) for start in range(0, len(hashes), group)]
            return np.concatenate(ray.get([find.remote(*some) for some in zip(*parts, strict=True)]))

    def run(self, function: Callable[[Sequence[Item]], list[Found]], items: Sequence[Item]) -> list[Found]:
        """The function's findings for all items, in order."""
        chunks = [items[start : start + _TASK_FILES] for start in range(0, len(items), _TASK_FILES)]
        return [each for found in run_tasks(function, chunks) for each in found]


def _called(function: Callable[[Any], Any], items: Any) -> Any:
    return function(items)
