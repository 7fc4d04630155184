"""Networks and images that are measured; weights are random, since speed does not depend on them.

# K keypoints
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.machine import has
from model.bundle import Bundle
from model.choices import MethodName
from model.image import image_size
from model.pose_model import ModelSpec, PoseModel, find_estimator, make_spec
from model.skeleton import COCO, LSP
from model.synthetic import generate_fleet

NUM_DISTINCT = 512  # images; more are the same again

# Source: Xu et al. 2022, and the published checkpoints: ViT-B, patches of 16 px, the classic decoder, 256x192.
_BACKBONE = {"mlp_ratio": 4, "num_experts": 1, "part_features": 0, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_VITPOSE_B = {
    "image_size": [256, 192],
    "backbone": _BACKBONE | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
_VITPOSE_TINY = {
    "image_size": [64, 48],
    "backbone": _BACKBONE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}


class Photo(NamedTuple):
    """One encoded image with labels of a person."""

    image: bytes
    box: NDArray[np.float64] | None  # None: the whole image
    keypoints: NDArray[np.float32]  # (K, 2) image pixels
    visibility: NDArray[np.uint8]  # (K,)


def networks(*, is_tiny: bool) -> dict[str, ModelSpec]:
    """Specifications by name: the paper's network with the paper's head and with the default one, and a ViTPose."""
    hourglass = "hourglass-small" if is_tiny else "hourglass"
    methods: dict[str, MethodName] = {"conv head": "ll++conv", "keypoint head": "keypoint"}
    found = {
        f"{hourglass}, {head}": make_spec(hourglass, method=method, skeleton=LSP) for head, method in methods.items()
    }
    if has("transformers"):
        found["ViTPose, tiny" if is_tiny else "ViTPose-B"] = _vitpose(_VITPOSE_TINY if is_tiny else _VITPOSE_B)
    return found


def _vitpose(sizes: dict[str, object]) -> ModelSpec:
    backbone = {**sizes["backbone"], "qkv_bias": True}  # type: ignore[dict-item]
    backbone["out_indices"] = [backbone["num_hidden_layers"]]
    config = json.dumps(
        {**sizes, "backbone": backbone, "patch_size": [16, 16], "scale_factor": 4, "use_simple_decoder": False}
    )
    found = find_estimator("vitpose", config)
    return ModelSpec(
        estimator="vitpose",
        method="keypoint",
        skeleton=COCO,
        input_size=found.input_size,
        heatmap_size=found.heatmap_size,
        crop_margin=found.crop_margin,
        estimator_config=config,
    )


def new_bundle(spec: ModelSpec) -> Bundle:
    """A bundle of random weights, the same at every call."""
    torch.manual_seed(0)
    return Bundle(model=PoseModel(spec).eval(), bundle_id="random weights")


def photos(count: int, *, folder: str | None = None, seed: int = 0) -> list[Photo]:
    """So many images: JPEGs of a folder, whose labels are made up, or frames of the synthetic fleet (256 px).

    Raises:
        ValueError: the folder has no JPEGs.
    """
    distinct = min(count, NUM_DISTINCT)
    found = _from_folder(folder, distinct) if folder else _of_fleet(distinct, seed=seed)
    return [found[i % len(found)] for i in range(count)]


def _of_fleet(count: int, *, seed: int) -> list[Photo]:
    fleet = generate_fleet(seed=seed, num_samples=count, unreadable_share=0)
    return [Photo(each.image, np.array(each.box), each.keypoints, each.visibility) for each in fleet]


def _from_folder(folder: str, count: int) -> list[Photo]:
    rng = np.random.default_rng(0)
    found = []
    for path in islice(sorted(Path(folder).rglob("*.jp*g")), count):
        data = path.read_bytes()
        keypoints = rng.uniform((0, 0), image_size(data), size=(LSP.num_keypoints, 2)).astype(np.float32)
        found.append(Photo(data, None, keypoints, np.full(len(keypoints), 2, np.uint8)))
    if not found:
        raise ValueError(f"--images: expected a folder with JPEGs, found none in {folder}")
    return found
