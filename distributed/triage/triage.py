"""Triage: the new nights of a pool, one after another, in one output that one triage at a time writes.

OUT/config.json      the pool that this triage is of
OUT/history.parquet  one row a night
OUT/selections/DATE  what each night selected; never changed once committed, and excluded from what comes later
OUT/nights/DATE      config.json, files.json, scores-BUNDLE, report.html, export/KIND; run.json, last

`nights` knows which files belong to a night, `night` does its steps.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from distributed.runs.lease import hold
from distributed.runs.progress import Progress
from distributed.runs.record import CONFIG_FILE, RUN_FILE, begin_run, check_run, read_run
from distributed.scoring.score import check_apart
from distributed.storage.bundles import read_description
from distributed.storage.champion import find_bundle
from distributed.storage.location import Location, delete_files, delete_folders, locate
from distributed.storage.threads import ask_at_once
from distributed.tables.manifest import UnusablePoolError
from distributed.triage.night import SCORES_PREFIX, Triage, kept_columns, triage_night
from distributed.triage.nights import FILES_FILE, Nights, dates_below, find_nights, freeze_night
from distributed.triage.options import TriageOptions
from model.errors import InputError, StoppedError


def _never() -> bool:
    return False


def triage_nights(
    options: TriageOptions,
    *,
    today: datetime.date,
    progress: Progress,
    should_stop: Callable[[], bool] = _never,
) -> Iterator[dict[str, Any]]:
    """Records (run.json) of the nights that were not published yet, in order of their dates, each as it is published.

    The record of the night of `options.date`, by default of the newest night, comes last, with `was_done` if it was
    published already. A night of which nothing can be read is passed over and tried again next time; its error is
    raised after the other nights are done. If late files are the reason, the night goes on without them, and they are
    left for the next.

    Args:
        options: inputs, output and options.
        today: the date in UTC; what a wrong clock dated later waits.
        progress: told of every batch.
        should_stop: asked often; once it returns True, work that has begun is finished and kept.

    Raises:
        InputError: an option makes no sense, or pool, bundle, output or an excluded table cannot be used.
        LeaseError: another triage of this output is at work.
        StoppedError: `should_stop` said yes; the same call goes on.
        RunFailedError: storage or compute failed; the same call goes on.
    """
    pool, out = locate(options.pool), locate(options.out)
    check_apart(pool, out)
    kept_columns(options)  # a bad condition ends the run before anything is written
    for uri in options.exclude:
        if not locate(uri).exists:
            raise InputError(f"{uri}: expected a table whose ids to exclude, found nothing")
    read_description(find_bundle(options.model))  # to refuse a bad one before anything is written
    nights = find_nights(pool)
    last = options.date or today - datetime.timedelta(days=1)
    dates = [date for date in nights.dates if options.since <= date <= last]
    if not dates:
        return
    inputs = {"kind": "triage", "pool": f"{pool.filesystem.type_name}://{pool.path}"}
    check_run(out, {}, inputs=inputs)
    with hold(out) as lease:
        begin_run(out, {}, inputs=inputs)
        triage = Triage(options=options, pool=pool, out=out, lease=lease, progress=progress)
        yield from _triage_all(triage, nights, dates, today=today, should_stop=lease.ends(should_stop))


def _triage_all(
    triage: Triage,
    nights: Nights,
    dates: Sequence[datetime.date],
    *,
    today: datetime.date,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    published, failures, new = _published(triage.nights, dates), list[UnusablePoolError](), list[datetime.date]()
    for date in (date for date in dates if date not in published):
        if should_stop():
            raise StoppedError(f"{triage.out.uri}: stopped before the night {date}; what is done is kept")
        try:
            record = _triage_next(triage, nights, date, should_stop=should_stop)
        except UnusablePoolError as error:
            failures.append(error)
            continue
        if record is None:
            continue
        published.append(date)
        new.append(date)
        yield record
    if triage.options.keep_days is not None:
        everything = _published(triage.nights, dates_below(triage.nights))  # the pool may have lost their folders
        drop_old_scores(triage.nights, everything, today=today, keep_days=triage.options.keep_days)
    if failures:
        raise failures[0]
    done = [date for date in published if triage.options.date in (None, date)]
    if done and max(done) not in new:
        yield {**read_run(triage.nights.join(max(done).isoformat()), expected="night"), "was_done": True}


def _triage_next(
    triage: Triage, nights: Nights, date: datetime.date, *, should_stop: Callable[[], bool]
) -> dict[str, Any] | None:
    """The record of a night; None if it has no files. Goes on without its late files if they make it unusable.

    Raises:
        UnusablePoolError: its own files are unusable too. Its list and its
            bundle are dropped: files repaired or added belong to it.
    """
    since = _first_with_late_files(date, triage.options)
    night = freeze_night(triage.nights, date, nights, since=since)
    if night is None:
        return None
    try:
        try:
            return triage_night(triage, night, should_stop=should_stop)
        except UnusablePoolError as error:
            if not night.late:
                raise
            delete_files(triage.nights, [f"{date}/{FILES_FILE}"])
            night = freeze_night(triage.nights, date, nights, since=since, left=str(error))
            return triage_night(triage, night, should_stop=should_stop) if night else None
    except UnusablePoolError:
        delete_files(triage.nights, [f"{date}/{FILES_FILE}", f"{date}/{CONFIG_FILE}"])
        raise


def _first_with_late_files(date: datetime.date, options: TriageOptions) -> datetime.date:
    num_days = min(options.late_days, date.toordinal() - 1)  # a folder may be named 0001-01-01
    return max(date - datetime.timedelta(days=num_days), options.since)


def _published(nights: Location, dates: Sequence[datetime.date]) -> list[datetime.date]:
    """Dates whose nights are published."""
    begun = sorted(set(dates_below(nights)).intersection(dates))
    records = ask_at_once(nights, lambda date: nights.join(date.isoformat(), RUN_FILE).stat(), begun)
    return [date for date, record in zip(begun, records, strict=True) if record]


def drop_old_scores(
    place: Location, published: Sequence[datetime.date], *, today: datetime.date, keep_days: int
) -> None:
    """Removes the scores, and nothing else, of published nights more than `keep_days` days older than the newest.

    The age of a night is that of its date, even if it was caught up late. The clock is asked only so that a night of
    the future makes no other old.
    """
    oldest = min([today, max(published, default=today)]) - datetime.timedelta(days=keep_days)
    old = [place.join(date.isoformat()) for date in published if date < oldest]
    ask_at_once(place, partial(delete_folders, prefix=SCORES_PREFIX), old)
