"""One night of a triage: scored, selected from, compared with the nights before, handed on, published.

Each step leaves something whole or nothing, and is passed over where what it leaves is there: so a night that was
killed anywhere goes on. `scoring` and `selection` do the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed.nightly.drift import NUM_NIGHTS, Finding, Slices, judge, sketch_slices
from distributed.nightly.handoff import hand_on
from distributed.nightly.nights import Night
from distributed.nightly.options import TriageOptions
from distributed.nightly.retention import SCORES_PREFIX
from distributed.nightly.summary import history_row, night_record
from distributed.runs.lease import Lease
from distributed.runs.progress import Progress
from distributed.runs.record import RUN_FILE, publish_run, read_run, replace_config, unfinished_folders
from distributed.schema import SCORES
from distributed.scoring.options import ScoreOptions
from distributed.scoring.score import score_pool
from distributed.selection.filters import condition_columns
from distributed.selection.options import SelectOptions
from distributed.selection.select import select_samples
from distributed.storage.bundles import read_bundle_id
from distributed.storage.location import Location, delete_files, list_files, locate
from distributed.tables.history import HISTORY_FILE, nights_before, read_history, record_night
from distributed.tables.sketch import Sketch
from model.errors import InputError

_NIGHTS, _SELECTIONS = "nights", "selections"

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
        """Has a folder for each night."""
        return self.out.join(_NIGHTS)

    @property
    def selections(self) -> Location:
        """Has a folder for each night's selection."""
        return self.out.join(_SELECTIONS)

    @property
    def history(self) -> Location:
        """The table with a row for each night."""
        return self.out.join(HISTORY_FILE)


def triage_night(triage: Triage, night: Night, *, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Does what is left to do of a night, and publishes it; returns its record (run.json).

    Raises:
        UnusablePoolError: not one row of it can be read, or its ids are not what ids must be.
        InputError, LeaseError, StoppedError, RunFailedError: as `triage_nights`.
    """
    started = time.monotonic()
    options, date = triage.options, night.date.isoformat()
    place, chosen = triage.nights.join(date), triage.selections.join(date)
    selection = read_run(chosen, expected="selection") if chosen.join(RUN_FILE).exists else None
    if selection:  # committed: what it was made of is what counts
        scores = read_run(_scored(place, selection["bundle_id"]), expected="scores")
    else:
        scores = _score(triage, night, place, should_stop=should_stop)
    scored = _scored(place, scores["bundle_id"])
    if not selection and scores["num_scored"]:
        selection = _select(triage, night, chosen, scored)
    slices, findings = _compare(triage, night, scored, scores)
    triage.lease.check()
    record_night(
        triage.history, history_row(night, scores=scores, selection=selection, slices=slices, findings=findings)
    )
    made = hand_on(
        chosen,
        place=place,
        pool=options.pool,
        history=triage.history.uri,
        with_report=options.report and selection is not None,
        exports=options.exports if selection and selection["num_selected"] else (),
        progress=triage.progress,
    )
    record = {
        **night_record(night, scores=scores, selection=selection),
        **made,
        "drift": [{**dataclasses.asdict(each), "words": str(each)} for each in findings],
        "triage": triage.out.absolute_uri,
        "scores": scored.absolute_uri,
        "selection": chosen.absolute_uri if selection else None,
        "seconds": round(time.monotonic() - started, 3),
    }
    triage.lease.check()
    return publish_run(place, record)


def _score(triage: Triage, night: Night, place: Location, *, should_stop: Callable[[], bool]) -> dict[str, Any]:
    options = triage.options
    bundle_id = read_bundle_id(locate(options.model))  # now: a new one may have come since the last night
    scored = _scored(place, bundle_id)
    replace_config(place, options.resolved(), inputs={"bundle_id": bundle_id})
    scoring = options.part(
        ScoreOptions,
        out=scored.uri,
        metadata=kept_columns(options),
        embeddings=options.embeddings or options.reads_embeddings,
    )
    scores = score_pool(
        scoring.pool,
        model=scoring.model,
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


def kept_columns(options: TriageOptions) -> tuple[str, ...]:
    """The columns that the scores keep: those asked for, and those that drift and the condition look at.

    Raises:
        InputError: the condition is none.
    """
    asked = (*options.metadata, *options.drift_columns, *(condition_columns(options.where) if options.where else ()))
    return tuple(dict.fromkeys(name for name in asked if name not in SCORES.names))


def _scored(place: Location, bundle_id: str) -> Location:
    """Where the scores of a night by a bundle are: what another one began stays apart."""
    return place.join(SCORES_PREFIX + bundle_id)


def _select(triage: Triage, night: Night, chosen: Location, scored: Location) -> dict[str, Any]:
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
    """Removes what killed runs left of selections that they did not commit; returns how many files of others remain.

    Nobody has seen them; and what was to be excluded may have changed since, so they would not be gone on with.
    """
    files = []
    with contextlib.suppress(InputError):  # nothing there yet
        files = list_files(selections, suffix="")
    unfinished = tuple(f"{folder}/" for folder in unfinished_folders(files))
    dropped = [file.path for file in files if file.path.startswith(unfinished)]
    delete_files(selections, [path[len(selections.path) + 1 :] for path in dropped])
    return len(files) - len(dropped)


def _compare(triage: Triage, night: Night, scored: Location, scores: dict[str, Any]) -> tuple[Slices, list[Finding]]:
    """The losses of the night, all and by the columns that are watched, and what is to be said of each."""
    options = triage.options
    slices: Slices = {(None, None): Sketch(scores["num_scored"], tuple(scores["loss_quantiles"]))}
    slices |= sketch_slices(scored, scores["parts"], options.drift_columns)
    before = nights_before(read_history(triage.history), night.date, bundle_id=scores["bundle_id"])
    findings = judge(slices, before[-NUM_NIGHTS:], options)
    for finding in findings:
        if finding.is_drifted:
            _log.warning("%s: drift: %s", night.date, finding)
    return slices, findings
