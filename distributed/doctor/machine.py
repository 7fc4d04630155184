"""Checks of this machine and of a cluster: what each found, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from distributed.imports import check_is_ours
from model.errors import LossightError

State = Literal["ok", "warning", "failed"]

OBJECT_STORE_BYTES = 2 * 2**30  # what `cluster` gives to Ray on this machine
_MIN_MEMORY_BYTES = 4 * 2**30  # that object store, and a process that computes
_MIN_TEMP_BYTES = 5 * 2**30
_MAX_TEMP_SHARE = 0.95  # Ray stops spilling to a fuller disk
_CLUSTER_TIMEOUT_S = 60.0
_GIB = 2**30
_SHARED_MEMORY = "/dev/shm"  # noqa: S108
_CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check; `fix` is empty where there is nothing to do."""

    name: str
    state: State
    found: str
    fix: str = ""


def check_machine() -> Iterator[Finding]:
    """Checks of versions, CPUs, memory, disks and GPUs of this machine."""
    yield Finding(name="Python", state="ok", found=platform.python_version())
    yield from _check_pins()
    yield _check_threads(len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS"))
    yield _check_memory(_memory_bytes())
    if os.path.isdir(_SHARED_MEMORY):
        yield _check_shared_memory(shutil.disk_usage(_SHARED_MEMORY).free)
    folder = tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    yield _check_temp(folder, total=usage.total, free=usage.free)
    yield from _check_gpus()


def _check_pins() -> Iterator[Finding]:
    """The packages that pyproject.toml pins exactly."""
    try:
        requirements = importlib.metadata.requires("lossight") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(name="lossight", state="warning", found="not installed", fix="pip install --no-deps --editable .")
        return
    for requirement in requirements:
        package, is_exact, pinned = requirement.partition("==")
        if is_exact and ";" not in requirement:
            yield _check_version(package.partition("[")[0], pinned)


def _check_version(package: str, pinned: str) -> Finding:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found.partition("+")[0] == pinned:  # the rest tells builds apart
        return Finding(name=package, state="ok", found=found)
    fix = "pip install --requirement requirements.lock"
    state: State = "failed" if found == "none" else "warning"
    return Finding(name=package, state=state, found=f"expected {pinned}, found {found}", fix=fix)


def _check_threads(num_cpus: int, threads: str | None) -> Finding:
    if threads and threads.isdecimal() and int(threads) > num_cpus:
        found = f"{num_cpus}, but OMP_NUM_THREADS={threads}"
        return Finding(
            name="CPUs", state="warning", found=found, fix=f"unset it, or at most {num_cpus}: more is slower"
        )
    return Finding(name="CPUs", state="ok", found=str(num_cpus))


def _memory_bytes() -> int:
    """Memory of the machine, or of the container that we are in."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open(_CGROUP_LIMIT, encoding="ascii") as stream:
            return min(physical, int(stream.read()))
    except (OSError, ValueError):  # no such file, or "max"
        return physical


def _check_memory(num_bytes: int) -> Finding:
    fix = f"runs without Ray (--debug, --workers 0) need less than the {_MIN_MEMORY_BYTES / _GIB:.0f} GiB of others"
    return _check_room("memory", f"{num_bytes / _GIB:.1f} GiB", is_enough=num_bytes >= _MIN_MEMORY_BYTES, fix=fix)


def _check_shared_memory(free: int) -> Finding:
    fix = f"Ray's object store needs {OBJECT_STORE_BYTES / _GIB:.0f} GiB or goes to disk: docker run --shm-size=3g"
    return _check_room("shared memory", f"{free / _GIB:.1f} GiB free", is_enough=free >= OBJECT_STORE_BYTES, fix=fix)


def _check_temp(folder: str, *, total: int, free: int) -> Finding:
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    is_enough = free >= max(_MIN_TEMP_BYTES, (1 - _MAX_TEMP_SHARE) * total)
    fix = "Ray spills there and stops at 95 %: make room, or point TMPDIR elsewhere"
    return _check_room(f"disk of {folder}", found, is_enough=is_enough, fix=fix)


def _check_room(name: str, found: str, *, is_enough: bool, fix: str) -> Finding:
    return Finding(name=name, state="ok" if is_enough else "warning", found=found, fix="" if is_enough else fix)


def _check_gpus() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        found = f"{device.name}, {device.total_memory / _GIB:.0f} GiB, {bf16}"
        yield Finding(name=f"GPU {index}", state="ok", found=found)
    if torch.cuda.device_count():
        return
    if os.path.exists("/proc/driver/nvidia/version"):
        fix = "install the build of torch for this driver, and look at CUDA_VISIBLE_DEVICES"
        yield Finding(name="GPU", state="warning", found="a driver, but torch sees no device", fix=fix)
    else:
        yield Finding(name="GPU", state="ok", found="none: computing on CPUs")


def check_cluster(address: str) -> Iterator[Finding]:
    """Checks that the Ray cluster lets us in, and that each node runs the versions of this process."""
    import ray

    from distributed.cluster.connection import connect
    from distributed.cluster.faults import reported

    try:
        connect(address)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        with reported():
            facts = _ask_nodes(nodes)
    except (LossightError, RuntimeError) as error:  # the latter is Ray's when versions differ
        fix = "check the address, that the cluster is up, and that it runs the same Python and Ray"
        yield Finding(name="cluster", state="failed", found=" ".join(str(error).split()), fix=fix)
        return
    yield Finding(name="cluster", state="ok", found=_describe(ray.cluster_resources(), num_nodes=len(nodes)))
    for node, found in zip(nodes, facts, strict=True):
        yield _check_node(f"node {node['NodeManagerAddress']}", found, here=_facts())


def _ask_nodes(nodes: list[dict[str, Any]]) -> list[dict[str, str]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(_facts)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    answers: list[dict[str, str]] = ray.get(asked, timeout=_CLUSTER_TIMEOUT_S)
    return answers


def _facts() -> dict[str, str]:
    import distributed

    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "pyarrow")}
    return {"distributed": str(distributed.__file__), "Python": platform.python_version(), **versions}


def _check_node(name: str, found: dict[str, str], *, here: dict[str, str]) -> Finding:
    try:
        check_is_ours(found["distributed"], where=name)
    except LossightError as error:
        return Finding(name=name, state="failed", found=str(error), fix="uninstall Dask's distributed there")
    others = [
        f"{key} {found[key]}, here {here[key]}" for key in here if key != "distributed" and found[key] != here[key]
    ]
    if others:
        return Finding(name=name, state="warning", found="; ".join(others), fix="install requirements.lock there too")
    return Finding(name=name, state="ok", found="the same versions as here")


def _describe(resources: dict[str, float], *, num_nodes: int) -> str:
    return f"{num_nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"
