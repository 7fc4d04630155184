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

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from model.calibration import Calibration, read_calibration
from model.errors import BundleError
from model.pose_model import ModelSpec, PoseModel
from model.skeleton import Skeleton

FORMAT_VERSION = 2  # 1: bundles of `head` and `ranking`, whose heads are gone
WEIGHTS_FILE = "weights.safetensors"
BUNDLE_FILE = "bundle.json"  # written last: a folder without it is no bundle


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
        """What the model expects and returns."""
        return self.model.spec


def dump_bundle(
    model: PoseModel, *, training: dict[str, Any], metrics: dict[str, Any], calibration: Calibration | None = None
) -> dict[str, bytes]:
    """The files of a bundle, in the order in which they must be written. Same content, same bytes, same id."""
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
    for name in (BUNDLE_FILE, WEIGHTS_FILE):
        if name not in files:
            raise BundleError(f"model bundle: expected the file {name}, found {', '.join(sorted(files)) or 'nothing'}")
    description = _read_description(files[BUNDLE_FILE])
    digest = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
    if digest != description["weights_sha256"]:
        raise BundleError(f"{WEIGHTS_FILE}: expected sha256 {description['weights_sha256']}, found {digest}")
    model = _build_model(description["spec"])
    _load_weights(model, files[WEIGHTS_FILE])
    return Bundle(
        model=model.eval(),
        bundle_id=hash_description(files[BUNDLE_FILE]),
        calibration=read_calibration(description.get("calibration")),
        training=description["training"],
        metrics=description["metrics"],
    )


def hash_description(data: bytes) -> str:
    """The id of the bundle whose description this is: the hash of all of it, since it holds that of the weights."""
    return hashlib.sha256(data).hexdigest()[:16]


def _read_description(data: bytes) -> dict[str, Any]:
    try:
        description = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{BUNDLE_FILE}: expected JSON, found {data[:40]!r}") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version == 1:
        raise BundleError(
            f"{BUNDLE_FILE}: expected format_version {FORMAT_VERSION}, found 1, an earlier lossight's: train again"
        )
    if version != FORMAT_VERSION:
        raise BundleError(f"{BUNDLE_FILE}: expected format_version {FORMAT_VERSION}, found {version}")
    missing = sorted({"spec", "weights_sha256", "training", "metrics"} - description.keys())
    if missing:
        raise BundleError(f"{BUNDLE_FILE}: expected {', '.join(missing)}, found {', '.join(sorted(description))}")
    return dict(description)


def _build_model(fields: dict[str, Any]) -> PoseModel:
    try:
        return PoseModel(_read_spec(fields))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        found = f"one that fails with {type(error).__name__}: {str(error).splitlines()[0]}"
        raise BundleError(f"{BUNDLE_FILE}: expected the specification of a model, found {found}") from error


def _load_weights(model: PoseModel, data: bytes) -> None:
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


def _read_spec(fields: dict[str, Any]) -> ModelSpec:
    skeleton = Skeleton(**{name: _as_tuples(value) for name, value in fields["skeleton"].items()})
    return ModelSpec(**{**{name: _as_tuples(value) for name, value in fields.items()}, "skeleton": skeleton})


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value
