"""One model on one device: forward passes of a few shapes, started without waiting for their end.

# B batch, S input size (px), K keypoints, H, W heatmap size (px)
Copies, precision, compilation and lack of memory are settled here. On a GPU, and compiled, every pass has the same
shape; on a CPU the last one is shorter where few rows are left. A row's result depends neither on its neighbours nor on
its place among them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.choices import Precision, Views
from model.errors import InputError, RunFailedError
from model.heatmap import encode_heatmaps
from model.keypoint_inputs import multi_peak_entropy
from model.memory import keep_freed_memory
from model.objective import heatmap_loss
from model.packing import PEAK_ENTROPY, TRUE_LOSS, Quantities, predict_packed, unpack
from model.pose_model import PoseModel
from model.sizes import ROW_TILE, round_up, rows_of_pass

Mark = float | torch.cuda.Event  # a moment in the order of the device's work

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Compiled kernels are otherwise chosen by timing, and another choice adds up in another order: two actors would differ.
_COMPILE_OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {"deterministic": True}

_log = logging.getLogger("lossight")


class RowLabels(NamedTuple):
    """Labels of n rows of a batch."""

    rows: NDArray[np.int64]  # (n,)
    keypoints: NDArray[np.float32]  # (n, K, 2) crop pixels
    is_labelled: NDArray[np.bool_]  # (n, K)


@dataclass(frozen=True, kw_only=True)
class PendingRows:
    """Results on their way from the device."""

    packed: Tensor  # on the host; not to be read before the end
    num_keypoints: int
    embedding_dim: int
    began: Mark
    ended: Mark

    def fetch(self) -> tuple[Quantities, float]:
        """The results, once they are there, and the seconds that the device took for them."""
        seconds = _await_seconds(self.began, self.ended)
        found = unpack(self.packed.numpy(), num_keypoints=self.num_keypoints, embedding_dim=self.embedding_dim)
        return found, seconds


class DeviceModel:
    """Runs a model on uint8 batches of one shape; threads may share it.

    When the device's memory does not suffice, the rows of a pass are halved, from then on, and the batch is done again:
    nothing is lost, but on a GPU the last bits of a score may depend on the rows of a pass.

    Args:
        model: moved to `device`.
        device: where to compute.
        batch_size: B, a multiple of `ROW_TILE`.
        views: of each image that the head judges from; 2 are twice the work.
        precision: of convolutions and matrix products, by autocast; the loss head's last layers stay in float32. None:
            bfloat16 on a GPU (float16 on one without it), float32 on a CPU. With float32, PyTorch's default lets a
            GPU's convolutions use TF32.
        is_compiled: compile the model; None: on a GPU. Without a compiler on the machine the model runs as it is, with
            a warning, and the last bits of its scores may differ.

    Raises:
        InputError: no such precision.
        RunFailedError: the device can't hold a pass of `ROW_TILE` rows.
    """

    def __init__(
        self,
        model: PoseModel,
        *,
        device: torch.device,
        batch_size: int,
        views: Views = 1,
        precision: Precision | None = None,
        is_compiled: bool | None = None,
    ) -> None:
        self.rows_per_pass = batch_size
        self.precision = precision or _default_precision(device)
        if self.precision not in DTYPES:
            raise InputError(f"precision: expected {', '.join(DTYPES)}, found {precision!r}")
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._spec, self._embedding_dim = model.spec, model.embedding_dim
        self._lock = threading.Lock()
        if not self._is_cuda:
            keep_freed_memory()
        self._copies = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]
        model = model.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._forward = predict_packed(model, views=views)
        self.is_compiled = self._is_cuda if is_compiled is None else is_compiled
        self._has_one_shape = self._is_cuda or self.is_compiled
        if self.is_compiled:
            self._compile()
        elif self._is_cuda:
            self._warm_up()

    def start(self, pixels: Tensor, *, num_rows: int, labels: RowLabels | None = None) -> PendingRows:
        """The first `num_rows` rows of a batch (B, S, S, 3) uint8, on their way; those behind are arbitrary or absent.

        On a GPU this returns at once, and `pixels` must stay as they are until the results are fetched.

        Raises:
            RunFailedError: the device can't hold a pass of `ROW_TILE` rows.
        """
        with self._lock:
            while True:
                try:
                    return self._start(pixels, num_rows, labels)
                except torch.OutOfMemoryError as error:
                    reason = str(error).partition("\n")[0]
                # Outside the handler, for the traceback keeps the tensors of the failed pass alive.
                self._halve_rows(reason)

    @torch.inference_mode()
    def compute(self, pixels: Tensor, *, num_rows: int) -> tuple[Tensor, Tensor]:
        """Packed results (n, ...) and heatmaps (n, stacks, K, H, W) of `pixels` on the device, n >= num_rows."""
        size = min(self.rows_per_pass, len(pixels))
        if size == len(pixels):
            return self._forward_in_precision(pixels)
        packed, heatmaps = [], []
        for row in range(0, num_rows, size):
            first = min(row, len(pixels) - size)  # every pass is full; the last may do rows of the one before again
            results = self._forward_in_precision(pixels[first : first + size])
            packed.append(results[0][row - first :])
            heatmaps.append(results[1][row - first :])
        return torch.cat(packed), torch.cat(heatmaps)

    @torch.inference_mode()
    def _start(self, pixels: Tensor, num_rows: int, labels: RowLabels | None) -> PendingRows:
        size = len(pixels) if self._has_one_shape else rows_of_pass(num_rows, batch_size=len(pixels))
        on_device = self._to_device(pixels[:size])
        began = self._mark()
        packed, heatmaps = self.compute(on_device, num_rows=num_rows)
        if labels is not None:
            rows = self._upload(labels.rows)
            # Contiguous, for the order of a sum follows the layout, and that depends on how the passes were cut.
            known = heatmaps[rows].float().contiguous()
            packed[rows, TRUE_LOSS] = self._true_loss(known, labels)
            packed[rows, PEAK_ENTROPY] = multi_peak_entropy(known[:, -1])
        return PendingRows(
            packed=self._to_host(packed),
            num_keypoints=self._spec.skeleton.num_keypoints,
            embedding_dim=self._embedding_dim,
            began=began,
            ended=self._mark(),
        )

    def _forward_in_precision(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        dtype = DTYPES[self.precision]
        with contextlib.ExitStack() as settings:
            settings.enter_context(torch.autocast(self._device.type, dtype=dtype, enabled=dtype != torch.float32))
            if self._is_cuda:
                # No algorithm chosen by timing, none that adds in the order of arrival.
                settings.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True))
            return self._forward(pixels)

    def _true_loss(self, heatmaps: Tensor, labels: RowLabels) -> Tensor:
        """(n,) heatmap loss against the labels; NaN where no keypoint inside the crop is labelled."""
        keypoints, is_labelled = self._upload(labels.keypoints), self._upload(labels.is_labelled)
        spec = self._spec
        targets = encode_heatmaps(
            keypoints, input_size=spec.input_size, heatmap_size=spec.heatmap_size, sigma=spec.sigma
        )
        return torch.where(is_labelled.any(dim=1), heatmap_loss(heatmaps, targets, is_labelled), torch.nan)

    def _to_device(self, pixels: Tensor) -> Tensor:
        if self._copies is None:
            return pixels
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):  # beside the pass before
            copy = pixels.to(self._device, non_blocking=True)
        computing.wait_stream(self._copies)
        copy.record_stream(computing)  # so that its memory is not reused before the pass has read it
        return copy

    def _upload(self, values: NDArray[Any]) -> Tensor:
        """A small array on the device; the host does not wait for the copy."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._is_cuda else tensor

    def _to_host(self, packed: Tensor) -> Tensor:
        if not self._is_cuda:
            return packed
        host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        return host.copy_(packed, non_blocking=True)

    def _mark(self) -> Mark:
        """Now, in the order of the device's work."""
        if not self._is_cuda:
            return time.perf_counter()
        # Blocking: waiting for it leaves the core to a decoder.
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _halve_rows(self, reason: str) -> None:
        torch.cuda.empty_cache()
        rows = self.rows_per_pass
        if rows <= ROW_TILE:
            raise RunFailedError(
                f"{self._device}: expected memory for a batch of {rows} images, found too little: {reason}"
            )
        self.rows_per_pass = round_up(-(-rows // 2))
        _log.warning(
            "%s: out of memory with %d images a pass, going on with %d", self._device, rows, self.rows_per_pass
        )

    def _compile(self) -> None:
        plain = self._forward
        try:  # an older PyTorch refuses options that it does not know
            self._forward = torch.compile(plain, dynamic=False, options=_COMPILE_OPTIONS)
            self._warm_up()
        except RunFailedError:
            raise
        except Exception as error:  # compilers fail in many ways; a model at fault fails again below
            reason = str(error).strip().partition("\n")[0]
            _log.warning("%s: the model runs uncompiled: %s: %s", self._device, type(error).__name__, reason)
            self._forward, self.is_compiled = plain, False
            self._warm_up()

    def _warm_up(self) -> None:
        """One pass: compiles, chooses kernels and takes memory now rather than in the first batch."""
        size = self._spec.input_size
        pixels = torch.zeros((self.rows_per_pass, size, size, 3), dtype=torch.uint8)
        self.start(pixels, num_rows=len(pixels)).fetch()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for the operators of this process: for many small steps, or beside other processes on the same cores.

    Threads that wait for each other take longer than one; and sums come out the same wherever they are made.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _await_seconds(began: Mark, ended: Mark) -> float:
    """Seconds between two marks; waits for the second."""
    if isinstance(ended, float):
        return ended - cast(float, began)
    ended.synchronize()
    return cast(torch.cuda.Event, began).elapsed_time(ended) / 1000


def _default_precision(device: torch.device) -> Precision:
    if device.type != "cuda":
        return "float32"
    with torch.cuda.device(device):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
