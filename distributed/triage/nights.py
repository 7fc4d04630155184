"""The nights of a pool: the files of each, frozen as a list when the night begins. Knows nothing of scores.

In a pool with `date=YYYY-MM-DD/` folders a file belongs to the night of its folder; in any other, to the day (UTC) on
which it was written. A night holds its own files and the late ones: files of earlier nights that began without them. So
each version of a file is in exactly one night, unless it could not be read whole: then it is late in the next one.
"""

from __future__ import annotations

import datetime
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from distributed.runs.record import RUN_FILE, read_run, unfinished_folders
from distributed.storage.location import (
    Location,
    StoredFile,
    list_files,
    list_names,
    list_times,
    read_versioned,
    write_if,
)
from distributed.storage.threads import ask_at_once
from model.errors import InputError
from model.json_text import parse_json

FILES_FILE = "files.json"
_PARTITION = "date="
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

_log = logging.getLogger("lossight")


@dataclass(frozen=True, kw_only=True)
class Nights:
    """All nights of a pool, and a look at the files of each as they are now."""

    pool: Location
    dates: tuple[datetime.date, ...]  # ascending
    files: Callable[[datetime.date], list[StoredFile]]


@dataclass(frozen=True, kw_only=True)
class Night:
    """The files of one night, frozen."""

    date: datetime.date
    files: tuple[StoredFile, ...]
    late: tuple[str, ...]  # paths below the pool, among these, that belong to earlier nights
    left: dict[str, str]  # late files that are not among these, left for the next night, and why
    lost: frozenset[str] = frozenset()  # paths below the pool, among these, that the published night could not read

    def read_files(self, pool: Location) -> list[StoredFile]:
        """The files that are not lost."""
        return [file for file, path in zip(self.files, _below(pool, self.files), strict=True) if path not in self.lost]


def find_nights(pool: Location) -> Nights:
    """The nights of a pool.

    Raises:
        InputError: nothing is there.
    """
    folders, names = list_names(pool)
    partitions = {name: _date(name.removeprefix(_PARTITION)) for name in folders if name.startswith(_PARTITION)}
    if not partitions:
        return _by_time(pool)
    for name in (name for name, date in partitions.items() if date is None):
        _log.warning("%s: not looked at: expected a folder date=YYYY-MM-DD", pool.join(name).uri)
    if any(name.endswith(".parquet") for name in names):
        _log.warning("%s: files beside its date=… folders are not looked at", pool.uri)
    dates = sorted(date for date in partitions.values() if date is not None)
    return Nights(pool=pool, dates=tuple(dates), files=partial(_list_partition, pool))


def freeze_night(
    place: Location, date: datetime.date, nights: Nights, *, since: datetime.date, left: str = ""
) -> Night | None:
    """The night of a date. The first call decides its files, for ever; None if there are none yet.

    Args:
        place: the folder that has a folder for each night.
        date: of the night.
        nights: of the pool.
        since: nights before this one are not searched for late files.
        left: the reason to leave late files for the next night; empty: they are taken.
    """
    frozen = place.join(date.isoformat(), FILES_FILE)
    found = _read_night(frozen, date, nights.pool)
    if found is not None:
        return found
    begun = _begun_nights(place, nights.pool)
    known = {file for night in begun for file in night.read_files(nights.pool)}
    own = [file for file in nights.files(date) if file not in known]
    if not own:
        return None
    begun_dates = {night.date for night in begun}
    earlier = [each for each in nights.dates if since <= each < date and each in begun_dates]
    listed = ask_at_once(nights.pool, nights.files, earlier)
    late = [file for files in listed for file in files if file not in known]
    taken = [] if left else late
    reasons = dict.fromkeys(_below(nights.pool, late), left) if left else {}
    write_if(frozen, _dump(sorted([*own, *taken]), taken, reasons, nights.pool), version=None)
    return _read_night(frozen, date, nights.pool)


def _date(name: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(name) if _DATE.fullmatch(name) else None
    except ValueError:
        return None


def _list_partition(pool: Location, date: datetime.date) -> list[StoredFile]:
    try:
        return _finished(list_files(pool.join(f"{_PARTITION}{date}"), suffix=""))
    except InputError:  # the folder was removed meanwhile
        return []


def _finished(stored: Sequence[StoredFile]) -> list[StoredFile]:
    """The Parquet files, without those of an unfinished ingest, which come with a later triage."""
    unfinished = tuple(f"{folder}/" for folder in unfinished_folders(stored))
    if unfinished:
        _log.warning("%s: an ingest is not finished: its files wait", ", ".join(unfinished))
    return [file for file in stored if file.path.endswith(".parquet") and not file.path.startswith(unfinished)]


def _by_time(pool: Location) -> Nights:
    times = list_times(pool)
    by_date: dict[datetime.date, list[StoredFile]] = defaultdict(list)
    for file in _finished(list_files(pool, suffix="")):
        if file.path in times:  # else it has come this moment
            by_date[times[file.path].date()].append(file)
    return Nights(pool=pool, dates=tuple(sorted(by_date)), files=lambda date: by_date.get(date, []))


def _begun_nights(place: Location, pool: Location) -> list[Night]:
    found = ask_at_once(place, partial(_read_begun, place, pool), dates_below(place))
    return [night for night in found if night is not None]


def _read_begun(place: Location, pool: Location, date: datetime.date) -> Night | None:
    folder = place.join(date.isoformat())
    night = _read_night(folder.join(FILES_FILE), date, pool)
    if night is None or not folder.join(RUN_FILE).exists:
        return night
    record = read_run(folder, expected="night")
    return replace(night, lost=frozenset([*record["bad_files"], *record.get("damaged_files", ())]))


def dates_below(place: Location) -> list[datetime.date]:
    """The dates that folders directly below a location are named after, ascending."""
    return sorted(date for name in list_names(place)[0] if (date := _date(name)) is not None)


def _read_night(frozen: Location, date: datetime.date, pool: Location) -> Night | None:
    found = read_versioned(frozen)
    if found is None:
        return None
    try:
        values = parse_json(found[0])
        files = [StoredFile(f"{pool.path}/{path}", int(size), version) for path, size, version in values["files"]]
        return Night(date=date, files=tuple(files), late=tuple(values["late"]), left=dict(values.get("left", {})))
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{frozen.uri}: expected the files of a night, found something else") from None


def _dump(files: Sequence[StoredFile], late: Sequence[StoredFile], left: dict[str, str], pool: Location) -> bytes:
    values = {
        "files": [[path, file.size, file.version] for path, file in zip(_below(pool, files), files, strict=True)],
        "late": sorted(_below(pool, late)),
        "left": left,
    }
    return json.dumps(values, indent=1).encode() + b"\n"


def _below(pool: Location, files: Sequence[StoredFile]) -> list[str]:
    """The paths of files below the pool."""
    return [file.path[len(pool.path) + 1 :] for file in files]
