"""What is kept of a night: its row of the history, and its own record. Scores may be removed one day; these stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.nightly.drift import Finding, Slices
from distributed.nightly.nights import Night

_OF_SCORES = (
    "bundle_id",
    "pool_fingerprint",
    "num_rows",
    "num_scored",
    "errors",
    "error_examples",
    "error_rate",
    "bad_files",
    "damaged_files",
    "loss_quantiles",
    "stage_seconds",
    "images_per_second",
)
_OF_SELECTION = (
    "budget",
    "num_selected",
    "num_by_reason",
    "num_excluded_ids",
    "failure_pck",
    "expected_failures",
    "expected_failures_at_random",
)

Record = dict[str, Any]


def history_row(
    night: Night, *, scores: Record, selection: Record | None, slices: Slices, findings: Sequence[Finding]
) -> Record:
    """The night in `schema.HISTORY`.

    Args:
        night: what it held.
        scores: record of its scores.
        selection: record of its selection; None where nothing could be scored.
        slices: its losses; all rows first, which the row has by themselves.
        findings: about the slices, in their order.
    """
    return {
        "night": night.date,
        "bundle_id": scores["bundle_id"],
        "num_files": len(night.files),
        "num_late_files": night.num_late,
        "num_bad_files": len(scores["bad_files"]),
        "num_rows": scores["num_rows"],
        "num_scored": scores["num_scored"],
        "error_rate": scores["error_rate"],
        "num_selected": selection["num_selected"] if selection else 0,
        "images_per_second": scores["images_per_second"],
        "loss_quantiles": scores["loss_quantiles"],
        "slices": [
            {"column": column, "value": value, "num_scored": each.num_values, "loss_quantiles": list(each.quantiles)}
            for (column, value), each in slices.items()
            if column is not None
        ],
        "psi": findings[0].psi,
        "ks": findings[0].ks,
        "drift": [str(finding) for finding in findings if finding.is_drifted],
    }


def night_record(night: Night, *, scores: Record, selection: Record | None) -> Record:
    """The night for its run.json: what it held, and of the two records what will be asked for."""
    return {
        "kind": "night",
        "night": night.date.isoformat(),
        "num_files": len(night.files),
        "late_files": list(night.late),
        "late_files_left": night.left,
        **{key: scores[key] for key in _OF_SCORES if key in scores},
        **{key: selection.get(key) if selection else None for key in _OF_SELECTION},
    }
