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

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from model.calibration import MIN_IMAGES, Calibration, read_calibration
from model.choices import Views
from model.errors import BundleError, InputError
from model.objective import find_method
from model.pose_model import ModelSpec, PoseModel, check_taught, check_views, find_estimator
from model.skeleton import Skeleton

FORMAT_VERSION = 2  # 1: bundles of `head` and `ranking`, whose heads are gone
WEIGHTS_FILE = "weights.safetensors"
BUNDLE_FILE = "bundle.json"  # written last: a folder without it is no bundle
_BAD_SPEC = (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError)  # raised by foreign JSON


@dataclass(frozen=True, kw_only=True)
class BundleDescription:
    """Everything about a bundle that is known without building its network."""

    bundle_id: str
    spec: ModelSpec
    calibration: Calibration | None
    is_taught: bool  # False: the bundle of a training that has not ended, whose loss head knows nothing yet
    doubts: tuple[str, ...] = ()  # see `find_doubts`

    def check_usable(self, *, views: Views) -> None:
        """Passes if images can be judged with the bundle, from so many views.

        Raises:
            BundleError: its training has not ended.
            InputError: its head can't judge from so many views.
        """
        check_taught(is_taught=self.is_taught)
        check_views(self.spec, views)


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
    description = _verify(files)
    model = _build_model(description["spec"])
    _load_weights(model, files[WEIGHTS_FILE])
    return Bundle(
        model=model.eval(),
        bundle_id=hash_description(files[BUNDLE_FILE]),
        calibration=read_calibration(description.get("calibration")),
        training=description["training"],
        metrics=description["metrics"],
    )


def describe_bundle(files: Mapping[str, bytes]) -> BundleDescription:
    """The description of a bundle whose files are whole, for processes that don't compute with it.

    Raises:
        BundleError: as `load_bundle`, but for weights that are not those of the specified model.
    """
    description = _verify(files)
    try:
        spec = _read_spec(description["spec"])
        find_estimator(spec.estimator, spec.estimator_config)
        is_taught = find_method(spec.method).head != "keypoint" or _is_head_taught(files[WEIGHTS_FILE])
    except BundleError:
        raise
    except InputError as error:
        raise BundleError(str(error)) from error
    except _BAD_SPEC as error:
        raise _bad_spec(error) from error
    return BundleDescription(
        bundle_id=hash_description(files[BUNDLE_FILE]),
        spec=spec,
        calibration=(calibration := read_calibration(description.get("calibration"))),
        is_taught=is_taught,
        doubts=tuple(find_doubts(description["metrics"], calibration)),
    )


def find_doubts(metrics: Mapping[str, Any], calibration: Calibration | None) -> list[str]:
    """Reasons not to trust the predicted losses of a bundle, a line each: what people should know before they use it.

    Args:
        metrics: those of the bundle, with those on its validation rows, if it had any.
        calibration: that of the bundle.
    """
    doubts = list[str]()
    validation = metrics.get("validation") or {}
    rho = validation.get("spearman", {})
    loss, confidence = rho.get("predicted_loss"), rho.get("confidence")
    if loss is not None and confidence is not None and loss < confidence:
        doubts.append(
            "predicted loss ranks the validation rows worse than heatmap confidence does: "
            f"Spearman with the true loss {loss:.3f}, of confidence {confidence:.3f}"
        )
    if calibration is None:
        found = f"{validation['num_judged']} validation rows with one" if validation else "no validation rows"
        doubts.append(f"not calibrated, so no failures to expect: it takes {MIN_IMAGES} rows with a PCK, found {found}")
    return doubts


def _verify(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The description, once both files are there and the weights are those that it names."""
    for name in (BUNDLE_FILE, WEIGHTS_FILE):
        if name not in files:
            raise BundleError(f"model bundle: expected the file {name}, found {', '.join(sorted(files)) or 'nothing'}")
    description = _read_description(files[BUNDLE_FILE])
    digest = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
    if digest != description["weights_sha256"]:
        raise BundleError(f"{WEIGHTS_FILE}: expected sha256 {description['weights_sha256']}, found {digest}")
    return description


def _is_head_taught(weights: bytes) -> bool:
    """True if the scale of a keypoint head's losses was set; reads one number of a file that may have gigabytes.

    Source: the format of safetensors: length of the header (8 B), header (JSON: name -> offsets), data.
    """
    start = 8 + int.from_bytes(weights[:8], "little")
    try:
        first, end = json.loads(weights[8:start])["loss_head.plain.loss_scale"]["data_offsets"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{WEIGHTS_FILE}: expected those of a keypoint head, found none") from error
    return bool(np.frombuffer(weights[start + first : start + end], np.float32)[0] > 0)


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
    except _BAD_SPEC as error:
        raise _bad_spec(error) from error


def _bad_spec(error: Exception) -> BundleError:
    found = f"one that fails with {type(error).__name__}: {str(error).splitlines()[0]}"
    return BundleError(f"{BUNDLE_FILE}: expected the specification of a model, found {found}")


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
