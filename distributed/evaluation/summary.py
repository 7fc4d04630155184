"""Evaluated rows in numbers: PCK, PCKh, correlations with the true loss, failure detection, and reliability."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.evaluation.rows import Observed, distances_of, observed
from model.calibration import Calibration, Pair, calibration_error, fit_calibration, reliability_bins
from model.metrics import (
    PCK_THRESHOLD,
    PCKH_THRESHOLD,
    area_under_risks,
    kendall,
    mean_of_top,
    pck,
    pck_per_image,
    pck_per_keypoint,
    pearson,
    spearman,
    top_size,
)
from model.spec import ModelSpec

WORST_SHARE = 0.1  # of the rows: about a labelling budget
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  # of the rows: the points of the failure-detection curve
_CALIBRATED = ("true_loss", "pck", "failure_share")
_CORRELATIONS = {"spearman": spearman, "pearson": pearson, "kendall": kendall}

Numbers = NDArray[np.float64]


def summarise(evaluated: pa.Table, *, spec: ModelSpec) -> dict[str, Any]:
    """The metrics of evaluated rows as JSON values, null where there is none; docs/evaluation.md explains them all.

    `confidence` stands for minus the mean heatmap peak: a predicted loss has to beat it. `random` is the exact
    expectation of a draw; `oracle` knows the true loss. Rows without a score or without a true loss count as rows and
    enter nothing else.
    """
    all_rows = observed(evaluated)
    is_evaluated = all_rows.is_evaluated
    usable, known = evaluated.filter(pa.array(is_evaluated)), all_rows.take(is_evaluated)
    scores = {"predicted_loss": known.predicted_loss, "confidence": -known.confidence}
    curve = failure_curve(known)
    return {
        "num_rows": len(evaluated),
        "num_errors": int(all_rows.is_error.sum()),
        "errors": dict(sorted(Counter(pc.drop_null(evaluated["error"]).to_pylist()).items())),
        "num_evaluated": int(is_evaluated.sum()),
        "num_judged": int(known.is_judged.sum()),
        "keypoints": list(spec.skeleton.keypoint_names),
        **_accuracy("pck", distances_of(usable), threshold=PCK_THRESHOLD, spec=spec),
        **_accuracy("pckh", distances_of(usable, "head_distances"), threshold=PCKH_THRESHOLD, spec=spec),
        "mean_true_loss": json_number(mean(known.true_loss)),
        "mean_predicted_loss": json_number(mean(known.predicted_loss)),
        **{
            name: {ranking: json_number(correlation(score, known.true_loss)) for ranking, score in scores.items()}
            for name, correlation in _CORRELATIONS.items()
        },
        "worst_share": WORST_SHARE,
        "pck_of_worst": {name: curve[name][_SHARES.index(WORST_SHARE)] for name in (*scores, "oracle")},
        "failure_curve": curve,
        "aurc": {
            "true_loss": _areas(known, known.true_loss),
            "pck": _areas(known.take(known.is_judged), 1 - known.image_pck[known.is_judged]),
        },
    }


def _accuracy(name: str, distances: Numbers, *, threshold: float, spec: ModelSpec) -> dict[str, Any]:
    """PCK, or PCKh: of all keypoints together, of each, and the mean over images of each image's own."""
    per_keypoint = pck_per_keypoint(distances, threshold=threshold)
    per_image = pck_per_image(distances, threshold=threshold)
    return {
        f"{name}_threshold": threshold,
        name: json_number(pck(distances, threshold=threshold)),
        f"{name}_per_image": json_number(mean(per_image[np.isfinite(per_image)])),
        f"{name}_per_keypoint": dict(
            zip(spec.skeleton.keypoint_names, map(json_number, per_keypoint), strict=True),
        ),
    }


def rankings(rows: Observed) -> dict[str, Numbers]:
    """The scores that the rows can be ranked by: higher is worse."""
    return {"predicted_loss": rows.predicted_loss, "confidence": -rows.confidence, "oracle": rows.true_loss}


def failure_curve(known: Observed) -> dict[str, Any]:
    """Mean PCK of the images that each ranking finds worst, of images with a PCK: see `mean_of_top`."""
    rows = known.take(known.is_judged)
    curves = {name: mean_of_top(score, rows.image_pck, shares=_SHARES) for name, score in rankings(rows).items()}
    curves["random"] = np.full(len(_SHARES), mean(rows.image_pck))
    return {
        "share": list(_SHARES),
        "num_images": [top_size(len(rows.num_judged), share) if len(rows.num_judged) else 0 for share in _SHARES],
        **{name: [json_number(value) for value in values] for name, values in curves.items()},
    }


def _areas(rows: Observed, risk: Numbers) -> dict[str, float | None]:
    """AURC of each ranking; `lowest` is that of the risk itself as the ranking, the least possible."""
    areas = {name: area_under_risks(score, risk) for name, score in rankings(rows).items()}
    areas |= {"random": mean(risk), "lowest": area_under_risks(risk, risk)}
    return {name: json_number(area) for name, area in areas.items()}


def calibrate(evaluated: pa.Table) -> Calibration | None:
    """The calibration of a predicted loss by evaluated rows that its head was not fitted to."""
    rows = observed(evaluated)
    return fit_calibration(rows.predicted_loss, true_loss=rows.true_loss, pck=rows.image_pck)


def summarise_reliability(rows: Observed, calibration: Calibration | None) -> dict[str, Any] | None:
    """The calibration against these rows: expected and observed values in bins of the predicted loss.

    None if the bundle is not calibrated.
    """
    if calibration is None:
        return None
    bins = reliability_bins(
        calibration,
        rows.predicted_loss,
        expected_pck=rows.expected_pck,
        true_loss=rows.true_loss,
        pck=rows.image_pck,
    )
    counts = [each.num_images for each in bins]
    return {
        "num_images": sum(counts),
        "num_calibrated_on": calibration.num_images,
        "expected_calibration_error": {
            name: json_number(calibration_error([vars(each)[name] for each in bins], counts)) for name in _CALIBRATED
        },
        "bins": [
            {
                "lowest": json_number(each.lowest),
                "highest": json_number(each.highest),
                "num_images": each.num_images,
                **{name: _pair(vars(each)[name]) for name in _CALIBRATED},
            }
            for each in bins
        ],
    }


def _pair(pair: Pair) -> dict[str, float | None]:
    return {"expected": json_number(pair.expected), "observed": json_number(pair.observed)}


def mean(values: Numbers) -> float:
    """The mean; NaN of none."""
    return float(values.mean()) if len(values) else float("nan")


def json_number(value: float) -> float | None:
    """A number for JSON, which knows no NaN: six digits of it, null if it is none."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
