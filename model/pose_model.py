"""An estimator and its loss head as one module, and the specification both are built from.

# B batch, S input size (px), K keypoints, H, W heatmap size (px), D embedding
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.choices import MethodName, Views
from model.errors import BundleError, InputError
from model.estimator import Estimator, Layout, PoseOutput, import_estimator, is_own_name, probe_layout
from model.hourglass import StackedHourglass, paper_hourglass, small_hourglass
from model.keypoint_head import ImageJudgement, KeypointHead
from model.keypoint_inputs import mirror_back
from model.loss_head import ConvLossHead, GapLossHead
from model.objective import find_method
from model.skeleton import Skeleton
from model.spec import OWN_ESTIMATORS, ModelSpec, check_taught, check_views
from model.vitpose import VitPose, load_checkpoint, read_checkpoint, vitpose_estimator

_VITPOSE = "vitpose"
# Margins: 1.75 is the paper's at evaluation; a small input can't afford so wide a border.
_PAPER = Estimator(build=paper_hourglass, input_size=256, heatmap_size=64, crop_margin=1.75)
_SMALL = Estimator(build=small_hourglass, input_size=64, heatmap_size=32, crop_margin=1.5)
ESTIMATORS = dict(zip(OWN_ESTIMATORS, (_PAPER, _SMALL), strict=True))


def parse_estimator(named: str) -> tuple[str, str | None]:
    """Name and configuration, as a bundle keeps them, of what a user names.

    Args:
        named: hourglass, hourglass-small, vitpose:FOLDER or package.module:function.

    Raises:
        InputError: it is none of these, or the folder holds no ViTPose.
    """
    kind, _, folder = named.partition(":")
    return (_VITPOSE, read_checkpoint(folder)) if kind == _VITPOSE and folder else (named, None)


def absolute_estimator(named: str) -> str:
    """The estimator's name, with an absolute path of a checkpoint's folder: workers run in folders of their own."""
    kind, _, folder = named.partition(":")
    return f"{kind}:{os.path.abspath(folder)}" if kind == _VITPOSE and folder else named


def find_estimator(name: str, config: str | None = None) -> Estimator:
    """The estimator of a name and a configuration.

    Raises:
        InputError: there is none of that name, or its package can't be used here.
    """
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    if name == _VITPOSE and config is not None:
        return vitpose_estimator(config)
    if is_own_name(name):
        return import_estimator(name)
    choices = ", ".join([*ESTIMATORS, f"{_VITPOSE}:FOLDER", "package.module:function"])
    raise InputError(f"estimator: expected {choices}, found {name!r}")


def make_spec(estimator: str, *, method: MethodName, skeleton: Skeleton, is_frame_reduced: bool = False) -> ModelSpec:
    """The specification of a named estimator (see `parse_estimator`) at its own input size.

    Raises:
        InputError: there is no such estimator.
    """
    name, config = parse_estimator(estimator)
    found = find_estimator(name, config)
    return ModelSpec(
        estimator=name,
        method=method,
        skeleton=skeleton,
        input_size=found.input_size,
        heatmap_size=found.heatmap_size,
        crop_margin=found.crop_margin,
        estimator_config=config,
        is_frame_reduced=is_frame_reduced,
    )


class Prediction(NamedTuple):
    """Output of one forward pass."""

    heatmaps: Tensor  # (B, S, K, H, W), S stacks here
    predicted_loss: Tensor  # (B,)
    miss: Tensor  # (B, K) P(miss) of each keypoint; NaN where the head has no opinion
    embedding: Tensor  # (B, D) float32, detached


class PoseModel(nn.Module):
    """A pose estimator and a loss head that reads what it puts out.

    What the head reads is detached: it learns beside the estimator, or after it, and never bends it.

    An image's embedding is the global average of the last of the features that a head may read: those of the last
    stack's coarsest scale. They have seen the whole crop, and are a few pixels wide, so that the average costs nothing.

    Args:
        spec: what to build.

    Raises:
        BundleError: the specification names no estimator that can be built here, no known method or one whose head
            can't read this estimator, or sizes that the estimator does not have.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.estimator, self.layout = _make_estimator(spec)
        self.loss_head = _make_head(spec, self.layout)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", 255 * torch.tensor(spec.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(spec.pixel_std).view(1, 3, 1, 1), persistent=False)

    @property
    def embedding_dim(self) -> int:
        """D: 256 for the paper's hourglass, 48 for the small one."""
        return self.layout.features[-1][0]

    def check_views(self, views: Views) -> None:
        """See the function `check_views`."""
        check_views(self.spec, views)

    def check_taught(self) -> None:
        """See the function `check_taught`."""
        check_taught(is_taught=not isinstance(self.loss_head, KeypointHead) or self.loss_head.is_taught)

    def forward(self, pixels: Tensor, views: Views = 1) -> Prediction:
        """Predictions for uint8 crops (B, S, S, 3), whose permuted view is channels_last as it stands.

        A second view, the mirrored crop, bears on the predicted loss and P(miss) alone; heatmaps are the plain one's.
        """
        images = self.normalise(pixels)
        output = self.estimator(images)
        embedding = output.features[-1].detach().mean(dim=(2, 3), dtype=torch.float32)
        judged = self._judge(_detached(output), images, views)
        return Prediction(output.heatmaps, judged.predicted_loss, judged.miss, embedding)

    def normalise(self, pixels: Tensor) -> Tensor:
        """The estimator's input (B, 3, S, S) float32 from uint8 crops (B, S, S, 3)."""
        return (pixels.permute(0, 3, 1, 2).float() - self.pixel_mean) / self.pixel_std

    def _judge(self, output: PoseOutput, images: Tensor, views: Views) -> ImageJudgement:
        last = output.heatmaps[:, -1]
        unknown = last.new_full(last.shape[:2], torch.nan, dtype=torch.float32)
        if not isinstance(self.loss_head, KeypointHead):
            return ImageJudgement(self.loss_head(output), unknown)
        if self.training:  # it is taught afterwards
            return ImageJudgement(torch.zeros_like(unknown[:, 0]), unknown)
        judgement: ImageJudgement = self.loss_head(last, self.mirrored_heatmaps(images) if views == 2 else None)
        return judgement

    def mirrored_heatmaps(self, images: Tensor) -> Tensor:
        """The last stack's heatmaps (B, K, H, W) of mirrored images (B, 3, S, S), mapped back."""
        return mirror_back(self.estimator(images.flip(3)).heatmaps[:, -1], self.spec.skeleton)


