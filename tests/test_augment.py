"""Views stay in their ranges and are decided by the generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.augment import AUGMENTATIONS, Augmentation, sample_view
from model.image import PLAIN, View, crop_to_input

RANGES = st.builds(
    Augmentation,
    shift=st.floats(0, 0.5),
    scale=st.floats(0, 0.9),
    rotation_deg=st.floats(0, 180),
    flip_probability=st.floats(0, 1),
)


def views(augmentation: Augmentation, count: int, *, seed: int = 0) -> list[View]:
    rng = np.random.default_rng(seed)
    return [sample_view(augmentation, rng=rng) for _ in range(count)]


@given(augmentation=RANGES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_views_keep_within_their_ranges(augmentation: Augmentation, seed: int) -> None:
    for view in views(augmentation, 5, seed=seed):
        assert max(map(abs, view.shift)) <= augmentation.shift
        assert 1 - augmentation.scale <= view.scale <= 1 + augmentation.scale
        assert abs(view.rotation_deg) <= augmentation.rotation_deg


def test_views_reach_almost_to_both_ends_of_their_ranges() -> None:
    paper = AUGMENTATIONS["paper"]
    drawn = views(paper, 400)
    for values, middle, reach in (
        ([view.shift[0] for view in drawn], 0, paper.shift),
        ([view.shift[1] for view in drawn], 0, paper.shift),
        ([view.scale for view in drawn], 1, paper.scale),
        ([view.rotation_deg for view in drawn], 0, paper.rotation_deg),
    ):
        assert min(values) < middle - 0.95 * reach
        assert max(values) > middle + 0.95 * reach


def test_the_same_generator_gives_the_same_views_and_another_seed_others() -> None:
    light = AUGMENTATIONS["light"]
    assert views(light, 5, seed=1) == views(light, 5, seed=1)
    assert views(light, 5, seed=1) != views(light, 5, seed=2)


def test_other_ranges_leave_the_rest_of_the_stream_as_it_was() -> None:
    streams = [np.random.default_rng(3) for _ in AUGMENTATIONS]
    for augmentation, rng in zip(AUGMENTATIONS.values(), streams, strict=True):
        sample_view(augmentation, rng=rng)
    assert len({rng.integers(2**63) for rng in streams}) == 1


def test_no_augmentation_is_the_plain_view_and_the_plain_crop() -> None:
    drawn = views(AUGMENTATIONS["none"], 50)
    assert drawn == [PLAIN] * 50
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    box = np.array([5.0, 5.0, 20.0, 15.0])
    found = crop_to_input(picture, box, input_size=16, margin=1.5, view=drawn[0])
    np.testing.assert_array_equal(found.pixels, crop_to_input(picture, box, input_size=16, margin=1.5).pixels)


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_views_are_flipped_with_the_given_probability(probability: float) -> None:
    augmentation = Augmentation(shift=0, scale=0, rotation_deg=0, flip_probability=probability)
    share = np.mean([view.is_flipped for view in views(augmentation, 2000)])
    assert share == pytest.approx(probability, abs=0.05 if 0 < probability < 1 else 0)  # 4.5 standard deviations


def test_what_is_drawn_for_a_view_is_independent_of_each_other() -> None:
    drawn = views(AUGMENTATIONS["paper"], 2000)
    values = np.array([[*view.shift, view.scale, view.rotation_deg, view.is_flipped] for view in drawn])
    np.testing.assert_allclose(np.corrcoef(values.T), np.eye(5), atol=0.1)  # 4.5 standard deviations
