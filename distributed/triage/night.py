"""One night of a triage: scored, selected from, compared with the nights before, handed on, published.

Each step leaves something whole or nothing, and is skipped if its result is there already: a night that was killed
anywhere goes on. `scoring` and `selection` do the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.reporting.export import export_selection
from distributed.reporting.options import ExportOptions
from distributed.reporting.report import write_report
from distributed.runs.lease import Lease
from distributed.runs.progress import Progress
from distributed.runs.record import RUN_FILE, publish_run, read_inputs, read_run, replace_config, unfinished_folders
from distributed.schema import SCORES
from distributed.scoring.options import ScoreOptions
from distributed.scoring.score import score_pool
from distributed.selection.filters import condition_columns
from distributed.selection.options import SelectOptions
from distributed.selection.select import select_samples
from distributed.storage.bundles import read_bundle_id
from distributed.storage.champion import find_bundle, read_champion
from distributed.storage.location import Location, delete_files, list_files, locate
from distributed.tables.history import HISTORY_FILE, nights_before, read_history, record_night
from distributed.tables.sketch import Sketch
from distributed.triage.drift import NUM_NIGHTS, Drift, Slices, judge, sketch_slices
from distributed.triage.nights import Night
from distributed.triage.options import TriageOptions
from model.errors import InputError

SCORES_PREFIX = "scores-"
REPORT_FILE = "report.html"
# What the night's record takes from those of its scores, which may be removed one day, and of its selection.
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
    "num_passed_over",
    "num_by_reason",
    "num_excluded_ids",
    "failure_pck",
    "expected_failures",
    "expected_failures_at_random",
    "warnings",
)

Record = dict[str, Any]  # a run.json

_log = logging.getLogger("lossight")


@dataclass(frozen=True, kw_only=True)
class Triage:
    """A triage at work."""

    options: TriageOptions
    pool: Location
    out: Location
    lease: Lease
    progress: Progress

    @property
    def nights(self) -> Location:
        """The folder with a folder for each night."""
        return self.out.join("nights")

    @property
    def selections(self) -> Location:
        """The folder with a folder for each night's selection."""
        return self.out.join("selections")

    @property
    def history(self) -> Location:
        """The table with a row for each night."""
        return self.out.join(HISTORY_FILE)


def triage_night(triage: Triage, night: Night, *, should_stop: Callable[[], bool]) -> Record:
    """Does the remaining steps of a night and publishes it; returns its record (run.json).

    Raises:
        UnusablePoolError: not one row of it can be read, or a sample_id is null, no text or there twice.
        InputError, LeaseError, StoppedError, RunFailedError: as `triage_nights`.
    """
    started = time.monotonic()
    date = night.date.isoformat()
    place, chosen = triage.nights.join(date), triage.selections.join(date)
    selection = read_run(chosen, expected="selection") if chosen.join(RUN_FILE).exists else None
    if selection:  # committed: the scores it was made of are the night's, whatever bundle there is now
        scores = read_run(_scored(place, selection["bundle_id"]), expected="scores")
    else:
        scores = _score(triage, night, place, should_stop=should_stop)
    scored = _scored(place, scores["bundle_id"])
    if not selection and scores["num_scored"]:
        selection = _select(triage, night, chosen, scored)
    slices, drift = _compare(triage, night, scored, scores)
    triage.lease.check()
    record_night(triage.history, _history_row(night, scores, selection, slices, drift))
    made = _hand_on(triage, place, chosen, selection)
    record = {
        "kind": "night",
        "night": date,
        "triage": triage.out.absolute_uri,
        "scores": scored.absolute_uri,
        "selection": chosen.absolute_uri if selection else None,
        "num_files": len(night.files),
        "late_files": list(night.late),
        "late_files_left": night.left,
        **{key: scores[key] for key in _OF_SCORES if key in scores},
        **{key: selection.get(key) if selection else None for key in _OF_SELECTION},
        **made,
        "drift": [{**dataclasses.asdict(each), "words": str(each)} for each in drift],
        "seconds": round(time.monotonic() - started, 3),
    }
    triage.lease.check()
    return publish_run(place, record)


def _score(triage: Triage, night: Night, place: Location, *, should_stop: Callable[[], bool]) -> Record:
    options = triage.options
    bundle, bundle_id = _choose_bundle(options.model, place)
    scored = _scored(place, bundle_id)
    replace_config(place, options.resolved(), inputs={"bundle_id": bundle_id, "bundle": bundle.absolute_uri})
    scoring = options.part(
        ScoreOptions,
        out=scored.uri,
        metadata=kept_columns(options),
        embeddings=options.embeddings or options.reads_embeddings,
    )
    scores = score_pool(
        scoring.pool,
        model=bundle.uri,
        out=scoring.out,
        options=scoring,
        config=scoring.resolved(),
        progress=triage.progress,
        files=night.files,
        should_stop=should_stop,
    )
    if scores["bundle_id"] != bundle_id:
        raise InputError(f"{options.model}: expected the bundle {bundle_id} that the night began with, found another")
    return scores


