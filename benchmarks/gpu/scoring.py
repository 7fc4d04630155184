"""Scorer rate: from JPEGs to scores, ours and a plain loop with the same decoder and the same model; and their profile.

# B batch, S input size (px)
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu.device import random_crops
from benchmarks.gpu.networks import Photo, new_bundle
from benchmarks.gpu.timing import median_ratio, seconds_of, take_turns
from model.device import DeviceModel
from model.example import make_crop
from model.pose_model import ModelSpec
from model.predictor import Predictor

_ROUNDS = 3
_CALLERS = 2  # threads that call the predictor, as the scorer's do
_BATCHES_A_CALL = 4


class Crops(Dataset[Tensor]):
    """Crops (S, S, 3) uint8 of images, by the one function that training and scoring share."""

    def __init__(self, photos: Sequence[Photo], spec: ModelSpec) -> None:
        self._photos, self._spec = photos, spec

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> Tensor:
        photo = self._photos[index]
        return torch.from_numpy(make_crop(photo.image, photo.box, spec=self._spec).pixels)


def scorer_rate(
    spec: ModelSpec, photos: Sequence[Photo], *, device: torch.device, batch_size: int, workers: int, is_compiled: bool
) -> dict[str, Any]:
    """Images a second of the predictor, of a DataLoader with as many processes, and of the model alone, in turns."""
    predictor = new_predictor(spec, device=device, batch_size=batch_size, workers=workers, is_compiled=is_compiled)
    model, crops = predictor.device_model, random_crops(spec, batch_size, device)
    loader = plain_loader(Crops(photos, spec), batch_size=batch_size, workers=workers, device=device)
    count = len(photos)

    def compute() -> None:
        for _ in range(count // batch_size):
            model.compute(crops, num_rows=batch_size)

    before = dict(predictor.seconds)
    rates = take_turns(
        {
            "plain": lambda: count / seconds_of(lambda: score_plainly(loader, model, device), device),
            "ours": lambda: count / seconds_of(lambda: score(predictor, photos), device),
            "model": lambda: count // batch_size * batch_size / seconds_of(compute, device),
        },
        rounds=_ROUNDS,
    )
    spent = {stage: (predictor.seconds[stage] - before[stage]) / (_ROUNDS + 1) for stage in before}
    return {
        **{name: statistics.median(values) for name, values in rates.items()},
        "ours_by_plain": median_ratio(rates["ours"], rates["plain"]),
        "ours_by_model": median_ratio(rates["ours"], rates["model"]),
        **{f"{stage}_us": 1e6 * seconds / count for stage, seconds in spent.items()},
        "images": count,
        "kb_per_image": sum(len(photo.image) for photo in photos) / count / 1e3,
    }


def new_predictor(
    spec: ModelSpec, *, device: torch.device, batch_size: int, workers: int, is_compiled: bool
) -> Predictor:
    """The product's predictor with random weights."""
    return Predictor(
        new_bundle(spec),
        device=str(device),
        batch_size=batch_size,
        decode_threads=max(1, workers),
        is_compiled=is_compiled,
    )


def plain_loader(dataset: Dataset[Any], *, batch_size: int, workers: int, device: torch.device) -> DataLoader[Any]:
    """A DataLoader as one writes it: processes that live on, pinned memory on a GPU."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        # A fork of a process that has CUDA and threads may hang.
        multiprocessing_context="spawn" if workers else None,
    )


def score_plainly(loader: DataLoader[Any], model: DeviceModel, device: torch.device) -> list[Tensor]:
    """Packed results of each batch."""
    return [
        model.compute(_filled(pixels.to(device, non_blocking=True), model), num_rows=len(pixels))[0].cpu()
        for pixels in loader
    ]


def _filled(pixels: Tensor, model: DeviceModel) -> Tensor:
    """The batch, and the last one repeated up to the rows of a pass."""
    short = model.rows_per_pass - len(pixels)
    return pixels if short <= 0 else torch.cat((pixels, pixels[:1].expand(short, -1, -1, -1)))


def score(predictor: Predictor, photos: Sequence[Photo]) -> None:
    """All images, in calls of a few batches, of which two are in flight."""
    step = _BATCHES_A_CALL * predictor.batch_size

    def call(start: int) -> None:
        some = photos[start : start + step]
        predictor.predict([photo.image for photo in some], [photo.box for photo in some])

    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(call, range(0, len(photos), step)))
