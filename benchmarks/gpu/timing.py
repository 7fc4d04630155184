"""Timing: seconds until a device has finished; medians of arms that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until all that `run` gave the device is done."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def take_turns(arms: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Each arm's results by round; arms take turns, so all meet the same machine. A round before them warms up."""
    for arm in arms.values():
        arm()
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            found[name].append(arm())
    return found


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of one arm by the other."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
