"""The logbook of a run as its processes see it under Ray, and the counters that they export. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

import ray
from ray.util.metrics import Counter

from distributed.runs.logbook import State


class RemoteLog:
    """A logbook that lives beside the driver, as the processes of a run see it; it travels to them.

    Nobody waits for an answer that is not needed at once. A process that was restarted has to know whether its batch is
    what killed its predecessor, so it asks; `finish` tells what the last answer said that has come.
    """

    def __init__(self, book: Any) -> None:
        self._book = book
        self._answer: Any = None
        self._must_stop = False

    def begin(self, batch: str) -> int:
        """See `Logbook`, as for all of these."""
        answer = self._book.begin.remote(batch)
        return int(ray.get(answer)) if ray.get_runtime_context().was_current_actor_reconstructed else 0

    def begin_row(self, row: str) -> bool:  # noqa: D102
        answer = self._book.begin_row.remote(row)
        return bool(ray.get(answer)) if ray.get_runtime_context().was_current_actor_reconstructed else False

    def finish(self, batch: str) -> bool:  # noqa: D102
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._must_stop = bool(ray.get(self._answer))
        self._answer = self._book.finish.remote(batch)
        return self._must_stop

    def add(self, num_rows: int, errors: Mapping[str, int], note: str = "") -> None:  # noqa: D102
        self._book.add.remote(num_rows, errors, note)
        count("images", num_rows - sum(errors.values()), outcome="scored")
        for reason, num_failed in errors.items():
            count("images", num_failed, outcome=reason)

    def add_seconds(self, stage: str, seconds: float) -> None:  # noqa: D102
        self._book.add_seconds.remote(stage, seconds)
        count("seconds", seconds, stage=stage)

    def fail_file(self, path: str, reason: str) -> None:  # noqa: D102
        ray.get(self._book.fail_file.remote(path, reason))

    def count_from(self, num_rows: int) -> None:  # noqa: D102
        self._book.count_from.remote(num_rows)

    def fail_run(self, fault: str) -> None:  # noqa: D102
        ray.get(self._book.fail_run.remote(fault))

    def must_stop(self) -> bool:  # noqa: D102
        return bool(ray.get(self._book.must_stop.remote()))

    def stop(self) -> None:  # noqa: D102
        self._book.stop.remote()

    def read(self) -> State:  # noqa: D102
        return cast(State, ray.get(self._book.read.remote()))


_METRICS = {
    "images": ("lossight_images_total", "Images that are done, by outcome: scored, or why not.", ("outcome",)),
    "seconds": ("lossight_stage_seconds_total", "Seconds of work, by stage.", ("stage",)),
}


def count(name: str, amount: float, **tags: str) -> None:
    """Adds to a counter that Ray exports to whoever collects its metrics."""
    if amount > 0:
        _counter(name).inc(amount, tags=tags)


@cache
def _counter(name: str) -> Counter:
    full_name, description, tag_keys = _METRICS[name]
    return Counter(full_name, description=description, tag_keys=tag_keys)
