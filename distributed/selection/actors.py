"""k-centre greedy with its shards in Ray actors: each keeps its rows in memory, and one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import pyarrow as pa

from distributed.selection.coreset import Limits, shard_of
from distributed.selection.farthest import Picks, pick_farthest
from distributed.selection.shard import Candidates, CoresetShard, Step

_LIVES = 3  # of an actor for one question: what kills it so often is its rows


def k_centre_on_ray(
    loaders: Sequence[Callable[[], pa.Table]], *, k: int, cpus_per_actor: float = 1, **limits: Unpack[Limits]
) -> Picks:
    """What `k_centre_greedy` picks from the rows of all loaders, each called in an actor that keeps its rows.

    A loader gives a table as `shard_of` takes it; it travels to its actor, and gives the same again where an actor is
    lost. The rows themselves never come to the driver, but for the candidates of each round. Ray has to be connected.

    Raises:
        InputError: the cluster lacks the CPUs.
        RunFailedError: an actor was lost again and again.
        ValueError: there is no loader, or as in `k_centre_greedy`.
    """
    from distributed.cluster.faults import reported
    from distributed.cluster.resources import check_resources

    if not loaders:
        raise ValueError("expected at least one loader, found none")
    check_resources(workers=len(loaders), cpus=cpus_per_actor, gpus=0)
    actors = [_Actor(load, cpus=cpus_per_actor) for load in loaders]

    def ask(method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for actor, given in zip(actors, arguments, strict=True):
            actor.ask(method, given)
        return [actor.answer() for actor in actors]

    try:
        with reported():
            return pick_farthest(ask, num_shards=len(actors), k=k, **limits)
    finally:
        for actor in actors:
            actor.end()


class _Actor:
    """A shard in an actor, as the driver sees it: it knows all steps, to bring a successor up to date with one."""

    def __init__(self, load: Callable[[], pa.Table], *, cpus: float) -> None:
        self._load = load
        self._cpus = cpus
        self._steps: list[Step] = []  # those that were answered; the actors' lists share their centres
        self._start()

    def _start(self) -> None:
        import ray

        self._remote: Any = ray.remote(num_cpus=self._cpus)(_LoadedShard).remote(self._load)

    def ask(self, method: str, given: tuple[Any, ...]) -> None:
        """Begins a call; `answer` has its result."""
        self._method, self._given = method, given
        self._asked = getattr(self._remote, method).remote(*given)

    def answer(self) -> Any:
        """The result of the call; from a successor, where the actor is lost."""
        import ray
        from ray.exceptions import RayActorError

        for life in range(_LIVES):
            try:
                found = ray.get(self._asked)
                break
            except RayActorError:
                if life + 1 == _LIVES:
                    raise
                self._start()
                given = self._given if self._method == "extent" else (_together([*self._steps, *self._given]),)
                self._asked = getattr(self._remote, self._method).remote(*given)
        if self._method == "advance":
            self._steps.extend(self._given)
        return found

    def end(self) -> None:
        """Ends the actor; its memory is free."""
        import ray

        ray.kill(self._remote)


def _together(steps: Sequence[Step]) -> Step:
    """One step that says what all of them said."""
    return steps[-1]._replace(
        centres=np.concatenate([step.centres for step in steps]),
        taken=np.concatenate([step.taken for step in steps]),
        closed=[group for step in steps for group in step.closed],
    )


class _LoadedShard:
    """A shard that loads its rows where it lives: on the first call, since an actor that fails at birth hides why."""

    def __init__(self, load: Callable[[], pa.Table]) -> None:
        self._load = load

    @cached_property
    def _shard(self) -> CoresetShard:
        return shard_of(self._load())

    def extent(self) -> tuple[int, int, float]:
        return self._shard.extent()

    def advance(self, step: Step) -> Candidates:
        return self._shard.advance(step)
