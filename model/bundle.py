"""The model bundle: weights in safetensors and a JSON that says how to feed them. No pickle anywhere.

A bundle is handled as a mapping of file names to bytes; where the files lie is somebody else's business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.calibration import Calibration, read_calibration
from model.description import BUNDLE_FILE, FORMAT_VERSION, WEIGHTS_FILE, bad_spec, hash_description, verify
from model.errors import BundleError
from model.pose_model import PoseModel
from model.spec import BAD_SPEC, ModelSpec, read_spec


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A fitted model with its provenance. `bundle_id` is the hash of the content."""

    model: PoseModel
    bundle_id: str
    calibration: Calibration | None = None  # None: there were no images to fit it to
    training: dict[str, Any] = field(default_factory=dict)  # fingerprint of the data, objective, epochs, seed
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """Specification of the model."""
        return self.model.spec


def dump_bundle(
    model: PoseModel, *, training: dict[str, Any], metrics: dict[str, Any], calibration: Calibration | None = None
) -> dict[str, bytes]:
    """The files of a bundle, in the order in which they must be written. Same content, same bytes, same id."""
    from safetensors.torch import save as save_tensors

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = save_tensors(tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "spec": dataclasses.asdict(model.spec),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "calibration": calibration and dataclasses.asdict(calibration),
        "training": training,
        "metrics": metrics,
    }
    return {WEIGHTS_FILE: weights, BUNDLE_FILE: json.dumps(description, indent=1, sort_keys=True).encode()}


def load_bundle(files: Mapping[str, bytes]) -> Bundle:
    """The bundle in evaluation mode, on the CPU.

    Raises:
        BundleError: a file is missing or altered, the format version is not `FORMAT_VERSION`, or the specification is
            not one of a model with these weights.
    """
    description = verify(files)
    model = _build_model(description["spec"])
    _load_weights(model, files[WEIGHTS_FILE])
    return Bundle(
        model=model.eval(),
        bundle_id=hash_description(files[BUNDLE_FILE]),
        calibration=read_calibration(description.get("calibration")),
        training=description["training"],
        metrics=description["metrics"],
    )


def _build_model(fields: dict[str, Any]) -> PoseModel:
    try:
        return PoseModel(read_spec(fields))
    except BAD_SPEC as error:
        raise bad_spec(error) from error


def _load_weights(model: PoseModel, data: bytes) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise BundleError(f"{WEIGHTS_FILE}: expected safetensors, found {data[:40]!r}") from error
    expected, found = _shapes(model.state_dict()), _shapes(tensors)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise BundleError(
                f"{WEIGHTS_FILE}: {name}: expected {expected.get(name, 'no such tensor')} by {BUNDLE_FILE}, "
                f"found {found.get(name, 'no such tensor')}"
            )
    model.load_state_dict(tensors)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
