"""One labelled image as the network sees it: augmentation, crop, keypoints of the crop, and which of them count.

# K keypoints, S input size (px)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.image import (
    PLAIN,
    Bytes,
    Crop,
    View,
    crop_to_input,
    decode_crop,
    decode_image,
    invert_affine,
    transform_points,
)
from model.spec import ModelSpec


class Example(NamedTuple):
    """One image and its labels in crop pixels."""

    pixels: NDArray[np.uint8]  # (S, S, 3)
    keypoints: NDArray[np.float32]  # (K, 2) crop pixels
    is_labelled: NDArray[np.bool_]  # (K,) labelled, and inside the crop


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


def sample_view(augmentation: Augmentation, *, rng: np.random.Generator) -> View:
    """One view, always of five draws: what follows in the stream does not depend on the ranges."""
    shift_x, shift_y, scale, rotation, flip = rng.uniform(-1.0, 1.0, size=5)
    return View(
        shift=(augmentation.shift * shift_x, augmentation.shift * shift_y),
        scale=1.0 + augmentation.scale * scale,
        rotation_deg=augmentation.rotation_deg * rotation,
        is_flipped=bool((flip + 1) / 2 < augmentation.flip_probability),
    )


def make_crop(image: Bytes, box: NDArray[np.floating] | None, *, spec: ModelSpec, view: View = PLAIN) -> Crop:
    """The network input of an encoded image: decoding and cropping as the bundle prescribes.

    Raises:
        ImageError: the image or its box cannot be used.
    """
    if spec.is_frame_reduced:
        return decode_crop(image, box, input_size=spec.input_size, margin=spec.crop_margin, view=view)
    return crop_to_input(decode_image(image), box, input_size=spec.input_size, margin=spec.crop_margin, view=view)


def make_example(
    image: Bytes,
    box: NDArray[np.floating] | None,
    *,
    keypoints: NDArray[np.floating],
    visibility: NDArray[np.uint8],
    spec: ModelSpec,
    view: View = PLAIN,
) -> Example:
    """One training or evaluation example; a mirrored view swaps left and right keypoints.

    Args:
        image: the encoded image.
        box: x0, y0, x1, y1 in image pixels, or None for the whole image.
        keypoints: (K, 2) image pixels; values of unlabelled keypoints are never used.
        visibility: (K,) 0 not labelled, 1 occluded, 2 visible.
        spec: what the model expects.
        view: the augmentation.

    Raises:
        ImageError: the image or its box cannot be used.
    """
    crop = make_crop(image, box, spec=spec, view=view)
    return label_crop(crop, keypoints=keypoints, visibility=visibility, spec=spec, is_flipped=view.is_flipped)


def label_crop(
    crop: Crop,
    *,
    keypoints: NDArray[np.floating],
    visibility: NDArray[np.uint8],
    spec: ModelSpec,
    is_flipped: bool = False,
) -> Example:
    """The labels of an image moved into one of its crops.

    A keypoint outside the crop can't be seen, so does not count; nor does one that is not a finite number.
    """
    is_labelled = visibility > 0
    with np.errstate(invalid="ignore", over="ignore"):  # labels may be NaN, infinite or too far away for float32
        points = transform_points(keypoints, invert_affine(crop.to_image)).astype(np.float32)
    if is_flipped:
        order = list(spec.skeleton.flip_order)
        points, is_labelled = points[order], is_labelled[order]
    is_inside = ((points > -0.5) & (points < spec.input_size - 0.5)).all(axis=1)
    return Example(crop.pixels, points, is_labelled & is_inside)
