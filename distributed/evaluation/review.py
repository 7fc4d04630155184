"""A selection whose labels are known: its failures against those of random rows, and its slices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.evaluation.rows import distances_of, evaluate_rows
from distributed.evaluation.slices import values_of
from distributed.evaluation.summary import json_number, summarise
from distributed.runs.progress import Progress, silent
from distributed.selection.select import read_selection
from distributed.selection.topk import top_k
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.tables.reader import read_file
from model.calibration import FAILURE_PCK
from model.errors import InputError
from model.metrics import PCK_THRESHOLD

_RESAMPLES = 2000


def compare_arms(evaluated: pa.Table, selected: pa.Table) -> dict[str, Any]:
    """The two arms of a selection: rows that the model selected, against random rows. Rows with errors are in neither.

    The random rows are the selection's own control arm (reason 'control'). If it has none, as many rows are drawn from
    all evaluated ones, selected rows among them; `random_arm` says 'control' or 'drawn'. A failure is an image with
    less than half of its judged keypoints right; `lift` is the share of failures of the selected rows ÷ that of the
    random ones. `pck_difference` (selected − random; negative: failures were found) has a 95 % bootstrap interval, each
    arm resampled by itself. Numbers of an arm without judged images are null.

    Raises:
        InputError: a selected id is not among the evaluated rows.
    """
    is_selected = pc.is_in(evaluated["sample_id"], value_set=selected["sample_id"].combine_chunks())
    if (num_found := pc.sum(is_selected).as_py() or 0) != len(selected):
        raise InputError(f"--selection: expected its {len(selected)} ids in the labelled table, found {num_found}")
    is_control = pc.fill_null(pc.equal(selected["reason"], "control"), False)
    by_model, control = selected.filter(pc.invert(is_control)), selected.filter(is_control)
    has_control = bool(len(control))
    random = _rows_of(evaluated, control) if has_control else top_k(evaluated, k=len(by_model), seed=0)
    arms = {"selected": _rows_of(evaluated, by_model), "random": random, "all": evaluated}
    hits = {name: _hits_of(rows.filter(pc.is_null(rows["error"]))) for name, rows in arms.items()}
    failures = {name: _failure_share(counts) for name, counts in hits.items()}
    pcks = {name: _ratio(counts.sum(axis=0)) for name, counts in hits.items()}
    low, high = _difference_interval(hits["selected"], hits["random"])
    return {
        "num_selected": len(by_model),
        "num_random": len(random),
        "random_arm": "control" if has_control else "drawn",
        **{f"pck_{name}": json_number(value) for name, value in pcks.items()},
        **{f"failures_{name}": json_number(value) for name, value in failures.items()},
        "lift": json_number(_ratio(np.array([failures["selected"], failures["random"]]))),
        "pck_difference": json_number(pcks["selected"] - pcks["random"]),
        "pck_difference_interval": [json_number(low), json_number(high)],
    }


def _rows_of(evaluated: pa.Table, selected: pa.Table) -> pa.Table:
    return evaluated.filter(pc.is_in(evaluated["sample_id"], value_set=selected["sample_id"].combine_chunks()))


def _hits_of(evaluated: pa.Table) -> np.ndarray:
    """(N, 2) keypoints within the threshold, and keypoints that count, of rows where any counts."""
    distances = distances_of(evaluated)
    counts = np.stack([(distances <= PCK_THRESHOLD).sum(axis=1), (~np.isnan(distances)).sum(axis=1)], axis=1)
    return counts[counts[:, 1] > 0]


def _failure_share(hits: np.ndarray) -> float:
    return float(np.mean(hits[:, 0] < FAILURE_PCK * hits[:, 1])) if len(hits) else float("nan")


def _ratio(parts: np.ndarray) -> float:
    return float(parts[0] / parts[1]) if parts[1] else float("nan")


def _difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two arms' PCK, rows resampled; NaN if an arm is empty.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    if not len(first) or not len(second):
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    differences = _resampled_pck(first, rng) - _resampled_pck(second, rng)
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def _resampled_pck(hits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(_RESAMPLES,) PCK of as many rows, drawn with replacement.

    Rows of equal counts are one kind, of which there are few: how often each kind is drawn is multinomial.
    """
    kinds, numbers = np.unique(hits, axis=0, return_counts=True)
    right, judged = (rng.multinomial(len(hits), numbers / len(hits), size=_RESAMPLES) @ kinds).T
    return right / judged


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
