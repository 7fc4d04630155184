"""Connection to a Ray cluster, or to Ray started on this machine, and the settings that follow from it."""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import ray
import ray._private.node
import ray._private.worker
import ray.data
from ray._private.ray_constants import PROCESS_TYPE_RAYLET

from distributed.cluster.address import VARIABLE, named_address
from distributed.cluster.faults import reported
from distributed.imports import CHECKOUT, check_is_ours
from distributed.storage.location import first_line
from model.errors import InputError, RunFailedError
from model.memory import MEMORY_VARIABLES

# Ray Data needs CPUs for reading and writing beside the actors: with fewer than 4 logical ones it waits for ever.
_MIN_LOCAL_CPUS = 4
_LOCAL_OBJECT_STORE_BYTES = 2 * 2**30
_CONNECT_TIMEOUT_S = 10.0
_NO_PROGRESS_TIMEOUT_S = 1800


def connect(address: str | None = None) -> None:
    """Joins the cluster at an address, by default that of RAY_ADDRESS, or starts Ray on this machine; or does nothing.

    Nothing, when already connected. Ray sets RAY_ADDRESS for the jobs that are submitted to a cluster.

    Raises:
        InputError: the cluster is not there, or its workers import another package named `distributed`.
    """
    if not ray.is_initialized():
        named = named_address()
        _start(address or named, option=VARIABLE if named and not address else "--address")
        if address or named:  # workers of this machine have our path
            _check_worker_imports()
    _configure_data()


def _start(address: str | None, *, option: str) -> None:
    arguments: dict[str, Any] = {"log_to_driver": False}
    # Ours must win over a `distributed` in site-packages (Dask's), on every worker; estimators of one's own follow.
    path = os.pathsep.join(filter(None, [CHECKOUT, os.environ.get("PYTHONPATH")]))
    if address is None:
        arguments |= {
            "num_cpus": max(_MIN_LOCAL_CPUS, os.cpu_count() or 1),
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    elif not _is_code_shipped():
        arguments["runtime_env"] = {"env_vars": {"PYTHONPATH": path, **MEMORY_VARIABLES}}
    # Ray's own chatter; what matters to a user comes as an exception and leaves as one line. When a process dies, Ray
    # prints paragraphs on standard output, whatever it is told about logging.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if address:
        _reach(address, option=option)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Ray lets RAY_ADDRESS win over what its caller says; "auto" is what RAY_ADDRESS says.
    hidden = os.environ.pop(VARIABLE, None) if address and address != "auto" else None
    try:
        with _quiet_stderr(), nullcontext() if address else _alone(path):
            ray.init(address or "local", logging_level="ERROR", **arguments)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"{option} {address}: expected a Ray cluster that lets us in: {error}") from error
    except Exception as error:  # a bare one, where a process of Ray's is not there in time
        raise RunFailedError(f"Ray did not start: {first_line(error)}") from error
    finally:
        if hidden is not None:
            os.environ[VARIABLE] = hidden
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in place


def _is_code_shipped() -> bool:
    """True in a submitted job that brought its code, which Ray then puts first on every worker."""
    environment = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return "working_dir" in environment or "PYTHONPATH" in (environment.get("env_vars") or {})


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Lets Ray start here without what only clusters and dashboards need, and end at once with the process.

    Two processes are left out that nobody would ask: the dashboard's, which Ray starts for usage statistics even
    without a dashboard, and the one that follows logs, which we don't show. Workers inherit their environment: with
    one of Ray's the ones that are there already would be passed over for new ones.
    """
    node = ray._private.node.Node
    environment = {"PYTHONPATH": path, **MEMORY_VARIABLES}
    before = {name: os.environ.get(name) for name in environment}
    left_out = {name: getattr(node, name) for name in ("start_api_server", "start_log_monitor")}
    os.environ.update(environment)
    try:
        for name in left_out:
            setattr(node, name, lambda *_, **__: None)
        yield
    finally:
        for name, function in left_out.items():
            setattr(node, name, function)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    atexit.register(_end_at_once)  # Ray's own has been registered before, and so comes later


def _end_at_once() -> None:
    """Leaves Ray and kills its processes: nothing is in them that is not written, and Ray waits seconds for each."""
    node = ray._private.worker._global_node
    if node is not None and ray.is_initialized():
        node.kill_all_processes = partial(_kill_all, node, node.kill_all_processes)
        ray.shutdown()


def _kill_all(node: ray._private.node.Node, kill: Callable[..., None], **_: bool) -> None:
    import psutil  # type: ignore[import-untyped]  # Ray's own copy, found once Ray is imported

    below = []
    with suppress(psutil.NoSuchProcess):
        for raylet in node.all_processes.get(PROCESS_TYPE_RAYLET, []):
            below += psutil.Process(raylet.process.pid).children(recursive=True)
    kill(check_alive=False, allow_graceful=False, wait=False)
    for process in below:  # a raylet that is killed leaves its agents behind, for a minute or more
        with suppress(psutil.NoSuchProcess):
            process.kill()


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
    context.raise_original_map_exception = True  # wrapped and pickled, it would lose our error, its cause
    context.max_errored_blocks = 0  # a bad row is a row with an error; nothing is ever dropped
    context.max_consecutive_actor_init_deaths = 3
    context.execution_options.preserve_order = False
