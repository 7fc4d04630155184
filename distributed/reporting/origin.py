"""Where a selection came from: the scores that it was chosen from, their pool, and the bundle that scored them."""

from __future__ import annotations

import hashlib
import json
import posixpath
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa

from distributed.runs.record import RUN_FILE, read_config, read_run
from distributed.selection.select import read_selection
from distributed.storage.bundles import read_bundle
from distributed.storage.location import Location, locate, read_versioned
from model.bundle import Bundle
from model.calibration import Calibration, read_calibration
from model.errors import InputError

_MANIFEST_FILE = "manifest.json"
_NIGHTS = "nights"  # of a triage, whose scores lie below
_HISTORY_FILE = "history.parquet"
_SELECTION = "selection.parquet"


@dataclass(frozen=True, kw_only=True)
class ScoredTable:
    """A published scores table that a selection was made from."""

    location: Location
    record: dict[str, Any]
    config: dict[str, Any]
    pool: Location
    model: Location

    @property
    def parts(self) -> list[Location]:
        """The files that hold the scores."""
        return [self.location.join(*path.split("/")) for path in self.record["parts"]]

    @cached_property
    def footers(self) -> dict[str, str]:
        """By pool file, the hash of the footer that it had when it was scored; empty where no manifest is left."""
        found = read_versioned(self.location.join(_MANIFEST_FILE))
        try:
            return {file["path"]: file["footer"] for file in json.loads(found[0])["files"]} if found else {}
        except (KeyError, TypeError, ValueError):
            return {}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A published selection and what it was made from."""

    location: Location
    record: dict[str, Any]
    config: dict[str, Any]
    selected: pa.Table  # by rank
    tables: tuple[ScoredTable, ...]

    @property
    def bundle_id(self) -> str:
        """Of the bundle that made the scores; of several, all."""
        return str(self.record["bundle_id"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the selected ids, by rank."""
        return hashlib.sha256("\n".join(self.selected["sample_id"].to_pylist()).encode()).hexdigest()[:16]

    @cached_property
    def bundle(self) -> Bundle | None:
        """The bundle that made the scores; None where it is gone, another lies in its place, or there were several."""
        try:
            bundle = read_bundle(self.tables[0].model)
        except InputError:
            return None
        return bundle if bundle.bundle_id == self.bundle_id else None

    @cached_property
    def night(self) -> dict[str, Any] | None:
        """The options of the triage that made this selection, the date of its night among them; None if none did."""
        place = self.tables[0].location.parent
        above, _, date = place.path.rpartition("/")
        if above.rpartition("/")[2] != _NIGHTS or self.location.path.rpartition("/")[2] != date:
            return None
        try:
            return {**read_config(place), "date": date}
        except InputError:
            return None

    @property
    def calibration(self) -> Calibration | None:
        """What the predicted losses mean, if one bundle made them and knows."""
        if len({table.record["bundle_id"] for table in self.tables}) > 1:
            return None
        return read_calibration(self.tables[0].record.get("calibration"))


def read_origin(uri: str) -> Origin:
    """The selection at a location, and what it was made from.

    Raises:
        InputError: there is no published selection, or the scores that its configuration names are gone.
    """
    location = locate(uri)
    record, config = read_run(location, expected="selection"), read_config(location)
    scores = config.get("scores")
    names = [scores] if isinstance(scores, str) else scores
    if not names:
        raise InputError(f"{uri}: expected the scores that it was made from in its config.json, found none named")
    tables = tuple(_read_table(resolve(name, config, location)) for name in names)
    return Origin(location=location, record=record, config=config, selected=read_selection(location), tables=tables)


def _read_table(location: Location) -> ScoredTable:
    record = read_run(location, expected="scores")
    config = record.get("config") or read_config(location)
    for key in ("pool", "model"):
        if not config.get(key):
            raise InputError(f"{location.uri}: expected the {key} in its configuration, found none named")
    pool, model = (resolve(config[key], config, location) for key in ("pool", "model"))
    return ScoredTable(location=location, record=record, config=config, pool=pool, model=model)


def resolve(name: str, config: dict[str, Any], found: Location) -> Location:
    """What a run's configuration names, wherever this process stands.

    A relative path was meant from where the run was started. That folder is known where the run's own `out` was
    relative too: it is what remains of the place where the output was found.
    """
    out = posixpath.normpath(str(config.get("out") or "/"))
    is_relative = "://" not in name and not posixpath.isabs(name)
    if is_relative and found.is_local and not posixpath.isabs(out) and found.path.endswith(f"/{out}"):
        return locate(posixpath.normpath(f"{found.path.removesuffix(out)}{name}"))
    return locate(name)


class ReportSource(NamedTuple):
    """What a report is made from."""

    selection: str
    history: str | None


def find_run(uri: str) -> ReportSource:
    """The selection of a run and, of a triage, its history.

    A triage keeps its nights below OUT/nights, their selections below OUT/selections, and OUT/history.parquet.

    Raises:
        InputError: there is no selection.
    """
    run = locate(uri)
    night = run.path.rpartition("/")[2]
    above = _above(_above(run))
    for selection in (run, run.join("selection"), *([above.join("selections", night)] if above else [])):
        if selection.join(_SELECTION).exists:
            triage = _above(_above(selection))
            history = triage.join(_HISTORY_FILE) if triage else None
            return ReportSource(selection.uri, history.uri if history and history.exists else None)
    found = "nothing" if not run.exists else "a run of another kind" if run.join(RUN_FILE).exists else "something else"
    raise InputError(f"{uri}: expected a selection, or a night of triage, found {found}")


def _above(location: Location | None) -> Location | None:
    """The folder that a location lies in; None above all folders."""
    if location is None or "/" not in location.path.strip("/"):
        return None
    return locate(location.path).parent if location.is_local else location.parent
