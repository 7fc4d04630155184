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

    Between `begin` of a batch and the next, all that is told waits for that next one: one call a batch, for thousands
    of processes tell one. No process sends a second before its first was answered, so that none pile up. Nobody waits
    for an answer that is not needed at once: a process that was restarted has to know whether its batch is what killed
    its predecessor, so it asks; `finish` tells what the last answer said that has come.
    """

    def __init__(self, book: Any) -> None:
        self._book = book
        self._waiting: list[tuple[str, tuple[Any, ...]]] = []
        self._is_at_work = False  # a batch was begun: what is told waits
        self._answer: Any = None
        self._must_stop = False

    def _send(self, name: str, *arguments: Any) -> Any:
        """Tells this and all that waits; the answer is a reference."""
        if self._answer is not None:
            ray.wait([self._answer])
        told, self._waiting = [*self._waiting, (name, arguments)], []
        self._answer = self._book.tell.remote(told)
        return self._answer

    def _add(self, name: str, *arguments: Any) -> None:
        if self._is_at_work:
            self._waiting.append((name, arguments))
        else:
            self._book.tell.remote([(name, arguments)])

    def begin(self, batch: str) -> int:
        """See `Logbook`, as for all of these."""
        self._is_at_work = True
        answer = self._send("begin", batch)
        return int(ray.get(answer)[0]) if _is_restarted() else 0

    def begin_row(self, row: str) -> bool:  # noqa: D102
        answer = self._send("begin_row", row)
        return bool(ray.get(answer)[0]) if _is_restarted() else False

    def finish(self, batch: str) -> bool:  # noqa: D102
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._must_stop = bool(ray.get(self._answer)[1])
        self._waiting.append(("finish", (batch,)))
        return self._must_stop

    def add(self, num_rows: int, errors: Mapping[str, int], note: str = "") -> None:  # noqa: D102
        self._add("add", num_rows, errors, note)
        count("images", num_rows - sum(errors.values()), outcome="scored")
        for reason, num_failed in errors.items():
            count("images", num_failed, outcome=reason)

    def add_seconds(self, stage: str, seconds: float) -> None:  # noqa: D102
        self._add("add_seconds", stage, seconds)
        count("seconds", seconds, stage=stage)

    def keep(self, name: str, thing: Any) -> None:  # noqa: D102
        ray.get(self._send("keep", name, thing))

    def kept(self, name: str) -> list[Any]:  # noqa: D102
        return cast(list[Any], ray.get(self._book.kept.remote(name))) if _is_restarted() else []

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


def _is_restarted() -> bool:
    """True if this process stands in for one that died."""
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


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
