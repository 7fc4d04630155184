"""ViTPose as an estimator: the network of the package `transformers`, which is imported only where one is built.

Source: Xu et al., "ViTPose: Simple Vision Transformer Baselines for Human Pose Estimation", NeurIPS 2022.
Published checkpoints take images of 256x192; crops are square here. So the network sees the middle of the crop, and its
heatmaps are framed with zeros: a keypoint that lies beside the middle is never found.

# B batch, S input size (px), K keypoints, H heatmap size (px), C hidden size, h, w patches
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import InputError
from model.estimator import Estimator, Layout, PoseOutput
from model.json_text import parse_json

_DECONVOLUTIONS_SCALE = 4  # of the classic decoder: two that double
# The checkpoints' own crop is 1.25 times the box; a crop whose middle strip is seen has to be as wide as the box again.
_MARGIN = 1.25
# What is kept of a checkpoint's configuration: what decides the network's shape, and nothing that names other files.
_BACKBONE_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "num_experts",
    "part_features",
    "hidden_act",
    "layer_norm_eps",
    "qkv_bias",
    "out_indices",
)


@dataclass(frozen=True, kw_only=True)
class VitPoseShape:
    """Sizes of a ViTPose, but for the number of keypoints; kept in the bundle as JSON."""

    image_size: tuple[int, int]  # height, width (px)
    patch_size: tuple[int, int]
    scale_factor: int
    use_simple_decoder: bool
    backbone: dict[str, Any]

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of patches: h, w."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def heatmap_scale(self) -> int:
        """Heatmap pixels a patch."""
        return self.scale_factor if self.use_simple_decoder else _DECONVOLUTIONS_SCALE

    @property
    def input_size(self) -> int:
        """S: side of the square that holds the image."""
        return max(self.image_size)

    @property
    def stride(self) -> int:
        """Input pixels a heatmap pixel.

        Raises:
            InputError: it is not a whole number, the same in both directions, that the frame around the image shares.
        """
        strides = {size / self.heatmap_scale for size in self.patch_size}
        stride = next(iter(strides))
        frames = [(self.input_size - size) / (2 * stride) for size in self.image_size]
        if len(strides) > 1 or stride % 1 or any(frame % 1 for frame in frames) or self.input_size % stride:
            raise InputError(f"vitpose: expected image and frame to be whole heatmap pixels, found {asdict(self)}")
        return int(stride)


class VitPose(nn.Module):
    """Square images to `PoseOutput`; the features are the backbone's last map, (B, C, h, w)."""

    def __init__(self, shape: VitPoseShape, num_keypoints: int) -> None:
        super().__init__()
        self.shape = shape
        hidden = int(shape.backbone["hidden_size"])
        self.layout = Layout(num_stacks=1, features=((hidden, *shape.patches),))
        self.is_fitted = False  # True with all weights of a checkpoint
        self.network: nn.Module = _transformers().VitPoseForPoseEstimation(_config(shape, num_keypoints))

    def forward(self, images: Tensor) -> PoseOutput:
        """Heatmaps (B, 1, K, H, H) and features of normalised images (B, 3, S, S)."""
        (height, width), side = self.shape.image_size, self.shape.input_size
        top, left = (side - height) // 2, (side - width) // 2
        seen = images[:, :, top : top + height, left : left + width]
        # Of networks with an expert a data set, the first is COCO's.
        first = torch.zeros(len(images), dtype=torch.long, device=images.device)
        tokens = self.network.backbone(seen, dataset_index=first).feature_maps[-1]  # type: ignore[operator]
        features = tokens.transpose(1, 2).unflatten(2, self.shape.patches).contiguous()
        heatmaps = self.network.head(features)  # type: ignore[operator]
        stride = self.shape.stride
        framed = F.pad(heatmaps, [left // stride] * 2 + [top // stride] * 2)
        return PoseOutput(framed[:, None], (features,))


def vitpose_estimator(config: str) -> Estimator:
    """The estimator of a configuration that `read_checkpoint` gave, or a bundle kept.

    Raises:
        InputError: it is none of a ViTPose.
    """
    try:
        fields = parse_json(config)
        pairs = {name: (int(fields[name][0]), int(fields[name][1])) for name in ("image_size", "patch_size")}
        backbone = {name: fields["backbone"][name] for name in _BACKBONE_KEYS}
        shape = VitPoseShape(**{**fields, **pairs, "backbone": backbone})
        size, stride = shape.input_size, shape.stride
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"vitpose: expected a configuration, found {config!r}") from error
    return Estimator(
        build=partial(VitPose, shape),
        input_size=size,
        heatmap_size=size // stride,
        crop_margin=max(_MARGIN, size / min(shape.image_size)),
    )


def read_checkpoint(folder: str) -> str:
    """The configuration of a checkpoint as `transformers` saves it, as JSON.

    Raises:
        InputError: there is no ViTPose, or `transformers` is not installed.
    """
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            fields = parse_json(file.read())
        kind, backbone = fields["model_type"], fields.get("backbone_config") or {}
        kinds = (kind, backbone.get("model_type", "vitpose_backbone"))
    except OSError as error:
        raise InputError(
            f"vitpose:{folder}: expected a folder with config.json, found none: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a configuration of ViTPose, found something else") from error
    if kinds != ("vitpose", "vitpose_backbone"):
        raise InputError(
            f"{path}: expected model_type vitpose with a vitpose_backbone, found {kinds[0]} with {kinds[1]}"
        )
    with _explained(path):
        config = _transformers().VitPoseConfig.from_dict(fields)
        found = config.backbone_config
        shape = VitPoseShape(
            image_size=_pair(found.image_size),
            patch_size=_pair(found.patch_size),
            scale_factor=config.scale_factor,
            use_simple_decoder=config.use_simple_decoder,
            backbone={
                **{name: getattr(found, name) for name in _BACKBONE_KEYS},
                "out_indices": list(found.out_indices),
            },
        )
    return json.dumps(asdict(shape), sort_keys=True)


def load_checkpoint(module: VitPose, folder: str) -> None:
    """Gives the module the weights of a checkpoint (safetensors only).

    The last layer stays as it was drawn where the checkpoint has another number of keypoints.

    Raises:
        InputError: the folder has no such weights, or not those of this module.
    """
    transformers = _transformers()
    with _explained(f"vitpose:{folder}"), _quiet(transformers):
        loaded, report = transformers.VitPoseForPoseEstimation.from_pretrained(
            folder,
            config=module.network.config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"], *mismatched} - _LAST_LAYER)
    if wrong:
        raise InputError(f"vitpose:{folder}: expected the weights of its configuration, found others: {wrong[:3]}")
    state = loaded.state_dict()
    module.network.load_state_dict(
        {**module.network.state_dict(), **{k: v for k, v in state.items() if k not in mismatched}}
    )
    module.is_fitted = not mismatched and not report["missing_keys"]


_LAST_LAYER = {"head.conv.weight", "head.conv.bias"}


def _config(shape: VitPoseShape, num_keypoints: int) -> Any:
    transformers = _transformers()
    with _explained("vitpose"):
        backbone = transformers.VitPoseBackboneConfig(
            image_size=list(shape.image_size), patch_size=list(shape.patch_size), **shape.backbone
        )
        return transformers.VitPoseConfig(
            backbone_config=backbone,
            scale_factor=shape.scale_factor,
            use_simple_decoder=shape.use_simple_decoder,
            num_labels=num_keypoints,
        )


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError("vitpose: expected the package transformers (extra [vitpose]), found none") from error
    return transformers


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """One line for whatever `transformers` finds wrong with a configuration or with weights."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # it has errors of its own for configurations, and raises OSError for missing files
        said = " ".join(str(error).split())
        raise InputError(
            f"{where}: expected a ViTPose, found one that fails: {type(error).__name__}: {said}"
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its progress bar and its report on the layers that are drawn anew."""
    logging = transformers.utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
