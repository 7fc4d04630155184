"""What an estimator is: a module from images to `PoseOutput`; and how one of your own is offered, by `@estimator`.

    # my_poses/tiny.py, in the environment of every process that trains or scores
    from torch import nn
    from model.estimator import PoseOutput, estimator

    class Tiny(nn.Module):
        def __init__(self, num_keypoints):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 32, 7, stride=4, padding=3), nn.ReLU())
            self.heatmaps = nn.Conv2d(32, num_keypoints, 1)

        def forward(self, images):  # (B, 3, 128, 128), normalised
            x = self.features(images)  # (B, 32, 32, 32)
            return PoseOutput(self.heatmaps(x)[:, None], (x,))

    @estimator(input_size=128, heatmap_size=32)
    def tiny(num_keypoints):
        return Tiny(num_keypoints)

`lossight train --estimator my_poses.tiny:tiny` fits it. The bundle keeps the name and the weights; the function is
called again wherever the bundle is loaded, so it should build, and not download.

# B batch, S stacks, K keypoints, H, W heatmap size (px), C channels
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.errors import InputError


class PoseOutput(NamedTuple):
    """What every estimator returns: one set of heatmaps a stack, and the last stack's features."""

    heatmaps: Tensor  # (B, S, K, H, W)
    features: tuple[Tensor, ...]  # finest first, each (B, C, height, width)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a `PoseOutput`, but for the batch."""

    num_stacks: int
    features: tuple[tuple[int, int, int], ...]  # channels, height, width; finest first


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A way to build an estimator, and what it is fed."""

    build: Callable[[int], nn.Module]  # from the number of keypoints
    input_size: int  # height and width (px) of the images
    heatmap_size: int  # H = W
    crop_margin: float = 1.5  # side of the crop / longer side of the box

    def __post_init__(self) -> None:
        if not (3 <= self.heatmap_size <= self.input_size and self.crop_margin > 0):
            raise InputError(f"estimator: expected 3 <= heatmap_size <= input_size and crop_margin > 0, found {self}")


def estimator(
    *, input_size: int, heatmap_size: int, crop_margin: float = 1.5
) -> Callable[[Callable[[int], nn.Module]], Estimator]:
    """Marks a function that builds an estimator from the number of keypoints: nothing else may be named by a bundle."""

    def mark(build: Callable[[int], nn.Module]) -> Estimator:
        return Estimator(build=build, input_size=input_size, heatmap_size=heatmap_size, crop_margin=crop_margin)

    return mark


def probe_layout(module: nn.Module, *, num_keypoints: int, input_size: int, heatmap_size: int, name: str) -> Layout:
    """The layout of what a module makes of one black image, which is checked.

    Raises:
        InputError: it makes no `PoseOutput`, or one of other sizes: says what was expected and what was found.
    """
    output = _try(module, input_size, name=name)
    expected = f"PoseOutput with heatmaps (B, S, {num_keypoints}, {heatmap_size}, {heatmap_size})"
    if not isinstance(output, PoseOutput):
        raise InputError(f"{name}: expected {expected}, found {type(output).__name__}")
    shape = tuple(output.heatmaps.shape)
    if len(shape) != 5 or shape[2:] != (num_keypoints, heatmap_size, heatmap_size) or not shape[1]:
        raise InputError(f"{name}: expected {expected}, found {shape}")
    shapes = [tuple(feature.shape) for feature in output.features]
    if not shapes or any(len(each) != 4 for each in shapes):
        raise InputError(f"{name}: expected features (B, C, height, width), finest first, found {shapes}")
    return Layout(num_stacks=shape[1], features=tuple((each[1], each[2], each[3]) for each in shapes))


def _try(module: nn.Module, input_size: int, *, name: str) -> object:
    """What the module returns for one black image; neither its weights nor its statistics change."""
    was_training = module.training
    try:
        with torch.no_grad():
            return module.eval()(torch.zeros(1, 3, input_size, input_size))
    except Exception as error:  # somebody else's code may raise anything
        found = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(
            f"{name}: expected to take images (B, 3, {input_size}, {input_size}), found {found}"
        ) from error
    finally:
        module.train(was_training)
