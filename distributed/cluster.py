"""Ray's moving interfaces, used here and nowhere else: start-up, data context, actor pools, workers, progress."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import ray
import ray.data
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from distributed.imports import CHECKOUT, check_is_ours
from distributed.runs.logbook import Logbook, State
from distributed.runs.remote_log import RemoteLog
from distributed.storage.location import Location, first_line
from model.errors import InputError, LossightError, RunFailedError

# Ray Data needs CPUs for reading and writing beside the actors: with fewer than 4 logical ones it waits for ever.
_MIN_LOCAL_CPUS = 4
_LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
_POLL_S = 0.5
_CONNECT_TIMEOUT_S = 10.0
_NO_PROGRESS_TIMEOUT_S = 1800
_CPUS_PER_READER = 16  # one CPU reads what some dozens decode and compute
_TASKS_IN_FLIGHT = 4  # blocks at an actor: one being scored, the others on their way

Result = TypeVar("Result")


def connect(address: str | None = None) -> None:
    """Joins the cluster at an address, by default that of RAY_ADDRESS, or starts Ray on this machine; or does nothing.

    Nothing, when already connected. Ray sets RAY_ADDRESS for the jobs that are submitted to a cluster.

    Raises:
        InputError: the cluster is not there, or its workers import another package named `distributed`.
    """
    if not ray.is_initialized():
        named = os.environ.get("RAY_ADDRESS")
        _start(address or named, option="RAY_ADDRESS" if named and not address else "--address")
        _check_worker_imports()
    _configure_data()


def _start(address: str | None, *, option: str) -> None:
    arguments: dict[str, Any] = {"log_to_driver": False}
    if not _is_code_shipped():
        # Ours must win over a `distributed` in site-packages (Dask's), on every worker; estimators of one's own follow.
        path = os.pathsep.join(filter(None, [CHECKOUT, os.environ.get("PYTHONPATH")]))
        arguments["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    if address is None:
        arguments |= {
            "num_cpus": max(_MIN_LOCAL_CPUS, os.cpu_count() or 1),
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    # Ray's own chatter; what matters to a user comes as an exception and leaves as one line. When a process dies, Ray
    # prints paragraphs on standard output, whatever it is told about logging.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if address:
        _reach(address, option=option)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Ray lets RAY_ADDRESS win over what its caller says; "auto" is what RAY_ADDRESS says.
    hidden = os.environ.pop("RAY_ADDRESS", None) if address and address != "auto" else None
    try:
        with _quiet_stderr():
            ray.init(address or "local", logging_level="ERROR", **arguments)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"{option} {address}: expected a Ray cluster that lets us in: {error}") from error
    except Exception as error:  # a bare one, where a process of Ray's is not there in time
        raise RunFailedError(f"Ray did not start: {first_line(error)}") from error
    finally:
        if hidden is not None:
            os.environ["RAY_ADDRESS"] = hidden
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place


def _is_code_shipped() -> bool:
    """Whether this is a submitted job that brought its code: Ray then puts it first on every worker."""
    environment = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return "working_dir" in environment or "PYTHONPATH" in (environment.get("env_vars") or {})


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Hides what Ray's native code writes while it starts: that it was told to write nothing later."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _reach(address: str, *, option: str) -> None:
    """Asks whether anything answers there; Ray itself tries for minutes, with a page of messages.

    Raises:
        InputError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto", or nonsense: Ray answers at once
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"{option} {address}: expected a Ray cluster, found none: {error}") from error


def _check_worker_imports() -> None:
    def imported_from() -> str:  # nested, so that it travels by value and needs no import of ours
        import distributed as found

        return str(found.__file__)

    with reported():
        found = ray.get(ray.remote(num_cpus=0)(imported_from).remote())
    check_is_ours(found, where="a worker")


def _configure_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours counts images, Ray's count blocks
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    context.max_errored_blocks = 0  # a bad row is a row with an error; nothing is ever dropped
    context.max_consecutive_actor_init_deaths = 3
    context.execution_options.preserve_order = False


