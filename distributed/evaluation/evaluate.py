"""Evaluation of a bundle on labelled rows: how good its poses are, and how well its predicted loss finds bad ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distributed.evaluation.options import EvaluateOptions
from distributed.evaluation.plot import draw_evaluation
from distributed.evaluation.review import compare_arms
from distributed.evaluation.rows import evaluate_rows, observed
from distributed.evaluation.slices import slice_columns, summarise_slices
from distributed.evaluation.summary import summarise, summarise_reliability
from distributed.ingest.returned import count_returned, find_returned
from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, check_run, publish_run, read_run, run_version
from distributed.schema import SELECTION
from distributed.selection.select import fingerprint, read_selection
from distributed.storage.bundles import read_bundle, read_description
from distributed.storage.champion import find_bundle
from distributed.storage.location import Location, locate, write_bytes
from distributed.tables.labelled import freeze_labelled
from distributed.tables.references import find_root
from model.errors import InputError

if TYPE_CHECKING:
    from model.calibration import Calibration

PLOT_FILE = "evaluation.png"


def evaluate(options: EvaluateOptions, *, progress: Progress = silent) -> dict[str, Any]:
    """The metrics of a bundle on a labelled table, of its slices, and of a selection from it: see docs/evaluation.md.

    If the options have `out`, they are published there, and a plot of them beside.

    Raises:
        InputError: table, bundle, selection, a column or the output cannot be used.
    """
    model = find_bundle(options.model)
    described = read_description(model)
    described.check_usable(views=options.views)
    manifest = freeze_labelled(
        locate(options.labelled), skeleton=described.spec.skeleton, image_root=find_root(options.image_root)
    )
    columns = slice_columns(manifest, options.slices)
    selected = read_selection(locate(options.selection)) if options.selection else None
    target = locate(options.out) if options.out else None
    identity = {
        "selection_fingerprint": fingerprint(SELECTION.empty_table() if selected is None else selected),
        "bundle_id": described.bundle_id,
        "labelled_fingerprint": manifest.fingerprint,
        "views": options.views,
    }
    if target:
        check_run(target, options.resolved(), inputs=identity, ignored=options.undecisive())
        if run_version(target):  # before PyTorch is imported
            return {**read_run(target, expected="evaluation"), "was_done": True}
    from model.predictor import check_device

    check_device(options.device)
    bundle = read_bundle(model)
    if bundle.bundle_id != described.bundle_id:
        raise InputError(
            f"{options.model}: expected the bundle {described.bundle_id} that was here at first, "
            f"found {bundle.bundle_id}"
        )
    if target:
        begin_run(target, options.resolved(), inputs=identity, ignored=options.undecisive())
    evaluated = evaluate_rows(
        bundle,
        manifest,
        batch_size=options.batch_size,
        device=options.device,
        decode_threads=options.decode_threads,
        views=options.views,
        progress=progress,
    )
    metrics = {
        "kind": "evaluation",
        **identity,
        "bad_files": {file.path: file.reason for file in manifest.bad_files},
        "is_training_data": bundle.training.get("labelled_fingerprint") == manifest.fingerprint,
        "is_validation_data": bundle.training.get("validation_fingerprint") == manifest.fingerprint,
        **summarise(evaluated, spec=bundle.spec),
        **summarise_slices(observed(evaluated), manifest, columns=columns),
        "reliability": summarise_reliability(observed(evaluated), bundle.calibration),
        "plot": None,
    }
    if selected is not None:
        metrics["selection"] = compare_arms(evaluated, selected, calibration=bundle.calibration)
        returned = find_returned(locate(options.labelled), selection_fingerprint=fingerprint(selected))
        if returned is not None:
            metrics["selection"].update(count_returned(returned))
    return _publish(target, metrics, evaluated, bundle.calibration) if target else metrics


def _publish(
    target: Location, metrics: dict[str, Any], evaluated: pa.Table, calibration: Calibration | None
) -> dict[str, Any]:
    if metrics["num_judged"]:
        write_bytes(target.join(PLOT_FILE), draw_evaluation(metrics, observed(evaluated), calibration))
        metrics = {**metrics, "plot": PLOT_FILE}
    return publish_run(target, metrics)
