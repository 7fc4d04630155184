"""Profile: what the device does while images are scored or learnt from, and how long it has nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.networks import Photo
from benchmarks.gpu.scoring import new_predictor, plain_loader
from benchmarks.gpu.training import Examples, Learner
from model.fit import FitOptions
from model.pose_model import ModelSpec

_TOP = 12
_LONG_GAP_US = 20.0  # longer than the launch of a kernel
_NAME_LENGTH = 90
_WAITS = ("Synchronize", "cudaMemcpy", "aten::item", "aten::_local_scalar_dense", "aten::nonzero")
_REGIONS = ("ProfilerStep", "Optimizer.", "##", "Torch-Compiled Region")
_NO_WAITS = ("cudaMemcpyAsync", "cudaStreamWaitEvent")


def profile_scoring(
    spec: ModelSpec, photos: Sequence[Photo], *, device: torch.device, batch_size: int, workers: int, is_compiled: bool
) -> dict[str, Any]:
    """The profile of one call of the predictor; from this thread, for operations of others are not seen on a CPU."""
    predictor = new_predictor(spec, device=device, batch_size=batch_size, workers=workers, is_compiled=is_compiled)

    def predict() -> object:
        return predictor.predict([photo.image for photo in photos], [photo.box for photo in photos])

    predict()
    return profile_of(predict, device)


def profile_training(
    spec: ModelSpec, photos: Sequence[Photo], *, device: torch.device, batch_size: int, workers: int
) -> dict[str, Any]:
    """The profile of an epoch whose batches are there before it begins."""
    learner = Learner(spec, FitOptions(precision="bfloat16" if device.type == "cuda" else "float32"), device)
    batches = list(plain_loader(Examples(photos, spec), batch_size=batch_size, workers=workers, device=device))
    learner.epoch_seconds(batches)
    return profile_of(lambda: learner.epoch_seconds(batches), device)


def profile_of(run: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """The longest kernels (on a CPU: operations) with their share of the time of all, gaps, and waits of the host."""
    is_cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]) as recorded:
        run()
        if is_cuda:
            torch.cuda.synchronize(device)
    averages = recorded.key_averages()
    # An operation of the CPU has the time of its kernels too, which are entries of their own.
    of_device = [each for each in averages if not is_cuda or _is_kernel(each, each.key)]
    times = [(each.self_device_time_total if is_cuda else each.self_cpu_time_total, each) for each in of_device]
    times = sorted((pair for pair in times if pair[0] > 0), key=lambda pair: -pair[0])
    total = sum(time for time, _ in times) or 1.0
    found: dict[str, Any] = {
        "top": [[each.key[:_NAME_LENGTH], time / total, each.count] for time, each in times[:_TOP]],
        "kinds": len(times),
        "waits": {each.key: each.count for each in averages if _is_wait(each.key)},
    }
    if is_cuda:
        ranges = [each.time_range for each in recorded.events() if _is_kernel(each, each.name)]
        found |= gaps((each.start, each.end) for each in ranges)
    return found


def _is_kernel(event: Any, name: str) -> bool:
    """True for kernels and copies; regions that somebody named span the gaps between them."""
    is_named = getattr(event, "is_user_annotation", False) or name.startswith(_REGIONS)
    return bool(event.device_type == DeviceType.CUDA and not is_named)


def _is_wait(name: str) -> bool:
    return any(part in name for part in _WAITS) and not any(part in name for part in _NO_WAITS)


def gaps(ranges: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Share of the time between the first start and the last end in which something ran, and what is between (us)."""
    merged: list[list[float]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    if not merged:
        return {"busy": 0.0, "long_gaps": 0, "longest_gap_us": 0.0}
    idle = [after[0] - before[1] for before, after in pairwise(merged)]
    whole = merged[-1][1] - merged[0][0]
    return {
        "busy": 1 - sum(idle) / whole if whole else 1.0,
        "long_gaps": sum(gap > _LONG_GAP_US for gap in idle),
        "longest_gap_us": max(idle, default=0.0),
    }