def _choose_bundle(model: str, place: Location) -> tuple[Location, str]:
    """The bundle of a night, and its id: what lies there, or is pointed to, now; it may have changed since last night.

    A night that has begun keeps the one that a pointer named then.
    """
    begun = read_inputs(place)
    if read_champion(locate(model)) and "bundle" in begun:
        bundle = locate(begun["bundle"])
        with contextlib.suppress(InputError):  # it may be gone
            if read_bundle_id(bundle) == begun["bundle_id"]:
                return bundle, begun["bundle_id"]
        _log.warning("%s: the bundle %s that the night began with is gone", place.uri, begun["bundle_id"])
    bundle = find_bundle(model)
    return bundle, read_bundle_id(bundle)


def kept_columns(options: TriageOptions) -> tuple[str, ...]:
    """The columns that the scores keep: those asked for, and those that drift and the condition look at.

    Raises:
        InputError: the condition is none.
    """
    asked = (*options.metadata, *options.drift_columns, *(condition_columns(options.where) if options.where else ()))
    return tuple(dict.fromkeys(name for name in asked if name not in SCORES.names))


def _scored(place: Location, bundle_id: str) -> Location:
    """The place of a night's scores by a bundle; those that another bundle began stay apart."""
    return place.join(SCORES_PREFIX + bundle_id)


def _select(triage: Triage, night: Night, chosen: Location, scored: Location) -> Record:
    triage.lease.check()
    options, selections = triage.options, triage.selections
    is_first = not _drop_unfinished(selections)
    exclude = (*options.exclude, *([] if is_first else [selections.uri]))
    selecting = options.part(SelectOptions, scores=scored.uri, out=chosen.uri, exclude=exclude)
    return select_samples(
        scored.uri,
        out=chosen.uri,
        options=selecting,
        config=selecting.resolved(),
        night={"night": night.date.isoformat(), "triage": triage.out.absolute_uri},
        check=triage.lease.check,
    )


def _drop_unfinished(selections: Location) -> int:
    """Removes selections that killed runs did not commit; returns how many files of committed ones remain.

    Nobody has seen them, and they can't be continued: the rows to exclude may have changed since.
    """
    files = []
    with contextlib.suppress(InputError):  # nothing there yet
        files = list_files(selections, suffix="")
    unfinished = tuple(f"{folder}/" for folder in unfinished_folders(files))
    dropped = [file.path for file in files if file.path.startswith(unfinished)]
    delete_files(selections, [path[len(selections.path) + 1 :] for path in dropped])
    return len(files) - len(dropped)


def _compare(triage: Triage, night: Night, scored: Location, scores: Record) -> tuple[Slices, list[Drift]]:
    """The losses of the night, of all rows and by the columns that are watched, and the drift of each."""
    options = triage.options
    slices: Slices = {(None, None): Sketch(scores["num_scored"], tuple(scores["loss_quantiles"]))}
    slices |= sketch_slices(scored, scores["parts"], options.drift_columns)
    before = nights_before(read_history(triage.history), night.date, bundle_id=scores["bundle_id"])
    found = judge(slices, before[-NUM_NIGHTS:], options)
    for drift in found:
        if drift.is_drifted:
            _log.warning("%s: drift: %s", night.date, drift)
    return slices, found


def _history_row(
    night: Night, scores: Record, selection: Record | None, slices: Slices, drift: Sequence[Drift]
) -> Record:
    """The night in `schema.HISTORY`. All rows are the first slice; the row has their losses by themselves."""
    return {
        "night": night.date,
        "bundle_id": scores["bundle_id"],
        "num_files": len(night.files),
        "num_late_files": len(night.late),
        "num_bad_files": len(scores["bad_files"]),
        **{name: scores[name] for name in ("num_rows", "num_scored", "error_rate", "images_per_second")},
        "num_selected": selection["num_selected"] if selection else 0,
        "loss_quantiles": scores["loss_quantiles"],
        "slices": [
            {"column": column, "value": value, "num_scored": each.num_values, "loss_quantiles": list(each.quantiles)}
            for (column, value), each in slices.items()
            if column is not None
        ],
        "psi": drift[0].psi,
        "ks": drift[0].ks,
        "drift": [str(each) for each in drift if each.is_drifted],
    }


def _hand_on(triage: Triage, place: Location, chosen: Location, selection: Record | None) -> Record:
    """Writes the report and the exports of a committed selection; for the night's record, what came of it.

    What can't be made is among `handoff_errors`, with the reason: the selection is good without it. Doing it again is
    harmless.
    """
    options = triage.options
    made: Record = {"report": None, "exports": {}, "exports_missing": {}, "handoff_errors": {}}
    if options.report and selection:
        out = place.join(REPORT_FILE)
        try:
            write_report(chosen.uri, out=out.uri, history=triage.history.uri, progress=triage.progress)
            made["report"] = out.absolute_uri
        except InputError as error:
            made["handoff_errors"]["report"] = str(error)
    for kind in options.exports if selection and selection["num_selected"] else ():
        out = place.join("export", kind)
        try:
            export = ExportOptions(kind=kind, selection=chosen.uri, pool=options.pool, out=out.uri)
            record = export_selection(export, progress=triage.progress)
        except InputError as error:
            made["handoff_errors"][kind] = str(error)
            continue
        made["exports"][kind] = out.absolute_uri
        if record["num_missing"]:
            made["exports_missing"][kind] = record["num_missing"]
    return made
