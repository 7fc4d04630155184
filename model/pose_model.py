"""An estimator and its loss head as one module, and the specification both are built from.

# B batch, S input size (px), K keypoints, H, W heatmap size (px), D embedding
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from model.errors import BundleError
from model.hourglass import PoseOutput, StackedHourglass, paper_hourglass, small_hourglass
from model.loss_head import ConvLossHead, GapLossHead, OutputsLossHead
from model.skeleton import Skeleton

EstimatorName = Literal["hourglass", "hourglass-small"]
HeadName = Literal["gap", "conv", "outputs"]

_BUILDERS = {"hourglass": paper_hourglass, "hourglass-small": small_hourglass}
# Input and heatmap size (px), and side of the crop / longer side of the box: 1.75 is the paper's at evaluation; a small
# input can't afford so wide a border.
_SHAPES = {"hourglass": (256, 64, 1.75), "hourglass-small": (64, 32, 1.5)}


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """All that is needed to rebuild a model and to feed it; stored in the bundle."""

    estimator: EstimatorName
    head: HeadName
    skeleton: Skeleton
    input_size: int  # S
    heatmap_size: int  # H = W
    crop_margin: float  # side of the crop / longer side of the box
    sigma: float = 1.75  # heatmap pixels. Source: the paper's set-up
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in 0..1: ImageNet's, as is customary
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def make_spec(estimator: EstimatorName, *, head: HeadName, skeleton: Skeleton) -> ModelSpec:
    """The specification of a named estimator at its own input size."""
    input_size, heatmap_size, crop_margin = _SHAPES[estimator]
    return ModelSpec(
        estimator=estimator,
        head=head,
        skeleton=skeleton,
        input_size=input_size,
        heatmap_size=heatmap_size,
        crop_margin=crop_margin,
    )


class Prediction(NamedTuple):
    """What one forward pass gives."""

    heatmaps: Tensor  # (B, S, K, H, W), S stacks here
    predicted_loss: Tensor  # (B,)
    embedding: Tensor  # (B, D) float32, detached


class PoseModel(nn.Module):
    """A pose estimator and a loss head that reads what it puts out.

    What the head reads is detached: it learns beside the estimator and never bends it, unless that is asked for.

    An image's embedding is the global average of the last of the features that a head may read: those of the last
    stack's coarsest scale. They have seen the whole crop, and are a few pixels wide, so that the average costs nothing.

    Args:
        spec: what to build.
        head_bends_estimator: let gradients of the head reach the estimator; of no consequence but for training.

    Raises:
        BundleError: the specification names no known loss head, or sizes that the estimator does not have.
    """

    def __init__(self, spec: ModelSpec, *, head_bends_estimator: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self._is_detached = not head_bends_estimator
        self.estimator = _BUILDERS[spec.estimator](spec.skeleton.num_keypoints)
        stride = self.estimator.config.stem_stride
        if spec.input_size != stride * spec.heatmap_size:
            raise BundleError(
                f"{spec.estimator}: expected input_size {stride} * heatmap_size, "
                f"found {spec.input_size} and {spec.heatmap_size}"
            )
        self.loss_head = _make_head(spec, self.estimator)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", 255 * torch.tensor(spec.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(spec.pixel_std).view(1, 3, 1, 1), persistent=False)

    @property
    def embedding_dim(self) -> int:
        """D: 256 for the paper's hourglass, 48 for the small one."""
        return self.estimator.config.channels

    def forward(self, pixels: Tensor) -> Prediction:
        """What is predicted of uint8 crops (B, S, S, 3), whose permuted view is channels_last as it stands."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.pixel_mean) / self.pixel_std
        output = self.estimator(images)
        embedding = output.features[-1].detach().mean(dim=(2, 3), dtype=torch.float32)
        read = _detached(output) if self._is_detached else output
        return Prediction(output.heatmaps, self.loss_head(read), embedding)


def _detached(output: PoseOutput) -> PoseOutput:
    return PoseOutput(output.heatmaps.detach(), tuple(feature.detach() for feature in output.features))


def _make_head(spec: ModelSpec, estimator: StackedHourglass) -> nn.Module:
    config = estimator.config
    if spec.head == "gap":
        return GapLossHead(config.channels)
    if spec.head == "conv":
        return ConvLossHead(
            config.channels, num_scales=config.depth + 1, coarsest_size=spec.heatmap_size >> config.depth
        )
    if spec.head == "outputs":
        return OutputsLossHead(config.channels, spec.skeleton.num_keypoints, sigma=spec.sigma)
    raise BundleError(f"loss head: expected gap, conv or outputs, found {spec.head!r}")
