"""Predictions for encoded images on one device: threads decode while the batches before compute.

# N images of a call, B fixed batch of the device, K keypoints, D embedding
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle import Bundle
from model.choices import Precision, Views
from model.decoding import BatchDecoder, Box, DecodedBatch
from model.device import DeviceModel, PendingRows, RowLabels
from model.errors import InputError
from model.example import label_crop
from model.folding import fold_norms
from model.image import Bytes, Crop
from model.packing import NAMES, Floats, Quantities, row_shapes
from model.sizes import choose_batch_size, round_up

__all__ = ["Box", "Labels", "Predictions", "Predictor", "check_device"]

# One batch computes while the next is handed to the device: it never waits for us.
_BATCHES_ON_DEVICE = 2


class Labels(NamedTuple):
    """Labels of N images."""

    keypoints: NDArray[np.float32]  # (N, K, 2) image pixels
    visibility: NDArray[np.uint8]  # (N, K)


@dataclass(frozen=True, kw_only=True)
class Predictions(Quantities):
    """One entry an image, in the order of the images; NaN where `errors` says why."""

    errors: list[str | None]


def check_device(device: str) -> None:
    """Passes if this machine has the device.

    Raises:
        InputError: it has not.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"GPUs: expected a CUDA device on this machine, found none (torch {torch.__version__})")


class Predictor:
    """Predicts each image's loss and pose with one bundle on one device.

    Two threads may call `predict` at once: the device computes for one call while the other's first images are decoded.

    Args:
        bundle: the fitted model; moved to `device`. What computes is a copy with folded batch norms.
        device: "cpu", "cuda", "cuda:1".
        batch_size: B, rounded up to a multiple of 8; None: see `choose_batch_size`.
        decode_threads: threads that decode and crop.
        views: see `DeviceModel`.
        precision: see `DeviceModel`; by default bfloat16 on a GPU, float32 on a CPU.
        is_compiled: see `DeviceModel`; by default on a GPU. Compiling is done here, in the constructor.

    Attributes:
        device_model: what computes.
        seconds: since construction: "decode" of all threads together, "wait" of the caller for decoded images,
            "compute" of the device.

    Raises:
        InputError: no such precision, or a head that can't judge from so many views.
        RunFailedError: the device can't hold 8 images.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        batch_size: int | None = None,
        decode_threads: int = 2,
        views: Views = 1,
        precision: Precision | None = None,
        is_compiled: bool | None = None,
    ) -> None:
        if views > 1:
            bundle.model.check_views(views)
        self.spec = bundle.spec
        self._calibration = bundle.calibration
        self.embedding_dim = bundle.model.embedding_dim
        self.batch_size = round_up(batch_size or choose_batch_size(self.spec.input_size, device=device))
        self.seconds = {"decode": 0.0, "wait": 0.0, "compute": 0.0}
        self._counting = threading.Lock()
        self.device_model = DeviceModel(
            fold_norms(bundle.model),
            device=torch.device(device),
            batch_size=self.batch_size,
            views=views,
            precision=precision,
            is_compiled=is_compiled,
        )
        self._decoder = BatchDecoder(
            self.spec,
            batch_size=self.batch_size,
            num_threads=decode_threads,
            is_pinned=torch.device(device).type == "cuda",
        )

    def predict(self, images: Sequence[Bytes], boxes: Sequence[Box], *, labels: Labels | None = None) -> Predictions:
        """Predictions for N images; an unreadable one costs itself, never its batch. N may be 0.

        Raises:
            ValueError: there are not as many boxes as images.
            RunFailedError: the device can't hold 8 images.
        """
        if len(boxes) != len(images):
            raise ValueError(f"boxes: expected {len(images)}, one an image, found {len(boxes)}")
        result = _empty_predictions(len(images), self.spec.skeleton.num_keypoints, self.embedding_dim)
        on_device: deque[tuple[DecodedBatch, PendingRows]] = deque()
        for batch in self._decoder.batches(images, boxes):
            self._count(decode=batch.decode_s, wait=batch.wait_s)
            for row, crop in enumerate(batch.crops):
                result.errors[batch.start + row] = crop if isinstance(crop, str) else None
            if len(batch.readable):
                known = None if labels is None else self._row_labels(batch, labels)
                on_device.append(
                    (batch, self.device_model.start(batch.pixels, num_rows=len(batch.crops), labels=known))
                )
            if len(on_device) == _BATCHES_ON_DEVICE:
                self._collect(*on_device.popleft(), result)
        while on_device:
            self._collect(*on_device.popleft(), result)
        return result

    def _row_labels(self, batch: DecodedBatch, labels: Labels) -> RowLabels:
        pixels = batch.pixels.numpy()
        examples = [
            label_crop(
                Crop(pixels[row], crop),
                keypoints=labels.keypoints[batch.start + row],
                visibility=labels.visibility[batch.start + row],
                spec=self.spec,
            )
            for row, crop in enumerate(batch.crops)
            if not isinstance(crop, str)
        ]
        return RowLabels(
            batch.readable,
            np.stack([example.keypoints for example in examples]),
            np.stack([example.is_labelled for example in examples]),
        )

    def _collect(self, batch: DecodedBatch, pending: PendingRows, result: Predictions) -> None:
        """Writes the results of one batch into their rows."""
        found, seconds = pending.fetch()
        self._count(compute=seconds)
        rows = batch.readable
        images = batch.start + rows
        for name in NAMES:
            getattr(result, name)[images] = getattr(found, name)[rows]
        result.expected_pck[images] = self._expected_pck(found.predicted_loss[rows], found.miss[rows])
        to_image = np.stack([crop for crop in batch.crops if not isinstance(crop, str)])  # (n, 2, 3)
        linear, offset = to_image[:, :, :2], to_image[:, None, :, 2]
        result.keypoints[images] = found.keypoints[rows] @ linear.transpose(0, 2, 1) + offset
        is_finite = np.isfinite(result.predicted_loss[images]) & np.isfinite(result.confidence[images])
        for image in images[~(is_finite & np.isfinite(result.embedding[images]).all(axis=1))]:
            _fail(result, image, "non_finite")

    def _expected_pck(self, predicted_loss: Floats, miss: Floats) -> Floats:
        """(n,) from P(miss) where the head knows it, else by the bundle's calibration, else NaN."""
        expected = 1 - miss.mean(axis=1)
        if self._calibration is None:
            return expected
        calibrated = self._calibration.expected_pck(predicted_loss).astype(np.float32)
        return np.where(np.isnan(expected), calibrated, expected)

    def _count(self, **seconds: float) -> None:
        with self._counting:
            for stage, spent in seconds.items():
                self.seconds[stage] += spent


def _fail(result: Predictions, image: int, reason: str) -> None:
    """Leaves nothing of the image but the reason."""
    result.errors[image] = reason
    for name in NAMES:
        getattr(result, name)[image] = np.nan


def _empty_predictions(num_images: int, num_keypoints: int, embedding_dim: int) -> Predictions:
    shapes = row_shapes(num_keypoints=num_keypoints, embedding_dim=embedding_dim)
    values = {name: np.full((num_images, *shape), np.nan, np.float32) for name, shape in shapes.items()}
    return Predictions(**values, errors=[None] * num_images)
