"""Does the bundle's calibration keep its promises on these rows? What it expects in bins against what came."""

from __future__ import annotations

from typing import Any

from distributed.evaluation.rows import Observed
from distributed.evaluation.summary import json_number
from model.calibration import Calibration, Pair, calibration_error, reliability_bins

_QUANTITIES = ("true_loss", "pck", "failure_share")


def summarise_reliability(rows: Observed, calibration: Calibration | None) -> dict[str, Any] | None:
    """The reliability table and the expected calibration error of each quantity; None where nothing is calibrated."""
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
            name: json_number(calibration_error([vars(each)[name] for each in bins], counts)) for name in _QUANTITIES
        },
        "bins": [
            {
                "lowest": json_number(each.lowest),
                "highest": json_number(each.highest),
                "num_images": each.num_images,
                **{name: _pair(vars(each)[name]) for name in _QUANTITIES},
            }
            for each in bins
        ],
    }


def _pair(pair: Pair) -> dict[str, float | None]:
    return {"expected": json_number(pair.expected), "observed": json_number(pair.observed)}
