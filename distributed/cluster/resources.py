"""Resources of a cluster, compared with what a run asks for: Ray itself would wait without an end."""

from __future__ import annotations

import os

import ray
import ray.data

from model.errors import InputError

_CPUS_PER_READER = 16  # one CPU reads what some dozens decode and compute


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


def real_cpus() -> float:
    """CPUs of the cluster; of this machine alone, those that it has rather than those that Ray was told."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    told = sum(machine.get("CPU", 0.0) for machine in machines)
    return min(told, os.cpu_count() or 1) if len(machines) == 1 else told


def room_for(*, cpus: float, gpus: float) -> int:
    """Number of processes of this size that fill the cluster best: real CPUs, some left to reading; at least 1."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    told = sum(machine.get("CPU", 0.0) for machine in machines)
    left = min(real_cpus(), told - max(1.0, told / _CPUS_PER_READER))
    places = sum(_places(machine, cpus=cpus, gpus=gpus) for machine in machines)
    return max(1, min(places, int(left / cpus)))
