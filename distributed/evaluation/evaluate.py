"""How well a bundle does on labelled rows, and how well its predicted loss says where it does badly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.selection.select import read_selection
from distributed.selection.topk import random_k
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.columns import boxes, image_buffers
from distributed.tables.labelled import COLUMNS, freeze_labelled, labels_of
from distributed.tables.manifest import Manifest
from distributed.tables.reader import Bin, plan_bins, read_bin
from distributed.tables.skeletons import check_skeleton
from model.bundle import Bundle
from model.calibration import Calibration, fit_calibration
from model.errors import InputError
from model.metrics import normalised_distances, pck, pck_per_image, pearson, spearman, torso_lengths
from model.pose_model import ModelSpec
from model.predictor import Predictor, check_device

PCK_THRESHOLD = 0.2  # of the torso. Source: the paper, for LSP and LSPET
_HOW = frozenset({"batch_size", "gpus", "decode_threads", "labelled", "model", "selection", "out"})
_FAILED_UNDER = 0.5  # of its judged keypoints right: the image failed
_RESAMPLES = 2000
_WORST_SHARE = 0.1  # of the rows: what a labelling budget might take


def evaluate(
    labelled: str,
    *,
    model: str,
    selection: str | None = None,
    out: str | None = None,
    config: dict[str, Any],
    batch_size: int = 64,
    device: str = "cpu",
    decode_threads: int = 2,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The metrics of a bundle on a labelled table (see `summarise`), and of a selection from it; published if `out`.

    Raises:
        InputError: table, bundle, selection or output cannot be used.
    """
    bundle = read_bundle(locate(model))
    check_skeleton(locate(labelled), bundle.spec.skeleton)
    manifest = freeze_labelled(locate(labelled), expected_keypoints=bundle.spec.skeleton.num_keypoints)
    check_device(device)
    selected = read_selection(locate(selection)) if selection else None
    target = locate(out) if out else None
    ids = b"" if selected is None else "\n".join(selected["sample_id"].to_pylist()).encode()
    identity = {
        "selection_fingerprint": hashlib.sha256(ids).hexdigest()[:16],
        "bundle_id": bundle.bundle_id,
        "labelled_fingerprint": manifest.fingerprint,
    }
    if target and not begin_run(target, config, inputs=identity, ignored=_HOW):
        return {**read_run(target, expected="evaluation"), "was_done": True}
    evaluated = evaluate_rows(
        bundle, manifest, batch_size=batch_size, device=device, decode_threads=decode_threads, progress=progress
    )
    bad_files = {file.path: file.reason for file in manifest.bad_files}
    metrics = {"kind": "evaluation", **identity, "bad_files": bad_files, **summarise(evaluated, spec=bundle.spec)}
    if selected is not None:
        metrics["selection"] = compare_arms(evaluated, selected)
    return publish_run(target, metrics) if target else metrics


def compare_arms(evaluated: pa.Table, selected: pa.Table) -> dict[str, Any]:
    """What the model selected against rows that were drawn at random; rows with an error count in neither.

    The random rows are the selection's own control arm (reason 'control'). Where it has none, a draw of as many rows
    from all evaluated ones stands in, which may hold selected rows too; `random_arm` says which it was: 'control' or
    'drawn'. A failure is an image with less than half of its judged keypoints right; `lift` is the selected rows'
    share of failures ÷ that of the random ones. `pck_difference` (selected − random; negative: failures were found)
    comes with a 95 % bootstrap interval, each arm's rows resampled on their own; the fewer rows, the wider. Numbers
    that an arm is too empty for are null.

    Raises:
        InputError: a selected id is not among the evaluated rows.
    """
    is_selected = pc.is_in(evaluated["sample_id"], value_set=selected["sample_id"].combine_chunks())
    if (num_found := pc.sum(is_selected).as_py() or 0) != len(selected):
        raise InputError(f"--selection: expected its {len(selected)} ids in the labelled table, found {num_found}")
    is_control = pc.fill_null(pc.equal(selected["reason"], "control"), False)
    by_model, control = selected.filter(pc.invert(is_control)), selected.filter(is_control)
    has_control = bool(len(control))
    random = _rows_of(evaluated, control) if has_control else random_k(evaluated, k=len(by_model), seed=0)
    arms = {"selected": _rows_of(evaluated, by_model), "random": random, "all": evaluated}
    hits = {name: _hits_of(rows.filter(pc.is_null(rows["error"]))) for name, rows in arms.items()}
    failures = {name: _failure_share(counts) for name, counts in hits.items()}
    pcks = {name: _ratio(counts.sum(axis=0)) for name, counts in hits.items()}
    low, high = _difference_interval(hits["selected"], hits["random"])
    return {
        "num_selected": len(by_model),
        "num_random": len(random),
        "random_arm": "control" if has_control else "drawn",
        **{f"pck_{name}": _json_number(value) for name, value in pcks.items()},
        **{f"failures_{name}": _json_number(value) for name, value in failures.items()},
        "lift": _json_number(_ratio(np.array([failures["selected"], failures["random"]]))),
        "pck_difference": _json_number(pcks["selected"] - pcks["random"]),
        "pck_difference_interval": [_json_number(low), _json_number(high)],
    }


def _rows_of(evaluated: pa.Table, selected: pa.Table) -> pa.Table:
    return evaluated.filter(pc.is_in(evaluated["sample_id"], value_set=selected["sample_id"].combine_chunks()))


