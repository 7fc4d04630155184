"""Encoded images to batches of network inputs, in threads, some batches ahead of the one handed out.

# B rows of a batch, S input size (px)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ImageError
from model.example import make_crop
from model.image import Affine, Bytes
from model.spec import ModelSpec

Box = NDArray[np.floating] | None

# One batch would do if decoding took equally long for each; the second evens out a slow one.
_BATCHES_AHEAD = 2
# A task of one image would cost its future and two thread switches, some 30 us, for each.
_ROWS_PER_TASK = 8


@dataclass(frozen=True, kw_only=True)
class DecodedBatch:
    """The crops of consecutive images; each in the row of its place, black where there is none."""

    start: int  # index of the first image
    pixels: Tensor  # (B, S, S, 3) uint8, RGB
    crops: list[Affine | str]  # one an image, at most B: crop pixels -> image pixels, or the reason why there is none
    decode_s: float  # seconds of all threads together
    wait_s: float  # seconds that the caller waited for them

    @property
    def readable(self) -> NDArray[np.int64]:
        """Rows that hold a crop, ascending."""
        return np.array([row for row, crop in enumerate(self.crops) if not isinstance(crop, str)], np.int64)


class BatchDecoder:
    """Decodes and crops images as a bundle prescribes; several callers may share its threads.

    Args:
        spec: what the model expects.
        batch_size: B.
        num_threads: threads that decode and crop.
        is_pinned: batches lie in pinned memory, from which a GPU copies on its own. PyTorch keeps and reuses it.
    """

    def __init__(self, spec: ModelSpec, *, batch_size: int, num_threads: int, is_pinned: bool) -> None:
        self._spec = spec
        self._shape = (batch_size, spec.input_size, spec.input_size, 3)
        self._is_pinned = is_pinned
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def batches(self, images: Sequence[Bytes], boxes: Sequence[Box]) -> Iterator[DecodedBatch]:
        """All images in order, B at a time, the last batch filled up with black."""
        started: deque[_Decoding] = deque()
        for start in range(0, len(images), self._shape[0]):
            rows = slice(start, start + self._shape[0])
            started.append(self._begin(start, images[rows], boxes[rows]))
            if len(started) > _BATCHES_AHEAD:
                yield _finish(started.popleft())
        while started:
            yield _finish(started.popleft())

    def _begin(self, start: int, images: Sequence[Bytes], boxes: Sequence[Box]) -> _Decoding:
        pixels = torch.empty(self._shape, dtype=torch.uint8, pin_memory=self._is_pinned)
        pixels[len(images) :] = 0
        rows = pixels.numpy()
        pieces = [slice(first, first + _ROWS_PER_TASK) for first in range(0, len(images), _ROWS_PER_TASK)]
        tasks = [self._threads.submit(self._decode, images[piece], boxes[piece], rows[piece]) for piece in pieces]
        return _Decoding(start, pixels, tasks)

    def _decode(
        self, images: Sequence[Bytes], boxes: Sequence[Box], rows: NDArray[np.uint8]
    ) -> tuple[list[Affine | str], float]:
        """Fills the rows, of which there may be more; returns `DecodedBatch.crops` and the seconds it took."""
        started = time.perf_counter()
        crops: list[Affine | str] = []
        for image, box, row in zip(images, boxes, rows, strict=False):
            try:
                crop = make_crop(image, box, spec=self._spec)
            except ImageError as error:
                row[:] = 0
                crops.append(error.reason)
            else:
                row[:] = crop.pixels
                crops.append(crop.to_image)
        return crops, time.perf_counter() - started


@dataclass(frozen=True)
class _Decoding:
    """A batch at work."""

    start: int
    pixels: Tensor
    tasks: list[Future[tuple[list[Affine | str], float]]]


def _finish(decoding: _Decoding) -> DecodedBatch:
    started = time.perf_counter()
    pieces = [task.result() for task in decoding.tasks]
    return DecodedBatch(
        start=decoding.start,
        pixels=decoding.pixels,
        crops=[crop for crops, _ in pieces for crop in crops],
        decode_s=sum(seconds for _, seconds in pieces),
        wait_s=time.perf_counter() - started,
    )
