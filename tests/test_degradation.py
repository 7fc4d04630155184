"""Degraded network inputs: reproducible, of every size, and never the image itself."""

from __future__ import annotations

import numpy as np
import pytest

from model import degradation
from model.degradation import degrade


def an_image(side: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=(side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [1, 8, 64, 257])
def test_images_of_every_size_are_degraded_the_same_by_the_same_draws(side: int) -> None:
    image = an_image(side)
    kept = image.copy()
    for seed in range(40):
        one, other = (degrade(image, rng=np.random.default_rng(seed)) for _ in range(2))
        assert one.shape == image.shape
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("kind", degradation._KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_each_kind_of_damage_changes_an_image_and_keeps_its_range(kind) -> None:
    image = an_image(64).astype(np.float32)
    for seed in range(20):
        damaged = kind(image, np.random.default_rng(seed))
        assert damaged.shape == image.shape
        assert np.isfinite(damaged).all()
        assert np.abs(damaged - image).mean() > 1
        assert damaged.mean() < 256
