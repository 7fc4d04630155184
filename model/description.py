"""Description of a model bundle: what its files say without the network that they are of. Imports without PyTorch.

Commands that only read what was scored, or find that nothing is to be done, start in a fraction of a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from model.calibration import MIN_IMAGES, Calibration, read_calibration
from model.choices import MethodName, Views
from model.errors import BundleError, InputError
from model.json_text import parse_json
from model.spec import BAD_SPEC, OWN_ESTIMATORS, ModelSpec, check_taught, check_views, read_spec

FORMAT_VERSION = 2  # 1: bundles of `head` and `ranking`, whose heads are gone
WEIGHTS_FILE = "weights.safetensors"
BUNDLE_FILE = "bundle.json"  # written last: a folder without it is no bundle


@dataclass(frozen=True, kw_only=True)
class BundleDescription:
    """Everything about a bundle that is known without building its network."""

    bundle_id: str
    spec: ModelSpec
    calibration: Calibration | None
    training: dict[str, Any]  # see `Bundle`
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


def describe_bundle(files: Mapping[str, bytes]) -> BundleDescription:
    """The description of a bundle whose files are whole, for processes that don't compute with it.

    Raises:
        BundleError: as `load_bundle`, but for weights that are not those of the specified model.
    """
    description = verify(files)
    try:
        spec = read_spec(description["spec"])
        _check_names(spec)
        is_taught = spec.method != "keypoint" or _is_head_taught(files[WEIGHTS_FILE])
    except BundleError:
        raise
    except InputError as error:
        raise BundleError(str(error)) from error
    except BAD_SPEC as error:
        raise bad_spec(error) from error
    return BundleDescription(
        bundle_id=hash_description(files[BUNDLE_FILE]),
        spec=spec,
        calibration=(calibration := read_calibration(description.get("calibration"))),
        is_taught=is_taught,
        training=description["training"],
        doubts=tuple(find_doubts(description["metrics"], calibration)),
    )


def _check_names(spec: ModelSpec) -> None:
    """Refuses an estimator that can't be found here, and an unknown method."""
    if spec.method not in get_args(MethodName):
        raise BundleError(f"method: expected {', '.join(get_args(MethodName))}, found {spec.method!r}")
    if spec.estimator not in OWN_ESTIMATORS:
        from model.pose_model import find_estimator  # PyTorch: seconds that ours need not cost whoever only reads

        find_estimator(spec.estimator, spec.estimator_config)


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


def verify(files: Mapping[str, bytes]) -> dict[str, Any]:
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
        first, end = parse_json(weights[8:start])["loss_head.plain.loss_scale"]["data_offsets"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{WEIGHTS_FILE}: expected those of a keypoint head, found none") from error
    return bool(np.frombuffer(weights[start + first : start + end], np.float32)[0] > 0)


def hash_description(data: bytes) -> str:
    """The id of the bundle whose description this is: the hash of all of it, since it holds that of the weights."""
    return hashlib.sha256(data).hexdigest()[:16]


def _read_description(data: bytes) -> dict[str, Any]:
    try:
        description = parse_json(data)
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


def bad_spec(error: Exception) -> BundleError:
    """The error of a specification that no model can be built from."""
    found = f"one that fails with {type(error).__name__}: {str(error).splitlines()[0]}"
    return BundleError(f"{BUNDLE_FILE}: expected the specification of a model, found {found}")
