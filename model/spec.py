"""Specification of a model: estimator, method, skeleton and sizes of its images. Imports without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.choices import MethodName, Views
from model.errors import BundleError, InputError
from model.skeleton import Skeleton

BAD_SPEC = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)  # raised by foreign JSON
OWN_ESTIMATORS = ("hourglass", "hourglass-small")  # `model.pose_model` builds them


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to rebuild a model and to feed it; stored in the bundle."""

    estimator: str  # a name that `find_estimator` knows
    method: MethodName
    skeleton: Skeleton
    input_size: int  # S
    heatmap_size: int  # H = W
    crop_margin: float  # side of the crop / longer side of the box
    sigma: float = 1.75  # heatmap pixels. Source: the paper's set-up
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1: ImageNet's, as is customary
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    estimator_config: str | None = None  # JSON: what a checkpoint said of the network's shape
    is_frame_reduced: bool = False  # large JPEGs are decoded at reduced scale: see `model.image.decode_crop`


def read_spec(fields: dict[str, Any]) -> ModelSpec:
    """A specification from its JSON; raises one of `BAD_SPEC` where it is none."""
    skeleton = Skeleton(**{name: _as_tuples(value) for name, value in fields["skeleton"].items()})
    return ModelSpec(**{**{name: _as_tuples(value) for name, value in fields.items()}, "skeleton": skeleton})


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def check_views(spec: ModelSpec, views: Views) -> None:
    """Passes if the head of a model can judge from so many views.

    Raises:
        InputError: it can't; says why.
    """
    if views == 1:
        return
    if spec.method != "keypoint":
        raise InputError(f"--views 2: expected a bundle of the method keypoint, found {spec.method}")
    if not spec.skeleton.flip_pairs:
        raise InputError("--views 2: expected a skeleton with left and right, found one without: use --views 1")


def check_taught(*, is_taught: bool) -> None:
    """Passes if the head of a model has learnt something.

    Raises:
        BundleError: it has not: the bundle is one of a training that has not ended.
    """
    if not is_taught:
        raise BundleError("model bundle: expected a finished training, found one whose keypoint head is not taught")