def _detached(output: PoseOutput) -> PoseOutput:
    return PoseOutput(output.heatmaps.detach(), tuple(feature.detach() for feature in output.features))


def new_model(spec: ModelSpec, *, estimator: str) -> PoseModel:
    """A model to be trained: new weights, or those of the checkpoint that the user named (see `parse_estimator`).

    Raises:
        InputError: the checkpoint is not there, or is of another network.
    """
    model = PoseModel(spec)
    if isinstance(model.estimator, VitPose):
        load_checkpoint(model.estimator, estimator.partition(":")[2])
    return model


def _make_estimator(spec: ModelSpec) -> tuple[nn.Module, Layout]:
    try:
        module = _build(find_estimator(spec.estimator, spec.estimator_config), spec)
        return module, _layout_of(module, spec)
    except InputError as error:
        raise BundleError(str(error)) from error


def _build(estimator: Estimator, spec: ModelSpec) -> nn.Module:
    try:
        module = estimator.build(spec.skeleton.num_keypoints)
    except InputError:
        raise
    except Exception as error:  # somebody else's code may raise anything
        said = " ".join(str(error).split())
        raise InputError(f"{spec.estimator}: can't be built: {type(error).__name__}: {said}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec.estimator}: expected a torch.nn.Module, found {type(module).__name__}")
    return module


def _layout_of(module: nn.Module, spec: ModelSpec) -> Layout:
    """Shape of the network's output; raises `InputError` if it does not make such heatmaps from such images."""
    input_size, heatmap_size = spec.input_size, spec.heatmap_size
    expected: str | None = None
    if isinstance(module, StackedHourglass):
        stride = module.config.stem_stride
        expected = f"{stride} * heatmap_size" if input_size != stride * heatmap_size else None
        layout = module.layout(heatmap_size)
    elif isinstance(module, VitPose):
        is_own = (input_size, input_size) == (module.shape.input_size, module.shape.stride * heatmap_size)
        expected = None if is_own else f"{module.shape.input_size} = {module.shape.stride} * heatmap_size"
        layout = module.layout
    else:
        layout = probe_layout(
            module,
            num_keypoints=spec.skeleton.num_keypoints,
            input_size=input_size,
            heatmap_size=heatmap_size,
            name=spec.estimator,
        )
    if expected:
        raise InputError(f"{spec.estimator}: expected input_size {expected}, found {input_size} and {heatmap_size}")
    return layout


def _make_head(spec: ModelSpec, layout: Layout) -> nn.Module:
    channels, head = layout.features[0][0], find_method(spec.method).head
    if head == "gap":
        return GapLossHead(channels)
    if head == "conv":
        _check_scales(spec, layout)
        return ConvLossHead(channels, num_scales=len(layout.features), coarsest_size=layout.features[-1][1])
    return KeypointHead(spec.skeleton, sigma=spec.sigma)


def _check_scales(spec: ModelSpec, layout: Layout) -> None:
    """The conv head carries each map to the next: same channels, half the size."""
    channels, size, _ = layout.features[0]
    expected = tuple((channels, size >> halved, size >> halved) for halved in range(max(2, len(layout.features))))
    if layout.features != expected:
        raise BundleError(
            f"method {spec.method}: expected of {spec.estimator} features of several scales, each half the one before, "
            f"found {layout.features}: choose another --method"
        )
