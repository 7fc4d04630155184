"""Training rate: rows a second, ours and a plain loop; both take the same step on the same augmented images.

# B batch, S input size (px), K keypoints
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.gpu.machine import has
from benchmarks.gpu.networks import Photo
from benchmarks.gpu.scoring import plain_loader
from benchmarks.gpu.timing import median_ratio
from model.choices import AugmentationName
from model.example import AUGMENTATIONS, make_example, sample_view
from model.fit import Batch, FitOptions, make_optimizer, make_scaler, train_step
from model.pose_model import ModelSpec, PoseModel

if TYPE_CHECKING:
    import pyarrow as pa

_ROUNDS = 2
_EPOCHS = 3  # of which the first warms up
_AUGMENTATION: AugmentationName = "light"


class Examples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Augmented examples: pixels (S, S, 3) uint8, keypoints (K, 2), which are labelled (K,)."""

    def __init__(self, photos: Sequence[Photo], spec: ModelSpec) -> None:
        self._photos, self._spec = photos, spec

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        photo = self._photos[index]
        view = sample_view(AUGMENTATIONS[_AUGMENTATION], rng=np.random.default_rng(index))
        example = make_example(
            photo.image,
            photo.box,
            keypoints=photo.keypoints,
            visibility=photo.visibility,
            spec=self._spec,
            view=view,
        )
        pixels, keypoints, is_labelled = (torch.from_numpy(part) for part in example)
        return pixels, keypoints, is_labelled


class Learner:
    """A model of random weights and its optimiser, on a device."""

    def __init__(self, spec: ModelSpec, fit: FitOptions, device: torch.device) -> None:
        torch.manual_seed(0)
        self.spec, self.device, self._fit = spec, device, fit
        model = PoseModel(spec).to(device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer, self._scaler = make_optimizer(self.model, fit), make_scaler(fit, device)

    def epoch_seconds(self, batches: Iterable[Sequence[Tensor]]) -> float:
        """Seconds of an epoch, the making of its batches included."""
        started = time.perf_counter()
        self.model.train()
        for batch in batches:
            on_device = Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
            train_step(self.model, self._optimizer, [on_device], spec=self.spec, options=self._fit, scaler=self._scaler)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started


def training_rate(
    spec: ModelSpec, photos: Sequence[Photo], *, device: torch.device, batch_size: int, workers: int
) -> dict[str, Any]:
    """Images a second of the plain loop, of the product's parts, and of its whole loop where that can be imported."""
    fit = FitOptions(precision="bfloat16" if device.type == "cuda" else "float32")
    loader = plain_loader(Examples(photos, spec), batch_size=batch_size, workers=workers, device=device)
    rows, count = as_table(photos), len(photos)
    found: dict[str, list[float]] = {"plain": [], "parts": []}
    for _ in range(_ROUNDS):
        learner = Learner(spec, fit, device)
        found["plain"].append(rate_of_epochs(count, [learner.epoch_seconds(loader) for _ in range(_EPOCHS)]))
        seconds = product_seconds(
            rows, Learner(spec, fit, device), batch_size=batch_size, epochs=_EPOCHS, decode_threads=max(1, workers)
        )
        found["parts"].append(rate_of_epochs(count, seconds))
        if has("pydantic") and has("s3fs"):
            rate = _whole_rate(spec, count, device=device, batch_size=batch_size, workers=workers)
            found.setdefault("whole", []).append(rate)
    medians = {name: float(np.median(rates)) for name, rates in found.items()}
    ratios = {f"{name}_by_plain": median_ratio(found[name], found["plain"]) for name in found if name != "plain"}
    return {**medians, **ratios, "precision": fit.precision, "images": count, "batch_size": batch_size}


def rate_of_epochs(count: int, seconds: Sequence[float]) -> float:
    """Images a second of epochs of `count` images, but for the first."""
    return count * (len(seconds) - 1) / sum(seconds[1:])


def product_seconds(
    rows: pa.Table, learner: Learner, *, batch_size: int, epochs: int, decode_threads: int
) -> list[float]:
    """Seconds of each epoch with the product's collator, a batch ahead in threads, and step; the rows lie in memory."""
    from distributed.training.data import Collator, one_ahead

    seconds = []
    with ThreadPoolExecutor(decode_threads) as threads:
        for epoch in range(epochs):
            collate = Collator(
                spec=learner.spec, augmentation=AUGMENTATIONS[_AUGMENTATION], seed=0, epoch=epoch, threads=threads
            )
            made = one_ahead(_batches(rows, batch_size, seed=epoch), collate)
            seconds.append(learner.epoch_seconds(each.batch for each in made))
    return seconds


def _batches(rows: pa.Table, batch_size: int, *, seed: int) -> Iterator[pa.Table]:
    """The rows in a random order."""
    order = np.random.default_rng(seed).permutation(len(rows))
    for start in range(0, len(rows), batch_size):
        yield rows.take(order[start : start + batch_size])


def as_table(photos: Sequence[Photo]) -> pa.Table:
    """Images as rows of a labelled table."""
    import pyarrow as pa

    from distributed.schema import labelled

    rows = [
        {
            "sample_id": f"{index:06d}",
            "image": photo.image,
            "box": None if photo.box is None else photo.box.tolist(),
            "keypoints": photo.keypoints.ravel().tolist(),
            "visibility": photo.visibility.tolist(),
        }
        for index, photo in enumerate(photos)
    ]
    return pa.Table.from_pylist(rows, labelled(len(photos[0].visibility)))


def _whole_rate(spec: ModelSpec, count: int, *, device: torch.device, batch_size: int, workers: int) -> float:
    """The product's training in this process, on a fleet in Parquet, with checkpoints and records."""
    from distributed.ingest.fleet import write_fleet
    from distributed.training.options import TrainingOptions
    from distributed.training.train import train_model

    options = TrainingOptions(
        estimator=spec.estimator,
        method=spec.method,
        epochs=_EPOCHS,
        batch_size=batch_size,
        augmentation=_AUGMENTATION,
        workers="0",
        gpus_per_worker=float(device.type == "cuda"),
        decode_threads=max(1, workers),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_fleet(folder, seed=0, num_labelled=count, num_pool=24)
        train_model(f"{folder}/labelled", out=f"{folder}/model", options=options)
        return epoch_rate(f"{folder}/model")[0]


def epoch_rate(out: str) -> tuple[float, float]:
    """Images a second of a training that is done, without its first epoch, and seconds of all epochs."""
    epochs = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rate = sum(epoch["num_rows"] for epoch in epochs[1:]) / sum(epoch["seconds"] for epoch in epochs[1:])
    return rate, sum(epoch["seconds"] for epoch in epochs)
