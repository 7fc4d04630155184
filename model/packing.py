"""The quantities predicted of an image, declared once, and a batch of them as one tensor.

One tensor, so that a single copy brings everything back from a device.

# B batch, S input size (px), K keypoints, H, W heatmap size (px), D embedding
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeAlias, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.choices import Views
from model.heatmap import decode_heatmaps
from model.pose_model import PoseModel

# Pixels (B, S, S, 3) to packed quantities (B, columns) and heatmaps (B, stacks, K, H, W).
Forward = Callable[[Tensor], tuple[Tensor, Tensor]]

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Quantities:
    """One entry a row, NaN where unknown; a field's shape is that of a row, and the fields' order that of the columns.

    A new quantity is a field here and a line in `predict_packed`; as a column of the same name in the schema of scores,
    it is written there.
    """

    predicted_loss: Annotated[Floats, ""]
    expected_pck: Annotated[Floats, ""]  # share of keypoints within 0.2 torsos; known to the predictor
    confidence: Annotated[Floats, ""]  # mean over keypoints of the heatmap peak
    true_loss: Annotated[Floats, ""]  # known where there are labels
    peak_entropy: Annotated[Floats, ""]  # see `multi_peak_entropy`; likewise, so that scoring does not pay for it
    peaks: Annotated[Floats, "K"]
    keypoints: Annotated[Floats, "K 2"]  # (x, y) pixels: of the crop on the device, of the image in predictions
    miss: Annotated[Floats, "K"]  # P(miss); unknown where the method has no opinion of keypoints
    embedding: Annotated[Floats, "D"]  # the estimator's coarsest features on average: see `PoseModel`


_SHAPES = {name: hint.__metadata__[0] for name, hint in get_type_hints(Quantities, include_extras=True).items()}
NAMES = tuple(field.name for field in dataclasses.fields(Quantities))
TRUE_LOSS, PEAK_ENTROPY = NAMES.index("true_loss"), NAMES.index("peak_entropy")  # columns: one-number fields are first


def row_shapes(*, num_keypoints: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
    """The shape that each quantity of a row has."""
    sizes = {"K": num_keypoints, "D": embedding_dim}
    return {name: tuple(sizes.get(size) or int(size) for size in shape.split()) for name, shape in _SHAPES.items()}


def predict_packed(model: PoseModel, *, views: Views = 1) -> Forward:
    """The whole way from pixels to packed quantities as one function, to be compiled as one."""
    input_size = model.spec.input_size

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        prediction = model(pixels, views) if views > 1 else model(pixels)
        pose = decode_heatmaps(prediction.heatmaps[:, -1].float(), input_size=input_size)
        confidence = pose.peaks.mean(dim=1)
        found = {
            "predicted_loss": prediction.predicted_loss.float(),
            "confidence": confidence,
            "peaks": pose.peaks,
            "keypoints": pose.keypoints,
            "miss": prediction.miss,
            "embedding": prediction.embedding.float(),
        }
        unknown = torch.full_like(confidence, torch.nan)
        columns = [found.get(name, unknown).reshape(len(unknown), -1) for name in NAMES]
        return torch.cat(columns, dim=1), prediction.heatmaps

    return forward


def unpack(packed: Floats, *, num_keypoints: int, embedding_dim: int) -> Quantities:
    """The quantities of packed rows; views of `packed`."""
    shapes = row_shapes(num_keypoints=num_keypoints, embedding_dim=embedding_dim)
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    columns = np.split(packed, ends[:-1], axis=1)
    found = zip(shapes.items(), columns, strict=True)
    return Quantities(**{name: values.reshape(len(packed), *shape) for (name, shape), values in found})
