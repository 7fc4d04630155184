"""Augmentation: which view of an image a training step sees. The geometry itself is `model.image.crop_to_input`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.image import View


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges that views are drawn from, uniformly; all zero means the plain view."""

    shift: float  # share of the plain crop's side, either way
    scale: float  # share of the crop's size, either way
    rotation_deg: float  # either way
    flip_probability: float


# Source of "paper": the set-up of Shukla & Ahmed (2021), made for 80 epochs and more. "light" is for schedules of a few
# tens of epochs and small models, which don't get through so many views.
AUGMENTATIONS = {
    "none": Augmentation(shift=0, scale=0, rotation_deg=0, flip_probability=0),
    "light": Augmentation(shift=0.05, scale=0.15, rotation_deg=15, flip_probability=0.5),
    "paper": Augmentation(shift=0.2, scale=0.25, rotation_deg=45, flip_probability=0.5),
}
AugmentationName = Literal["none", "light", "paper"]


def sample_view(augmentation: Augmentation, *, rng: np.random.Generator) -> View:
    """One view, always of five draws: what follows in the stream does not depend on the ranges."""
    shift_x, shift_y, scale, rotation, flip = rng.uniform(-1.0, 1.0, size=5)
    return View(
        shift=(augmentation.shift * shift_x, augmentation.shift * shift_y),
        scale=1.0 + augmentation.scale * scale,
        rotation_deg=augmentation.rotation_deg * rotation,
        is_flipped=bool((flip + 1) / 2 < augmentation.flip_probability),
    )
