"""From encoded images to predictions on one device: decoding in threads while the previous batch computes.

# N images of a call, B fixed batch of the device, S input size (px), K keypoints
Every forward pass has the same shape, the last one padded: a row's result depends neither on its neighbours nor on its
place among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle import Bundle
from model.errors import ImageError, InputError
from model.example import label_crop, make_crop
from model.heatmap import decode_heatmaps, encode_heatmaps
from model.image import Bytes, Crop, transform_points
from model.objective import heatmap_loss

Box = NDArray[np.floating] | None

# Matrix kernels compute rows in tiles, and the rows left over with another order of additions: the same image had
# predicted losses 3e-8 apart at two places of a batch of 7. Multiples of 4, up to 136 rows, showed none (MKL, AVX-512).
_ROW_TILE = 8


class Labels(NamedTuple):
    """What is known of N images."""

    keypoints: NDArray[np.float32]  # (N, K, 2) image pixels
    visibility: NDArray[np.uint8]  # (N, K)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One entry an image, in the order of the images; NaN where `errors` says why."""

    predicted_loss: NDArray[np.float32]  # (N,)
    confidence: NDArray[np.float32]  # (N,) mean over keypoints of the heatmap peak
    keypoints: NDArray[np.float32]  # (N, K, 2) image pixels
    peaks: NDArray[np.float32]  # (N, K)
    true_loss: NDArray[np.float32]  # (N,) NaN throughout where no labels were given
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

    Args:
        bundle: the fitted model; moved to `device`.
        device: "cpu", "cuda", "cuda:1".
        batch_size: B, rounded up to a multiple of 8.
        decode_threads: threads that decode and crop.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", batch_size: int = 64, decode_threads: int = 2) -> None:
        self.spec = bundle.spec
        self.batch_size = -(-batch_size // _ROW_TILE) * _ROW_TILE
        self._device = torch.device(device)
        self._model = bundle.model.to(self._device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._threads = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")

    def predict(self, images: Sequence[Bytes], boxes: Sequence[Box], *, labels: Labels | None = None) -> Predictions:
        """Predictions for N images; an unreadable one costs itself, never its batch. N may be 0.

        Raises:
            ValueError: there are not as many boxes as images.
        """
        if len(boxes) != len(images):
            raise ValueError(f"boxes: expected {len(images)}, one an image, found {len(boxes)}")
        result = _empty_predictions(len(images), self.spec.skeleton.num_keypoints)
        for start, crops in self._decoded_batches(images, boxes):
            rows = np.array([start + i for i, crop in enumerate(crops) if isinstance(crop, Crop)], dtype=np.int64)
            for i, crop in enumerate(crops):
                if not isinstance(crop, Crop):
                    result.errors[start + i] = crop
            if len(rows):
                self._compute(rows, [crop for crop in crops if isinstance(crop, Crop)], result, labels)
        return result

    def _decoded_batches(self, images: Sequence[Bytes], boxes: Sequence[Box]) -> Iterator[tuple[int, list[Crop | str]]]:
        """(index of the first image, crop or reason of each), one batch decoding ahead of the one handed out."""
        waiting: list[tuple[int, list[Future[Crop | str]]]] = []
        for start in range(0, len(images), self.batch_size):
            stop = min(start + self.batch_size, len(images))
            futures = [self._threads.submit(self._crop_or_reason, images[i], boxes[i]) for i in range(start, stop)]
            waiting.append((start, futures))
            if len(waiting) > 1:
                first, ready = waiting.pop(0)
                yield first, [future.result() for future in ready]
        for first, ready in waiting:
            yield first, [future.result() for future in ready]

    def _crop_or_reason(self, image: Bytes, box: Box) -> Crop | str:
        try:
            return make_crop(image, box, spec=self.spec)
        except ImageError as error:
            return error.reason

    @torch.inference_mode()
    def _compute(self, rows: NDArray[np.int64], crops: list[Crop], result: Predictions, labels: Labels | None) -> None:
        pixels = np.zeros((self.batch_size, self.spec.input_size, self.spec.input_size, 3), np.uint8)
        for i, crop in enumerate(crops):
            pixels[i] = crop.pixels
        prediction = self._model(torch.from_numpy(pixels).to(self._device))
        heatmaps = prediction.heatmaps.float()
        pose = decode_heatmaps(heatmaps[:, -1], input_size=self.spec.input_size)
        used = slice(len(rows))  # the rest is padding
        points = pose.keypoints[used].cpu().numpy()
        for row, point, crop in zip(rows, points, crops, strict=True):
            result.keypoints[row] = transform_points(point, crop.to_image)
        result.peaks[rows] = pose.peaks[used].cpu().numpy()
        result.confidence[rows] = pose.peaks.mean(dim=1)[used].cpu().numpy()
        result.predicted_loss[rows] = prediction.predicted_loss[used].float().cpu().numpy()
        if labels is not None:
            result.true_loss[rows] = self._true_loss(heatmaps[used], rows, crops, labels)
        is_finite = np.isfinite(result.predicted_loss[rows]) & np.isfinite(result.confidence[rows])
        for row in rows[~is_finite]:
            _fail(result, row, "non_finite")

    def _true_loss(
        self, heatmaps: torch.Tensor, rows: NDArray[np.int64], crops: list[Crop], labels: Labels
    ) -> NDArray[np.float32]:
        """(len(rows),) heatmap loss against the labels; NaN where no keypoint inside the crop is labelled."""
        examples = [
            label_crop(crop, keypoints=labels.keypoints[row], visibility=labels.visibility[row], spec=self.spec)
            for row, crop in zip(rows, crops, strict=True)
        ]
        keypoints = torch.from_numpy(np.stack([example.keypoints for example in examples])).to(heatmaps.device)
        labelled = torch.from_numpy(np.stack([example.is_labelled for example in examples])).to(heatmaps.device)
        targets = encode_heatmaps(
            keypoints, input_size=self.spec.input_size, heatmap_size=self.spec.heatmap_size, sigma=self.spec.sigma
        )
        loss = heatmap_loss(heatmaps, targets, labelled)
        known: NDArray[np.float32] = torch.where(labelled.any(dim=1), loss, torch.nan).cpu().numpy()
        return known


def _fail(result: Predictions, row: int, reason: str) -> None:
    """Leaves nothing of the row but the reason."""
    result.errors[row] = reason
    for values in (result.predicted_loss, result.confidence, result.keypoints, result.peaks, result.true_loss):
        values[row] = np.nan


def _empty_predictions(num_images: int, num_keypoints: int) -> Predictions:
    def nan(*shape: int) -> NDArray[np.float32]:
        return np.full(shape, np.nan, np.float32)

    return Predictions(
        predicted_loss=nan(num_images),
        confidence=nan(num_images),
        keypoints=nan(num_images, num_keypoints, 2),
        peaks=nan(num_images, num_keypoints),
        true_loss=nan(num_images),
        errors=[None] * num_images,
    )
