"""Night after night: scored, selected from, compared with the nights before, handed on, published.

OUT/config.json      the pool that this triage is of
OUT/history.parquet  one row a night
OUT/selections/DATE  what each night selected; never changed once committed, and excluded from what comes later
OUT/nights/DATE      config.json, files.json, scores-BUNDLE, report.html, export/KIND; run.json, last

Each step leaves something whole or nothing, and is passed over where what it leaves is there: so a triage that was
killed anywhere goes on. `nights` knows what belongs to a night, `scoring` and `selection` do the work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from distributed.nightly.drift import DriftOptions, Finding, Slices, judge
from distributed.nightly.handoff import hand_on
from distributed.nightly.history import read_history, record_night
from distributed.nightly.nights import FILES_FILE, Night, Nights, dates_below, find_nights, freeze_night
from distributed.nightly.retention import SCORES_PREFIX, drop_old_scores
from distributed.nightly.slices import sketch_slices
from distributed.nightly.summary import history_row, night_record
from distributed.runs.lease import Lease, hold
from distributed.runs.progress import Progress
from distributed.runs.record import (
    RUN_FILE,
    begin_run,
    check_run,
    publish_run,
    read_run,
    replace_config,
    unfinished_folders,
)
from distributed.scoring.pipeline import WorkOptions
from distributed.scoring.score import check_apart, score_pool
from distributed.selection.select import select_samples
from distributed.selection.strategies import SelectionOptions, check_options
from distributed.storage.bundles import read_bundle, read_bundle_id
from distributed.storage.location import Location, delete_files, list_files, locate
from distributed.tables.manifest import UnusablePoolError
from distributed.tables.sketch import Sketch
from model.errors import InputError, StoppedError

_HISTORY, _NIGHTS, _SELECTIONS = "history.parquet", "nights", "selections"
_THREADS = 16

_log = logging.getLogger("lossight")


@dataclass(frozen=True, kw_only=True)
class TriageOptions:
    """What is triaged, and how."""

    pool: str
    model: str
    out: str
    work: WorkOptions  # of scoring; its metadata includes the columns that drift is looked for in
    selection: SelectionOptions  # of each night; earlier selections of this triage are excluded besides
    drift: DriftOptions = field(default_factory=DriftOptions)
    first_night: datetime.date = datetime.date.min  # what is older is not looked at
    late_days: int = 30  # for so long after a night its late files are looked for
    keep_days: int | None = None  # for so long scores are kept; None: for ever
    with_report: bool = True
    exports: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)  # resolved, as it is kept beside each night
    score_config: dict[str, Any] = field(default_factory=dict)  # the same as of `lossight score`
    select_config: dict[str, Any] = field(default_factory=dict)  # and of `lossight select`


def _never() -> bool:
    return False


def triage_nights(
    options: TriageOptions,
    *,
    until: datetime.date | None,
    today: datetime.date,
    progress: Progress,
    should_stop: Callable[[], bool] = _never,
) -> Iterator[dict[str, Any]]:
    """Records (run.json) of the nights that were not published yet, in order of their dates, each as it is published.

    With nothing left to do, the record of the night of `until`, or else of the newest, with `was_done`. A night of
    which nothing can be read is passed over and tried again next time; that is raised after the others are done.

    Args:
        options: what, and how.
        until: the last night that is looked at; None: the newest that the pool has; where files have no folders of
            dates, the newest that is over.
        today: the date in UTC.
        progress: told of every batch.
        should_stop: asked all the time; once it says yes, what is begun is finished and kept.

    Raises:
        InputError: an option makes no sense, or pool, bundle, output or an excluded table cannot be used.
        LeaseError: another triage of this output is at work.
        StoppedError: `should_stop` said yes; the same call goes on.
        RunFailedError: storage or compute failed; the same call goes on.
    """
    check_options(options.selection)
    pool, out = locate(options.pool), locate(options.out)
    check_apart(pool, out)
    for uri in options.selection.exclude:
        if not locate(uri).exists:
            raise InputError(f"{uri}: expected a table whose ids to exclude, found nothing")
    read_bundle(locate(options.model))  # to refuse a bad one before anything is written
    nights = find_nights(pool)
    last = until or (today - datetime.timedelta(days=1) if nights.is_by_time else datetime.date.max)
    dates = [date for date in nights.dates if options.first_night <= date <= last]
    if not dates:
        return
    inputs = {"kind": "triage", "pool": f"{pool.filesystem.type_name}://{pool.path}"}
    check_run(out, {}, inputs=inputs)
    with hold(out) as lease:
        begin_run(out, {}, inputs=inputs)
        triage = _Triage(options=options, pool=pool, out=out, lease=lease, progress=progress)
        yield from _triage_all(triage, nights, dates, should_stop=should_stop, wanted=until)


@dataclass(frozen=True, kw_only=True)
class _Triage:
    """A triage at work."""

    options: TriageOptions
    pool: Location
    out: Location
    lease: Lease
    progress: Progress

    @property
    def nights(self) -> Location:
        return self.out.join(_NIGHTS)

    @property
    def selections(self) -> Location:
        return self.out.join(_SELECTIONS)

    @property
    def history(self) -> Location:
        return self.out.join(_HISTORY)


def _triage_all(
    triage: _Triage,
    nights: Nights,
    dates: Sequence[datetime.date],
    *,
    should_stop: Callable[[], bool],
    wanted: datetime.date | None,
) -> Iterator[dict[str, Any]]:
    published, failures, is_any_new = _published(triage.nights, dates), list[UnusablePoolError](), False
    for date in (date for date in dates if date not in published):
        if should_stop():
            raise StoppedError(f"{triage.out.uri}: stopped before the night {date}; what is done is kept")
        night = freeze_night(triage.nights, date, nights, since=_first_with_late_files(date, triage.options))
        if night is None:
            continue
        try:
            record = _triage_night(triage, night, should_stop=should_stop)
        except UnusablePoolError as error:
            delete_files(triage.nights, [f"{date}/{FILES_FILE}"])  # what is repaired or added belongs to it
            failures.append(error)
            continue
        published.append(date)
        is_any_new = True
        yield record
    if published:
        drop_old_scores(triage.nights, published, newest=max(published), keep_days=triage.options.keep_days)
    if failures:
        raise failures[0]
    done = [date for date in published if wanted in (None, date)]
    if done and not is_any_new:
        yield {**read_run(triage.nights.join(max(done).isoformat()), expected="night"), "was_done": True}


def _first_with_late_files(date: datetime.date, options: TriageOptions) -> datetime.date:
    num_days = min(options.late_days, date.toordinal() - 1)  # a folder may be named 0001-01-01
    return max(date - datetime.timedelta(days=num_days), options.first_night)


def _published(nights: Location, dates: Sequence[datetime.date]) -> list[datetime.date]:
    """Which of the dates are published."""
    begun = set(dates_below(nights)).intersection(dates)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="nights") as threads:
        records = threads.map(lambda date: nights.join(date.isoformat(), RUN_FILE).stat(), sorted(begun))
        return [date for date, record in zip(sorted(begun), records, strict=True) if record]


def _triage_night(triage: _Triage, night: Night, *, should_stop: Callable[[], bool]) -> dict[str, Any]:
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
        selection = _select(triage, chosen, scored)
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
        with_report=options.with_report and selection is not None,
        exports=options.exports if selection and selection["num_selected"] else (),
        progress=triage.progress,
    )
    record = {
        **night_record(night, scores=scores, selection=selection),
        **made,
        "drift": [{**dataclasses.asdict(each), "words": str(each)} for each in findings],
        "scores": f"{_NIGHTS}/{date}/{scored.path[len(place.path) + 1 :]}",
        "selection": f"{_SELECTIONS}/{date}" if selection else None,
        "seconds": round(time.monotonic() - started, 3),
    }
    triage.lease.check()
    return publish_run(place, record)


def _score(triage: _Triage, night: Night, place: Location, *, should_stop: Callable[[], bool]) -> dict[str, Any]:
    options = triage.options
    bundle_id = read_bundle_id(locate(options.model))  # now: a new one may have come since the last night
    scored = _scored(place, bundle_id)
    replace_config(place, options.config, inputs={"bundle_id": bundle_id})
    scores = score_pool(
        options.pool,
        model=options.model,
        out=scored.uri,
        options=options.work,
        config={**options.score_config, "out": scored.uri},
        progress=triage.progress,
        files=night.files,
        should_stop=should_stop,
    )
    if scores["bundle_id"] != bundle_id:
        raise InputError(f"{options.model}: expected the bundle {bundle_id} that the night began with, found another")
    return scores


def _scored(place: Location, bundle_id: str) -> Location:
    """Where the scores of a night by a bundle are: what another one began stays apart."""
    return place.join(SCORES_PREFIX + bundle_id)


def _select(triage: _Triage, chosen: Location, scored: Location) -> dict[str, Any]:
    triage.lease.check()
    options, selections = triage.options, triage.selections
    is_first = not _drop_unfinished(selections)
    exclude = (*options.selection.exclude, *([] if is_first else [selections.uri]))
    changed = {"scores": [scored.uri], "out": chosen.uri, "exclude": list(exclude)}
    return select_samples(
        scored.uri,
        out=chosen.uri,
        options=dataclasses.replace(options.selection, exclude=exclude),
        config={**options.select_config, **changed},
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


def _compare(triage: _Triage, night: Night, scored: Location, scores: dict[str, Any]) -> tuple[Slices, list[Finding]]:
    """The losses of the night, all and by the columns that are watched, and what is to be said of each."""
    options = triage.options.drift
    slices: Slices = {(None, None): Sketch(scores["num_scored"], tuple(scores["loss_quantiles"]))}
    slices |= sketch_slices(scored, scores["parts"], options.columns)
    rows = [row for row in read_history(triage.history) if row["night"] < night.date]
    before = [row for row in rows if row["bundle_id"] == scores["bundle_id"]]
    findings = judge(slices, before[-options.num_nights :], options)
    for finding in findings:
        if finding.is_drifted:
            _log.warning("%s: drift: %s", night.date, finding)
    return slices, findings
