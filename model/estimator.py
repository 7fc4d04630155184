"""Estimators: modules from images to `PoseOutput`; and estimators of your own, made with `@estimator`.

    # my_poses/tiny.py
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

    # pyproject.toml of my_poses, which is installed wherever it is trained or scores
    [project.entry-points."lossight.estimators"]
    tiny = "my_poses.tiny:tiny"

`lossight train --estimator my_poses.tiny:tiny` fits it. The bundle keeps the name and the weights; the function is
called again wherever the bundle is loaded, so it should build, and not download. A bundle comes from outside and may
name anything: no module is imported but those that an installed package offers as an entry point.

# B batch, S stacks, K keypoints, H, W heatmap size (px), C channels
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.errors import InputError

ENTRY_POINTS = "lossight.estimators"
_OWN_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class PoseOutput(NamedTuple):
    """Output of every estimator: one set of heatmaps a stack, and the last stack's features."""

    heatmaps: Tensor  # (B, S, K, H, W)
    features: tuple[Tensor, ...]  # finest first, each (B, C, height, width)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of a `PoseOutput`, but for the batch."""

    num_stacks: int
    features: tuple[tuple[int, int, int], ...]  # channels, height, width; finest first


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A function that builds an estimator, and the sizes of its images and heatmaps."""

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
    """Makes an `Estimator` of a function that builds one from the number of keypoints."""

    def mark(build: Callable[[int], nn.Module]) -> Estimator:
        return Estimator(build=build, input_size=input_size, heatmap_size=heatmap_size, crop_margin=crop_margin)

    return mark


def is_own_name(name: str) -> bool:
    """True if the name is of the form `package.module:function`."""
    return bool(_OWN_NAME.fullmatch(name))


def import_estimator(name: str) -> Estimator:
    """The estimator that `package.module:function` names.

    Raises:
        InputError: no package that is installed here offers it, or it can't be imported.
    """
    offered = {entry.value: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name not in offered:
        found = ", ".join(sorted(offered)) or "none"
        raise InputError(f"{name}: expected an entry point {ENTRY_POINTS!r} of an installed package, found {found}")
    try:
        estimator = offered[name].load()
    except Exception as error:  # somebody else's code may raise anything
        said = " ".join(str(error).split())
        raise InputError(f"{name}: can't be imported: {type(error).__name__}: {said}") from error
    if not isinstance(estimator, Estimator):
        raise InputError(f"{name}: expected what @estimator(...) makes, found {type(estimator).__name__}")
    return estimator


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
    """The module's output for one black image; neither its weights nor its statistics change."""
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
