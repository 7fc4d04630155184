"""Device rate: images a second of the model alone, images lying on the device, and the share of its bound.

# B batch, S input size (px)
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.networks import new_bundle
from benchmarks.gpu.timing import seconds_of
from model.choices import Precision
from model.device import DTYPES, DeviceModel
from model.folding import fold_norms
from model.pose_model import ModelSpec, PoseModel
from model.roofline import DeviceRates, count_work, measure_device

_REPEATS = 3


def device_rate(
    spec: ModelSpec, *, device: torch.device, precision: Precision, batch_size: int, is_compiled: bool, images: int
) -> dict[str, Any]:
    """Images a second of passes that are launched one by one and, on a GPU, of the same pass as a CUDA graph."""
    crops = random_crops(spec, batch_size, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    model = DeviceModel(
        fold_norms(new_bundle(spec).model),
        device=device,
        batch_size=batch_size,
        precision=precision,
        is_compiled=is_compiled,
    )
    found: dict[str, Any] = {"launched": rate_of(lambda: model.compute(crops, num_rows=batch_size), crops, images)}
    if is_compiled and not model.is_compiled:
        found["note"] = "did not compile"
    if model.rows_per_pass < batch_size:
        found["note"] = f"in passes of {model.rows_per_pass}: too little memory"
    if device.type == "cuda":
        found |= _graph_rate(model, crops, images)
        found["memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return found | bounds(spec, crops, precision=precision)


def random_crops(spec: ModelSpec, count: int, device: torch.device) -> Tensor:
    """Crops (B, S, S, 3) uint8 on the device."""
    size = spec.input_size
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8).to(device)


def rate_of(run: Callable[[], object], crops: Tensor, images: int) -> float:
    """Images a second: the median of a few times `images` images, after one pass."""
    passes = max(1, images // len(crops))
    seconds_of(run, crops.device)

    def run_passes() -> None:
        for _ in range(passes):
            run()

    seconds = statistics.median(seconds_of(run_passes, crops.device) for _ in range(_REPEATS))
    return passes * len(crops) / seconds


def _graph_rate(model: DeviceModel, crops: Tensor, images: int) -> dict[str, Any]:
    """The pass as a CUDA graph: nothing is launched but the graph. Capturing fails where a pass waits for the host."""
    try:
        graph, packed = capture(model, crops)
    except Exception as error:  # the rate without a graph stands
        return {"graph": None, "graph_error": str(error).partition("\n")[0][:200]}
    rate = rate_of(graph.replay, crops, images)
    launched = model.compute(crops, num_rows=len(crops))[0]
    return {"graph": rate, "graph_is_equal": bool(torch.equal(packed.nan_to_num(), launched.nan_to_num()))}


def capture(model: DeviceModel, crops: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of one pass over `crops`, and the packed results that each replay overwrites."""
    side = torch.cuda.Stream(crops.device)
    side.wait_stream(torch.cuda.current_stream(crops.device))
    with torch.cuda.stream(side):  # so that libraries take their memory outside the graph
        for _ in range(2):
            model.compute(crops, num_rows=len(crops))
    torch.cuda.current_stream(crops.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = model.compute(crops, num_rows=len(crops))[0]
    graph.replay()
    torch.cuda.synchronize(crops.device)
    return graph, packed


def bounds(spec: ModelSpec, crops: Tensor, *, precision: Precision) -> dict[str, float]:
    """Images a second that memory and arithmetic allow at most: see `model.roofline`."""
    dtype = DTYPES[precision]
    model = PoseModel(spec).eval().to(crops.device)
    work = count_work(model, crops[:1], batch_size=len(crops), dtype=dtype)
    rates = machine_rates(crops.device, dtype)
    return {
        "memory_bound": rates.bytes_per_s / work.bytes,
        "arithmetic_bound": rates.flops_per_s / work.flops,
        "mb_per_image": work.bytes / 1e6,
        "gflop_per_image": work.flops / 1e9,
        "device_tb_per_s": rates.bytes_per_s / 1e12,
        "device_tflop_per_s": rates.flops_per_s / 1e12,
    }


@functools.cache
def machine_rates(device: torch.device, dtype: torch.dtype) -> DeviceRates:
    """Measured once a process."""
    return measure_device(device, dtype=dtype)
