"""Which selection a user means by a run: the selection itself, or the night of a triage that made it."""

from __future__ import annotations

from typing import NamedTuple

from distributed.runs.record import RUN_FILE
from distributed.storage.location import Location, locate
from model.errors import InputError

_HISTORY_FILE = "history.parquet"
_SELECTION = "selection.parquet"


class Run(NamedTuple):
    """What a report is made from."""

    selection: str
    history: str | None


def find_run(uri: str) -> Run:
    """The selection of a run and, of a triage, its history.

    A triage keeps its nights below OUT/nights, their selections below OUT/selections, and OUT/history.parquet.

    Raises:
        InputError: there is no selection.
    """
    run = locate(uri)
    night = run.path.rpartition("/")[2]
    for selection in (run, run.join("selection"), _beside(run, "selections", night)):
        if selection.join(_SELECTION).exists:
            history = _beside(selection, _HISTORY_FILE)
            return Run(selection.uri, history.uri if history.exists else None)
    found = "nothing" if not run.exists else "a run of another kind" if run.join(RUN_FILE).exists else "something else"
    raise InputError(f"{uri}: expected a selection, or a night of triage, found {found}")


def _beside(location: Location, *names: str) -> Location:
    """Below the folder above a location's own."""
    place = location.parent.parent if location.uri.strip("/").count("/") else locate(location.path).parent.parent
    return place.join(*names)
