"""Origin of a selection: the scores that it was chosen from, their pool, and the bundle that scored them.

Records name all of them by absolute URIs, so a report can be made from any folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from distributed.runs.record import RUN_FILE, read_config, read_run
from distributed.selection.select import SELECTION_FILE, fingerprint, read_selection
from distributed.storage.bundles import read_bundle, read_description
from distributed.storage.location import Location, locate, read_versioned
from distributed.storage.threads import ask_at_once
from distributed.tables.history import HISTORY_FILE
from distributed.tables.scores_reader import ReadablePart, read_parts
from model.calibration import Calibration, read_calibration
from model.description import BundleDescription
from model.errors import InputError
from model.json_text import parse_json

if TYPE_CHECKING:
    from model.bundle import Bundle

_MANIFEST_FILE = "manifest.json"
_NIGHTS, _SELECTIONS = "nights", "selections"  # below a triage
EVALUATION = "evaluation"  # below a night: of its selection, once the labels are back

_log = logging.getLogger("lossight")


@dataclass(frozen=True, kw_only=True)
class ScoredTable:
    """A published scores table that a selection was made from."""

    location: Location
    record: dict[str, Any]
    config: dict[str, Any]
    pool: Location
    image_root: Location | None  # that references of the pool are below; None: its own folder
    model: Location

    @cached_property
    def footers(self) -> dict[str, str]:
        """Hash of each pool file's footer when it was scored, by file; empty where no manifest is left."""
        found = read_versioned(self.location.join(_MANIFEST_FILE))
        try:
            return {file["path"]: file["footer"] for file in parse_json(found[0])["files"]} if found else {}
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
        """Id of the bundle that made the scores; of several, all."""
        return str(self.record["bundle_id"])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the selected ids, by rank."""
        return fingerprint(self.selected)

    @cached_property
    def described(self) -> BundleDescription | None:
        """The bundle that made the scores; None where it is gone, another lies in its place, or there were several."""
        try:
            found = read_description(self.tables[0].model)
        except InputError:
            return None
        return found if found.bundle_id == self.bundle_id else None

    def load_bundle(self) -> Bundle | None:
        """The same with its network."""
        return read_bundle(self.tables[0].model) if self.described else None

    @cached_property
    def triage(self) -> dict[str, Any] | None:
        """Options of the triage that made this selection, and the date of its night; None if none did."""
        if self.night is None:
            return None
        try:
            return {**read_config(self.night), "date": self.record["night"]}
        except InputError:
            return None

    @property
    def history(self) -> Location | None:
        """History table of that triage; None without one."""
        place = locate(self.record["triage"]).join(HISTORY_FILE) if "triage" in self.record else None
        return place if place and place.exists else None

    @property
    def night(self) -> Location | None:
        """The night of triage that made this selection; None if none did."""
        return locate(self.record["triage"]).join(_NIGHTS, self.record["night"]) if "triage" in self.record else None

    def read_parts(self) -> list[ReadablePart]:
        """The parts of all scores, their footers read.

        Raises:
            InputError: a part is damaged.
            RunFailedError: the store failed.
        """
        return read_parts([(table.location, table.record) for table in self.tables])

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the bundle, if one made all scores and has been calibrated."""
        if len({table.record["bundle_id"] for table in self.tables}) > 1:
            return None
        return read_calibration(self.tables[0].record.get("calibration"))


def read_origin(uri: str) -> Origin:
    """The selection at a location, and what it was made from.

    Raises:
        InputError: there is no published selection, or the scores that its record names are gone.
    """
    location = locate(uri)
    record, config = read_run(location, expected="selection"), read_config(location)
    if "scores" not in record:
        raise InputError(
            f"{uri}: expected a record that names the scores, found one of an earlier version: select into a new --out"
        )
    tables = tuple(_read_table(locate(name)) for name in record["scores"])
    return Origin(location=location, record=record, config=config, selected=read_selection(location), tables=tables)


def _read_table(location: Location) -> ScoredTable:
    record = read_run(location, expected="scores")
    if not {"pool", "model"} <= record.keys():
        raise InputError(
            f"{location.uri}: expected a record that names pool and model, found one of an earlier version: "
            "score into a new --out"
        )
    pool, model = locate(record["pool"]), locate(record["model"])
    root = record.get("image_root")
    return ScoredTable(
        location=location,
        record=record,
        config=record["config"],
        pool=pool,
        image_root=root and locate(root),
        model=model,
    )


def read_evaluation(place: Location, *, fingerprint: str) -> dict[str, Any]:
    """The record of an evaluation of the selection with this fingerprint.

    Raises:
        InputError: there is none, or it is one of something else.
    """
    record = read_run(place, expected="evaluation")
    if record.get("selection_fingerprint") != fingerprint or "selection" not in record:
        raise InputError(f"{place.uri}: expected an evaluation of this selection, found one of something else")
    return record


def read_nights(triage: Location, dates: Sequence[str]) -> list[dict[str, Any] | None]:
    """The published evaluations of the selections of some nights, in their order; None where there is none."""

    def read(date: str) -> dict[str, Any] | None:
        place = triage.join(_NIGHTS, date, EVALUATION)
        try:
            if place.join(RUN_FILE).exists:
                selected = read_selection(triage.join(_SELECTIONS, date))
                return read_evaluation(place, fingerprint=fingerprint(selected))
        except InputError as error:
            _log.warning("%s", error)
        return None

    return ask_at_once(triage, read, dates)


def find_selection(uri: str) -> str:
    """The selection that a user means by a location: a selection, a folder with one in it, or a night of triage.

    Raises:
        InputError: it is none of these, or a night that selected nothing.
    """
    run = locate(uri)
    for place in (run, run.join("selection")):
        if place.join(SELECTION_FILE).exists:
            return place.uri
    try:
        selection = read_run(run, expected="night")["selection"]
    except InputError as error:
        found = (
            "nothing" if not run.exists else "a run of another kind" if run.join(RUN_FILE).exists else "something else"
        )
        raise InputError(f"{uri}: expected a selection, or a night of triage, found {found}") from error
    if selection is None:
        raise InputError(f"{uri}: expected a night with a selection, found one without: no row was scored")
    return str(selection)
