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
    above = _above(_above(run))
    for selection in (run, run.join("selection"), *([above.join("selections", night)] if above else [])):
        if selection.join(_SELECTION).exists:
            triage = _above(_above(selection))
            history = triage.join(_HISTORY_FILE) if triage else None
            return Run(selection.uri, history.uri if history and history.exists else None)
    found = "nothing" if not run.exists else "a run of another kind" if run.join(RUN_FILE).exists else "something else"
    raise InputError(f"{uri}: expected a selection, or a night of triage, found {found}")


def _above(location: Location | None) -> Location | None:
    """The folder that a location lies in; None above all folders."""
    if location is None or "/" not in location.path.strip("/"):
        return None
    return locate(location.path).parent if location.is_local else location.parent
