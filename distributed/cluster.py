"""Ray's moving interfaces, used here and nowhere else: start-up, data context, actor pools, workers, progress."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from distributed.imports import CHECKOUT, check_is_ours
from distributed.progress import Progress
from distributed.storage import Location
from model.errors import InputError, LossightError, RunFailedError

# Ray Data needs CPUs for reading and writing beside the actors: with fewer than 4 logical ones it waits for ever.
_MIN_LOCAL_CPUS = 4
_LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
_POLL_S = 0.5
_NO_PROGRESS_TIMEOUT_S = 1800


def connect(address: str | None = None) -> None:
    """Joins the cluster at an address, or starts Ray on this machine; does nothing when already connected.

    Raises:
        InputError: the cluster is not there, or its workers import another package named `distributed`.
    """
    if not ray.is_initialized():
        _start(address)
        _check_worker_imports()
    _configure_data()


def _start(address: str | None) -> None:
    # Ours must win over a `distributed` in site-packages (Dask's), on every worker.
    arguments: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": CHECKOUT}}, "log_to_driver": False}
    if address is None:
        arguments |= {
            "num_cpus": max(_MIN_LOCAL_CPUS, os.cpu_count() or 1),
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    # Ray's own chatter; what matters to a user comes as an exception and leaves as one line.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level="ERROR", **arguments)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"--address {address}: expected a Ray cluster that lets us in: {error}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place


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


def actor_pool(*, size: int, cpus: float, gpus: float) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool of actors; two calls at a time, so that the next batch waits ready.

    Raises:
        InputError: the cluster lacks the CPUs or GPUs, which Ray would wait for without an end.
    """
    check_resources(cpus=size * cpus + 1, gpus=size * gpus)
    return {
        "compute": ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=4),
        "num_cpus": cpus,
        "num_gpus": gpus,
    }


def check_resources(*, cpus: float, gpus: float) -> None:
    """Passes if the cluster has so many CPUs and GPUs.

    Raises:
        InputError: says what it has.
    """
    found = ray.cluster_resources()
    for name, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > found.get(name, 0):
            raise InputError(
                f"cluster: expected {needed:g} {name}s (reading takes one CPU), found {found.get(name, 0):g}"
            )


@ray.remote(num_cpus=0)
class _Board:
    """Counts that processes of a run report to; the driver reads them."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"num_rows": 0, "num_errors": 0, "note": ""}

    def add(self, num_rows: int, num_errors: int, note: str) -> None:
        """Adds to the counts; a note replaces the last."""
        state = self._state
        self._state = {
            "num_rows": state["num_rows"] + num_rows,
            "num_errors": state["num_errors"] + num_errors,
            "note": note or state["note"],
        }

    def read(self) -> dict[str, Any]:
        """Counts and note so far."""
        return self._state


class CountRows:
    """Callable that travels to the workers; nobody waits for its answer."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def __call__(self, num_rows: int, num_errors: int, note: str = "") -> None:
        """Adds to the counts on the board."""
        self._board.add.remote(num_rows, num_errors, note)


@contextmanager
def watched(stage: str, *, total: int, progress: Progress) -> Iterator[CountRows]:
    """A counter for the workers whose state is told to `progress` while the block runs; errors of Ray leave as ours."""
    board: Any = _Board.remote()  # type: ignore[attr-defined]
    is_over = threading.Event()

    def tell() -> None:
        state = ray.get(board.read.remote())
        progress(stage, state["num_rows"], total, num_errors=state["num_errors"], note=state["note"])

    def keep_telling() -> None:
        while not is_over.wait(_POLL_S):
            tell()

    watcher = threading.Thread(target=keep_telling, name="progress", daemon=True)
    watcher.start()
    try:
        with reported():
            yield CountRows(board)
        tell()
    finally:
        is_over.set()
        watcher.join()
        ray.kill(board)


def train_on_workers(
    loop: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    *,
    dataset: ray.data.Dataset,
    workers: int,
    cpus: float,
    gpus: float,
    records: Location,
) -> None:
    """Runs a training loop on Ray Train workers, each with its shard of the dataset as "train".

    Ray keeps its own records below `records`; the name is new for each call, since Ray resumes whatever it finds.
    """
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    TorchTrainer(
        loop,
        train_loop_config=arguments,
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=uuid.uuid4().hex[:8], storage_path=records.path, storage_filesystem=records.filesystem
        ),
        datasets={"train": dataset},
    ).fit()


@contextmanager
def reported() -> Iterator[None]:
    """Lets our own errors out of Ray's wrapping, and turns Ray's into one line.

    Raises:
        LossightError: whichever was the cause.
    """
    try:
        yield
    except LossightError:
        raise
    except Exception as error:
        cause = _find_ours(error)
        if cause is not None:
            raise cause from error
        raise RunFailedError(f"compute failed: {_reason(error)}") from error


def _find_ours(error: BaseException | None) -> LossightError | None:
    while error is not None:
        if isinstance(error, LossightError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """The last line that names an error: Ray's own text has stacks before it, and hints after."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)]
    return (named or lines or [type(error).__name__])[-1]