def _hits_of(evaluated: pa.Table) -> np.ndarray:
    """(N, 2) keypoints within the threshold, and keypoints that count, of rows where any counts."""
    distances = distances_of(evaluated)
    counts = np.stack([(distances <= PCK_THRESHOLD).sum(axis=1), (~np.isnan(distances)).sum(axis=1)], axis=1)
    return counts[counts[:, 1] > 0]


def _failure_share(hits: np.ndarray) -> float:
    return float(np.mean(hits[:, 0] < _FAILED_UNDER * hits[:, 1])) if len(hits) else float("nan")


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


def evaluate_rows(
    bundle: Bundle,
    manifest: Manifest,
    *,
    bins: Sequence[Bin] | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    decode_threads: int = 2,
    is_compiled: bool | None = None,
    progress: Progress = silent,
) -> pa.Table:
    """One row for each labelled row: sample_id, predicted_loss, confidence, true_loss, error, distances, keypoints.

    `distances` are those of `normalised_distances`, (K,) in torso lengths, NaN where a keypoint does not count;
    `keypoints` (2K,) are predicted, in image pixels. With `bins`, for each row of these alone. In the calling process,
    without Ray.
    """
    predictor = Predictor(
        bundle, device=device, batch_size=batch_size, decode_threads=decode_threads, is_compiled=is_compiled
    )
    tables: list[pa.Table] = []
    done = 0
    for bin_ in plan_bins(manifest.segments) if bins is None else bins:
        for rows in read_bin(manifest.location, bin_, columns=COLUMNS):
            tables.append(_evaluate(predictor, rows))
            done += len(rows)
            progress("evaluate", done, manifest.num_rows)
    return pa.concat_tables(tables)


def _evaluate(predictor: Predictor, rows: pa.Table) -> pa.Table:
    labels = labels_of(rows)
    found = predictor.predict(image_buffers(rows), boxes(rows), labels=labels)
    is_labelled = labels.visibility > 0
    distances = normalised_distances(
        found.keypoints,
        labels.keypoints,
        is_labelled,
        reference_lengths=torso_lengths(labels.keypoints, is_labelled, predictor.spec.skeleton),
    )
    return pa.table(
        {
            "sample_id": rows["sample_id"],
            "predicted_loss": found.predicted_loss,
            "confidence": found.confidence,
            "true_loss": found.true_loss,
            "error": pa.array(found.errors, pa.string()),
            "distances": _lists(distances.astype(np.float32)),
            "keypoints": _lists(found.keypoints.reshape(len(rows), -1)),
        }
    )


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def distances_of(evaluated: pa.Table) -> np.ndarray:
    """(N, K) normalised distances of evaluated rows."""
    column = evaluated["distances"].combine_chunks()
    return np.asarray(column.flatten(), np.float64).reshape(-1, column.type.list_size)


def pck_of(evaluated: pa.Table) -> float:
    """PCK over all keypoints that count; NaN if there is none."""
    return pck(distances_of(evaluated), threshold=PCK_THRESHOLD)


def calibrate(evaluated: pa.Table) -> Calibration | None:
    """What the predicted loss means, learnt from evaluated rows that the model was not trained on."""
    return fit_calibration(
        np.asarray(evaluated["predicted_loss"], np.float64),
        true_loss=np.asarray(evaluated["true_loss"], np.float64),
        pck=pck_per_image(distances_of(evaluated), threshold=PCK_THRESHOLD),
    )


def summarise(evaluated: pa.Table, *, spec: ModelSpec) -> dict[str, Any]:
    """Counts, PCK, correlation with the true loss and PCK of the worst tenth, by predicted loss and by each baseline.

    `confidence` stands for minus the mean heatmap peak: whatever predicts a loss has to beat it. Random is the mean of
    all rows, by definition; `oracle` knows the true loss. Rows without a score or without a true loss don't enter the
    correlations.
    """
    values = {name: np.asarray(evaluated[name], np.float64) for name in ("predicted_loss", "confidence", "true_loss")}
    known = np.isfinite(values["true_loss"]) & np.isfinite(values["predicted_loss"])
    usable = evaluated.filter(pa.array(known))
    true = values["true_loss"][known]
    rankings = {"predicted_loss": values["predicted_loss"][known], "confidence": -values["confidence"][known]}
    return {
        "num_rows": len(evaluated),
        "num_errors": len(evaluated) - evaluated["error"].null_count,
        "num_evaluated": int(known.sum()),
        "pck_threshold": PCK_THRESHOLD,
        "pck": _json_number(pck_of(usable)),
        "mean_true_loss": _json_number(float(true.mean()) if len(true) else np.nan),
        "spearman": {name: _json_number(spearman(score, true)) for name, score in rankings.items()},
        "pearson": {name: _json_number(pearson(score, true)) for name, score in rankings.items()},
        "worst_share": _WORST_SHARE,
        "pck_of_worst": {
            name: _json_number(_pck_of_worst(usable, score)) for name, score in {**rankings, "oracle": true}.items()
        },
        "keypoints": list(spec.skeleton.keypoint_names),
    }


def _pck_of_worst(usable: pa.Table, score: np.ndarray) -> float:
    count = max(1, round(_WORST_SHARE * len(usable)))
    worst = np.argsort(-score, kind="stable")[:count]
    return pck(distances_of(usable.take(pa.array(worst))), threshold=PCK_THRESHOLD) if len(usable) else float("nan")


def _json_number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
