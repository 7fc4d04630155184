"""The physical bound of a model on a device: how many images a second its arithmetic and its memory allow at most.

Source: Williams, Waterman & Patterson, "Roofline: An Insightful Visual Performance Model for Multicore Architectures",
CACM 2009, with the bytes of a perfectly fused model (see `count_work`) in place of those that one implementation moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_MEASURE_S = 0.3  # for each of the two rates
_MIN_REPEATS = 3
_GEMM_SIZE = {"cuda": 8192, "cpu": 1024}  # large enough to be bound by arithmetic
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}  # far larger than caches


class ImageWork(NamedTuple):
    """Arithmetic and memory traffic of one image."""

    flops: float  # a multiplication and an addition are two
    bytes: float  # to and from the device's memory


class DeviceRates(NamedTuple):
    """The most that a device does in a second."""

    flops_per_s: float
    bytes_per_s: float  # read and written together


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Upper bound in images a second, and the resource that sets it."""

    images_per_s: float
    limit: Literal["flops", "bytes"]


def flops_per_image(model: nn.Module, *, input_size: int) -> float:
    """The arithmetic of one image of a pose model, which computes one on its own device."""
    pixels = torch.zeros((1, input_size, input_size, 3), dtype=torch.uint8, device=next(model.parameters()).device)
    return count_work(model, pixels, batch_size=1, dtype=torch.float32).flops


def count_work(model: nn.Module, pixels: Tensor, *, batch_size: int, dtype: torch.dtype) -> ImageWork:
    """The work for one image in batches of `batch_size`, counted while the model computes `pixels`.

    FLOPs are those of convolutions and matrix products. Bytes are the least that a layer-by-layer execution moves:
    every convolution and fully connected layer reads its input and writes its output once, in `dtype`, and reads its
    weights once a batch; all else (norms, activations, sums of branches, pooling, upsampling) is taken as fused into
    them, free of charge. A fusion of several convolutions into one kernel could do with fewer.

    Args:
        model: computes from `pixels`, on the device where these are.
        pixels: images (n, ...) as the model takes them; one is enough.
        batch_size: images that share one reading of the weights.
        dtype: of weights and activations in the execution that is bounded.
    """
    values, weights = 0, 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values, weights
        values += inputs[0].numel() + output.numel()
        weights += sum(parameter.numel() for parameter in layer.parameters(recurse=False))

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    num_images = len(pixels)
    num_bytes = (values / num_images + weights / batch_size) * dtype.itemsize
    return ImageWork(counter.get_total_flops() / num_images, num_bytes)


def measure_device(device: torch.device, *, dtype: torch.dtype) -> DeviceRates:
    """The best of a few large matrix products in `dtype`, and of a few large copies; under a second after warm-up."""
    size, num_bytes = _GEMM_SIZE[device.type], _COPY_BYTES[device.type]
    # Random values: products of zeros take less power, and run faster than real ones.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return DeviceRates(
        2 * size**3 / _best_seconds(lambda: torch.mm(left, right, out=product), device),
        2 * num_bytes / _best_seconds(lambda: target.copy_(source), device),
    )


def bound(work: ImageWork, rates: DeviceRates) -> Bound:
    """The lower of what arithmetic and memory allow: a model can't beat it without doing less work."""
    by_flops = rates.flops_per_s / work.flops
    by_bytes = rates.bytes_per_s / work.bytes
    if by_flops < by_bytes:
        return Bound(images_per_s=by_flops, limit="flops")
    return Bound(images_per_s=by_bytes, limit="bytes")


def _best_seconds(run: Callable[[], Any], device: torch.device) -> float:
    run()
    best, repeats, stop = float("inf"), 0, time.perf_counter() + _MEASURE_S
    while repeats < _MIN_REPEATS or time.perf_counter() < stop:
        best = min(best, _seconds(run, device))
        repeats += 1
    return best


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        before.record()
        run()
        after.record()
        after.synchronize()
    return before.elapsed_time(after) / 1000
