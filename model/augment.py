"""Augmentation: which view of an image a training step sees. The geometry itself is `model.image.crop_to_input`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.image import View


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges that views are drawn from, uniformly. Defaults: the paper's; all zero means the plain view.

    Source: the set-up of Shukla & Ahmed (2021): shift ±0.2, scale ±0.25, rotation ±45°, flip 0.5.
    """

    shift: float = 0.2  # share of the crop's side
    scale: float = 0.25
    rotation_deg: float = 45.0
    flip_probability: float = 0.5


def sample_view(augmentation: Augmentation, *, rng: np.random.Generator) -> View:
    """One view. The person stays in the crop: a shift is a share of the crop's side, not of the person's."""
    shift_x, shift_y, scale, rotation, flip = rng.uniform(-1.0, 1.0, size=5)
    return View(
        shift=(augmentation.shift * shift_x, augmentation.shift * shift_y),
        scale=1.0 + augmentation.scale * scale,
        rotation_deg=augmentation.rotation_deg * rotation,
        is_flipped=bool((flip + 1) / 2 < augmentation.flip_probability),
    )
