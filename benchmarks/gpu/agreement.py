"""Agreement: scores of the same images on a CPU in float32 and on a device in each precision.

# N images, K keypoints
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.networks import Photo
from benchmarks.gpu.scoring import plain_loader
from benchmarks.gpu.training import Examples, Learner
from model.bundle import BUNDLE_FILE, WEIGHTS_FILE, Bundle, load_bundle
from model.choices import Precision
from model.fit import FitOptions
from model.keypoint_head import KeypointHead
from model.keypoint_inputs import keypoint_inputs
from model.pose_model import ModelSpec, PoseModel
from model.predictor import Predictor

# Stated tolerance of a predicted loss: a share of the deviation of all images' predicted losses. Few are farther off:
# where two peaks of a heatmap are nearly as high, a keypoint jumps from one to the other.
TOLERANCES: dict[Precision, float] = {"float32": 0.05, "bfloat16": 0.3, "float16": 0.1}
_WITHIN = 0.99  # of the images have to be within it
_TOP_SHARE = 0.01


def agreement(
    spec: ModelSpec,
    photos: Sequence[Photo],
    *,
    folder: str | None,
    num_steps: int,
    device: torch.device,
    precisions: Sequence[Precision],
    batch_size: int,
    workers: int,
    is_compiled: bool,
) -> dict[str, Any]:
    """Differences of predicted losses and of the top 1 %, by precision; of a bundle's model if a folder names one."""
    model = _read(folder) if folder else _fitted(spec, photos, num_steps, device=device, batch_size=batch_size)

    def scores(where: torch.device, precision: Precision, *, compiled: bool) -> NDArray[np.float32]:
        predictor = Predictor(
            Bundle(model=copy.deepcopy(model), bundle_id="compared"),  # it is moved to the device
            device=str(where),
            batch_size=batch_size,
            decode_threads=max(1, workers),
            precision=precision,
            is_compiled=compiled,
        )
        return predictor.predict([each.image for each in photos], [each.box for each in photos]).predicted_loss

    expected = scores(torch.device("cpu"), "float32", compiled=False)
    found = {
        precision: compare(expected, scores(device, precision, compiled=is_compiled), tolerance=TOLERANCES[precision])
        for precision in precisions
    }
    named = "a trained bundle" if folder else f"a model after {num_steps} steps of training"
    return {"model": named, "images": len(photos), "deviation": float(expected.std()), "precisions": found}


def compare(expected: NDArray[np.float32], found: NDArray[np.float32], *, tolerance: float) -> dict[str, Any]:
    """Differences in deviations of `expected` (N,), and the rows by which the tops differ.

    A row in one top alone is excused where its expected loss is within the tolerance of the expected cut: both it and
    the row that it stands for may have moved by as much, so twice of it.
    """
    deviation = float(expected.std())
    apart = np.abs(found.astype(np.float64) - expected) / deviation
    count = max(1, round(_TOP_SHARE * len(expected)))
    first, second = (set(np.argsort(-each, kind="stable")[:count].tolist()) for each in (expected, found))
    cut = float(np.sort(expected)[-count])
    changed = sorted(first ^ second)
    unexcused = [row for row in changed if abs(float(expected[row]) - cut) > 2 * tolerance * deviation]
    return {
        "tolerance": tolerance,
        "largest": float(apart.max()),
        "quantile": float(np.quantile(apart, _WITHIN)),
        "mean": float(apart.mean()),
        "top": count,
        "changed": len(changed) // 2,
        "unexcused": len(unexcused),
        "agrees": bool(np.quantile(apart, _WITHIN) <= tolerance and not unexcused),
    }


def _read(folder: str) -> PoseModel:
    files = {
        path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name in (BUNDLE_FILE, WEIGHTS_FILE)
    }
    return load_bundle(files).model


def _fitted(
    spec: ModelSpec, photos: Sequence[Photo], num_steps: int, *, device: torch.device, batch_size: int
) -> PoseModel:
    """A model after a few steps; a keypoint head has random layers over inputs that are standardised as when taught."""
    learner = Learner(spec, FitOptions(learning_rate=1e-3), device)
    some = photos[: 4 * batch_size]
    batches = list(plain_loader(Examples(some, spec), batch_size=batch_size, workers=0, device=device))
    learner.epoch_seconds(islice(cycle(batches), num_steps))
    model = learner.model.eval()
    if isinstance(model.loss_head, KeypointHead):
        _pretend_taught(model, batches[0][0].to(device))
    return model.cpu()


@torch.inference_mode()
def _pretend_taught(model: PoseModel, pixels: torch.Tensor) -> None:
    head = model.loss_head
    assert isinstance(head, KeypointHead)  # noqa: S101
    heatmaps = model.estimator(model.normalise(pixels)).heatmaps[:, -1]
    inputs = keypoint_inputs(heatmaps, None, skeleton=head.skeleton, sigma=head.sigma).flatten(0, 1)
    deviation = inputs.std(dim=0)
    head.plain.mean.copy_(inputs.mean(dim=0))
    head.plain.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
    head.plain.loss_scale.fill_(1.0)
    head.plain.miss_weight.fill_(1.0)
    head.plain.knows_misses.fill_(value=True)
