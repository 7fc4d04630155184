"""A selection whose labels are known: its failures against those of random rows, and its slices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.evaluation.rows import distances_of, evaluate_rows
from distributed.evaluation.slices import values_of
from distributed.evaluation.summary import json_number, summarise
from distributed.ingest.returned import CONTROL
from distributed.runs.progress import Progress, silent
from distributed.selection.select import read_selection
from distributed.selection.topk import top_k
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.tables.reader import read_file
from model.calibration import FAILURE_PCK, Calibration
from model.errors import InputError
from model.metrics import PCK_THRESHOLD

_RESAMPLES = 2000
_NORMAL = 1.96  # standard deviations of 95 %


def compare_arms(evaluated: pa.Table, selected: pa.Table, *, calibration: Calibration | None = None) -> dict[str, Any]:
    """The two arms of a selection: rows that the model selected, against random rows. Rows with errors are in neither.

    Selected rows without labels are in neither arm: `num_not_labelled`. The random rows are the selection's own control
    arm (reason 'control'). If it has none, as many rows are drawn from all evaluated ones, selected rows among them;
    `random_arm` says 'control' or 'drawn', or 'none' where all evaluated rows were selected, so that no draw is random.

    A failure is an image with less than half of its judged keypoints right; `lift` is the share of failures of the
    selected rows ÷ that of the random ones. `lift_interval` and `pck_difference_interval` (selected − random; negative:
    failures were found) are 95 % bootstrap intervals, each arm resampled by itself. `expected_failures_*` is the share
    that the calibration expects, and `calibration_holds_*` says whether chance explains its distance from what was
    found. Numbers of an arm without judged images, and an open end of an interval, are null.

    Args:
        evaluated: see `evaluate_rows`.
        selected: the selection.
        calibration: of the bundle that evaluated; None: it has none.

    Raises:
        InputError: no selected id is among the evaluated rows.
    """
    is_control = pc.fill_null(pc.equal(selected["reason"], CONTROL), False)
    by_model, control = (_rows_of(evaluated, selected.filter(mask)) for mask in (pc.invert(is_control), is_control))
    num_found = len(by_model) + len(control)
    if len(selected) and not num_found:
        raise InputError(
            f"--selection: expected some of its {len(selected)} ids in the labelled table, found none: its labels are "
            "not back, or came back without ids"
        )
    arm = "control" if pc.any(is_control).as_py() else "drawn" if len(evaluated) > num_found else "none"
    random = {"control": control, "drawn": top_k(evaluated, k=len(by_model), seed=0), "none": evaluated.slice(0, 0)}[
        arm
    ]
    rows = {
        name: each.filter(pc.is_null(each["error"]))
        for name, each in {"selected": by_model, "random": random, "all": evaluated}.items()
    }
    hits = {name: _hits_of(each) for name, each in rows.items()}
    failures = {name: _failure_share(counts) for name, counts in hits.items()}
    pcks = {name: _ratio(counts.sum(axis=0)) for name, counts in hits.items()}
    differences, lifts = _resampled(hits["selected"], hits["random"])
    return {
        "num_selected": len(by_model),
        "num_random": len(random),
        "num_not_labelled": len(selected) - num_found,
        "random_arm": arm,
        **{f"pck_{name}": json_number(value) for name, value in pcks.items()},
        **{f"failures_{name}": json_number(value) for name, value in failures.items()},
        "lift": json_number(_ratio(np.array([failures["selected"], failures["random"]]))),
        "lift_interval": _interval(lifts),
        "pck_difference": json_number(pcks["selected"] - pcks["random"]),
        "pck_difference_interval": _interval(differences),
        **{key: value for name in ("selected", "random") for key, value in _calibrated(rows[name], name, calibration)},
    }


def _rows_of(evaluated: pa.Table, selected: pa.Table) -> pa.Table:
    return evaluated.filter(pc.is_in(evaluated["sample_id"], value_set=selected["sample_id"].combine_chunks()))


def _counts_of(evaluated: pa.Table) -> np.ndarray:
    """(N, 2) keypoints within the threshold, and keypoints that count."""
    distances = distances_of(evaluated)
    return np.stack([(distances <= PCK_THRESHOLD).sum(axis=1), (~np.isnan(distances)).sum(axis=1)], axis=1)


def _hits_of(evaluated: pa.Table) -> np.ndarray:
    """The counts of rows where any keypoint counts."""
    counts = _counts_of(evaluated)
    return counts[counts[:, 1] > 0]


def _failure_share(hits: np.ndarray) -> float:
    return float(np.mean(hits[:, 0] < FAILURE_PCK * hits[:, 1])) if len(hits) else float("nan")


def _ratio(parts: np.ndarray) -> float:
    return float(parts[0] / parts[1]) if parts[1] else float("nan")


def _calibrated(evaluated: pa.Table, arm: str, calibration: Calibration | None) -> Iterator[tuple[str, Any]]:
    """Share of failures that the calibration expects of an arm, and whether what was found is within chance of it."""
    expected: float | None = None
    holds: bool | None = None
    counts = _counts_of(evaluated)
    is_judged = counts[:, 1] > 0
    if calibration is not None and is_judged.any():
        losses = np.asarray(evaluated["predicted_loss"].to_numpy(), np.float64)[is_judged]
        chances = calibration.failure_probability(losses)
        found = int((counts[is_judged, 0] < FAILURE_PCK * counts[is_judged, 1]).sum())
        # A sum of independent draws; half a count for being a whole number.
        spread = _NORMAL * float(np.sqrt((chances * (1 - chances)).sum())) + 0.5
        expected = json_number(float(chances.mean()))
        holds = bool(abs(found - chances.sum()) <= spread)
    yield f"expected_failures_{arm}", expected
    yield f"calibration_holds_{arm}", holds


def _resampled(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(_RESAMPLES,) differences of two arms' PCK, and lifts, rows resampled; none if an arm is empty.

    Rows of equal counts are one kind, of which there are few: how often each kind is drawn is multinomial.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    if not len(first) or not len(second):
        return np.empty(0), np.empty(0)
    rng = np.random.default_rng(0)
    pcks, shares = [], []
    for hits in (first, second):
        kinds, numbers = np.unique(hits, axis=0, return_counts=True)
        drawn = rng.multinomial(len(hits), numbers / len(hits), size=_RESAMPLES)
        right, judged = (drawn @ kinds).T
        pcks.append(right / judged)
        shares.append(drawn @ (kinds[:, 0] < FAILURE_PCK * kinds[:, 1]) / len(hits))
    with np.errstate(divide="ignore", invalid="ignore"):
        return pcks[0] - pcks[1], shares[0] / shares[1]


def _interval(values: np.ndarray) -> list[float | None]:
    """The 95 % percentile interval; a lift over no failures is infinite, and over as few as none is left out."""
    known = values[~np.isnan(values)]
    if not len(known):
        return [None, None]
    # Sorted rather than interpolated: half way to infinity is no number.
    low, high = np.quantile(known, [0.025, 0.975], method="nearest")
    return [json_number(float(low)), json_number(float(high))]


def review_selection(*, truth: str, model: str, selection: str, progress: Progress = silent) -> dict[str, Any]:
    """Metrics of a selection whose labels are known.

    Args:
        truth: location of a labelled table that holds the pool's rows; its `slices` column (lists of strings) names the
            difficulties of a row.
        model: location of the bundle that scored.
        selection: location of the selection.
        progress: told of every batch.

    Returns:
        `summarise` and `compare_arms` in one, and `slices`: each slice's share of the pool and of the selection.
    """
    bundle = read_bundle(locate(model))
    manifest = freeze_labelled(locate(truth), skeleton=bundle.spec.skeleton)
    selected = read_selection(locate(selection))
    evaluated = evaluate_rows(bundle, manifest, progress=progress)
    columns = ["sample_id", "slices"]
    rows = pa.concat_tables([rows for file in manifest.files for rows in read_file(manifest, file, columns=columns)])
    return {
        **summarise(evaluated, spec=bundle.spec),
        **compare_arms(evaluated, selected),
        "slices": _slice_shares(rows, selected),
    }


def _slice_shares(rows: pa.Table, selected: pa.Table) -> dict[str, dict[str, float]]:
    """Share of each slice in the pool and in the selection."""
    is_selected = np.asarray(pc.is_in(rows["sample_id"], value_set=selected["sample_id"].combine_chunks()))
    found = values_of(rows["slices"])
    is_in_both = is_selected[found.rows]
    shares = {}
    for name in sorted(found.names):
        is_own = found.codes == found.names.index(name)
        shares[name] = {
            "pool": float(is_own.sum() / max(1, len(rows))),
            "selection": float((is_own & is_in_both).sum() / max(1, is_selected.sum())),
        }
    return shares