def read_source(source: Any) -> ray.data.Dataset:
    """A dataset with one block a read task."""
    return ray.data.read_datasource(source, override_num_blocks=source.num_bins)


def actor_pool(*, min_size: int, max_size: int, cpus: float, gpus: float) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of actors; the next blocks wait at each, so that none waits for one.

    Raises:
        InputError: the cluster lacks the CPUs or GPUs, which Ray would wait for without an end.
    """
    check_resources(workers=min_size, cpus=cpus, gpus=gpus)
    return {
        "compute": ray.data.ActorPoolStrategy(
            min_size=min_size, max_size=max_size, max_tasks_in_flight_per_actor=_TASKS_IN_FLIGHT
        ),
        "num_cpus": cpus,
        "num_gpus": gpus,
    }


def check_resources(*, workers: int, cpus: float, gpus: float) -> None:
    """Passes if the cluster's machines hold so many workers of this size, and one CPU for reading beside them.

    Raises:
        InputError: says what the cluster has.
    """
    found = ray.cluster_resources()
    for name, needed in (("CPU", workers * cpus + 1), ("GPU", workers * gpus)):
        if needed > found.get(name, 0):
            what = f"{needed:g} {name}s" + (" (reading takes one)" if name == "CPU" else "")
            raise InputError(f"cluster: expected {what}, found {found.get(name, 0):g}")
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(_places(machine, cpus=cpus, gpus=gpus) for machine in machines)
    if places < workers:
        raise InputError(
            f"cluster: expected room for {workers} workers of {cpus:g} CPUs and {gpus:g} GPUs each, "
            f"found room for {places} on {len(machines)} machines"
        )


def _places(machine: dict[str, float], *, cpus: float, gpus: float) -> int:
    wanted = {"CPU": cpus, "GPU": gpus}
    return min(int(machine.get(name, 0) / amount) for name, amount in wanted.items() if amount)


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


def real_cpus() -> float:
    """CPUs of the cluster; of this machine alone, those that it has rather than those that Ray was told."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    told = sum(machine.get("CPU", 0.0) for machine in machines)
    return min(told, os.cpu_count() or 1) if len(machines) == 1 else told


def room_for(*, cpus: float, gpus: float) -> int:
    """How many processes of this size the cluster is best filled with: real CPUs, some left to reading; at least 1."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    told = sum(machine.get("CPU", 0.0) for machine in machines)
    left = min(real_cpus(), told - max(1.0, told / _CPUS_PER_READER))
    places = sum(_places(machine, cpus=cpus, gpus=gpus) for machine in machines)
    return max(1, min(places, int(left / cpus)))


def run_tasks(
    function: Callable[[Any], Result], items: Sequence[Any], *, cpus: float = 1, gpus: float = 0
) -> list[Result]:
    """The function's results for all items, each from a task with so many CPUs and GPUs."""

    def call(item: Any) -> Result:
        return function(item)

    remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(call)
    with reported():
        return cast(list[Result], ray.get([remote.remote(item) for item in items]))


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
    """Whether a machine of this training's workers is about to be taken away; a barrier for all of them."""
    import ray.train

    return ray.train.get_preemption_info() is not None


@contextmanager
def reported() -> Iterator[None]:
    """Lets our own errors out of Ray's wrapping, and turns Ray's into one line.

    Raises:
        LossightError: whichever was the cause.
    """
    try:
        yield
    except Exception as error:
        cause = _find_ours(error)
        if cause is error:
            raise
        if cause is not None:
            cause.args = (first_line(cause),)  # Ray Data adds advice of its own to the text
            raise cause from error
        raise RunFailedError(f"compute failed: {_reason(error)}") from error


def _find_ours(error: BaseException | None) -> LossightError | None:
    while error is not None:
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, LossightError) and not isinstance(error, RayTaskError):  # Ray's copies have stacks in them
            return error
        error = cause
    return None


def _reason(error: BaseException) -> str:
    """The last line that names an error: Ray's own text has stacks before it, and hints after."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Invalid)\b", line)]
    return (named or lines or [type(error).__name__])[-1]
