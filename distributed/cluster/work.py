"""Ray's ways of spreading work, as this code uses them: actor pools, tasks, training workers, a logbook."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed.cluster.faults import reported
from distributed.cluster.resources import check_resources
from distributed.runs.logbook import Logbook, State
from distributed.runs.remote_log import RemoteLog
from distributed.storage.location import Location

_POLL_S = 0.5
_TASKS_IN_FLIGHT = 2  # items at an actor: one in hand, one that waits; with one, Ray never adds actors
_PACKED = "packed"  # a column

Result = TypeVar("Result")


def on_actors(
    make: Callable[[], Callable[[Any], Result]],
    items: Sequence[Any],
    *,
    min_size: int,
    max_size: int,
    cpus: float,
    gpus: float,
) -> Iterator[Result]:
    """The results for all items as they come, each computed by one actor of a pool of Ray Data's.

    Items and results travel in blocks of one. Where a process dies, its item is begun anew by another.

    Args:
        make: makes what is called with items; once in each process.
        items: what to call it with.
        min_size: fewest actors, as long as there are so many items.
        max_size: most.
        cpus: of an actor.
        gpus: of an actor.

    Raises:
        InputError: the cluster lacks the CPUs or GPUs, which Ray would wait for without an end.
    """
    min_size, max_size = min(min_size, len(items)), min(max_size, len(items))
    check_resources(workers=min_size, cpus=cpus, gpus=gpus)
    found = ray.data.from_blocks([_packed(item) for item in items]).map_batches(
        _Caller,
        fn_constructor_args=(make,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=min_size, max_size=max_size, max_tasks_in_flight_per_actor=_TASKS_IN_FLIGHT
        ),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    for block in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        for value in block[_PACKED]:
            yield pickle.loads(value.as_buffer())  # noqa: S301 - our own, of a moment ago


class _Caller:
    """An actor of `on_actors`."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self._call = make()

    def __call__(self, block: pa.Table) -> pa.Table:
        (item,) = block[_PACKED]
        return _packed(self._call(pickle.loads(item.as_buffer())))  # noqa: S301 - as above


def _packed(value: Any) -> pa.Table:
    return pa.table({_PACKED: pa.array([ray.cloudpickle.dumps(value)], pa.large_binary())})


@contextmanager
def watched(tell: Callable[[State], None], *, should_stop: Callable[[], bool] = lambda: False) -> Iterator[RemoteLog]:
    """A log for the processes of a run, whose state is told while the block runs; errors of Ray leave as ours.

    When `should_stop` says yes, the log asks all to stop.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lives as the driver
    book: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Logbook).remote()
    log = RemoteLog(book)
    is_over = threading.Event()

    def keep_telling() -> None:
        with suppress(RayError):  # the calling thread meets it too, and ends the run
            while not is_over.wait(_POLL_S):
                tell(log.read())
                if should_stop():
                    log.stop()

    watcher = threading.Thread(target=keep_telling, name="progress", daemon=True)
    watcher.start()
    try:
        with reported():
            yield log
        tell(log.read())
    finally:
        is_over.set()
        watcher.join()
        ray.kill(book)


def run_tasks(
    function: Callable[[Any], Result], items: Sequence[Any], *, cpus: float = 1, gpus: float = 0
) -> list[Result]:
    """The function's results for all items, each from a task with so many CPUs and GPUs."""

    def call(item: Any) -> Result:
        return function(item)

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(call)
    with reported():
        return cast(list[Result], ray.get([remote.remote(item) for item in items]))


def run_as_they_end(
    function: Callable[[Any], Result], upcoming: Iterator[Any | None], *, at_once: int, cpus: float = 1, gpus: float = 0
) -> Iterator[Result]:
    """The function's results for items as tasks end, some at once, each with so many CPUs and GPUs.

    Before each wait `upcoming` is asked for items until it gives None: there is none at the moment, and none at all if
    no task is at work.
    """

    def call(item: Any) -> Result:
        return function(item)

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(call)
    at_work: list[Any] = []
    with reported():
        while True:
            while len(at_work) < at_once and (item := next(upcoming)) is not None:
                at_work.append(remote.remote(item))
            if not at_work:
                return
            (ended,), at_work = ray.wait(at_work, num_returns=1)
            yield cast(Result, ray.get(ended))


def train_on_workers(
    loop: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    *,
    dataset: ray.data.Dataset,
    min_workers: int,
    max_workers: int,
    cpus: float,
    gpus: float,
    max_failures: int,
    records: Location,
) -> None:
    """Runs a training loop on Ray Train workers, each with its shard of the dataset as "train".

    When a worker dies, all begin anew, with as many as the cluster then has room for, `max_failures` times; machines
    that are taken away don't count. Ray keeps its own records below `records`; the name is new for each call, since
    Ray resumes whatever it finds: the loop has checkpoints of its own.
    """
    import ray.train  # takes seconds, and only training needs it
    from ray.train.torch import TorchTrainer

    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    TorchTrainer(
        loop,
        train_loop_config=arguments,
        scaling_config=ray.train.ScalingConfig(
            num_workers=min_workers if min_workers == max_workers else (min_workers, max_workers),
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=records.path,
            storage_filesystem=records.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
        datasets={"train": dataset},
    ).fit()


def is_being_preempted() -> bool:
    """True if a machine of this training's workers is about to be taken away; a barrier for all of them."""
    import ray.train

    return ray.train.get_preemption_info() is not None
