"""What a night hands to people and to labelling tools once its selection is committed: a report, and exports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distributed.reporting.export import export_selection
from distributed.reporting.options import ExportKind, ExportOptions
from distributed.reporting.report import write_report
from distributed.runs.progress import Progress
from distributed.storage.location import Location
from model.errors import InputError

REPORT_FILE = "report.html"
_EXPORTS = "export"


def hand_on(
    selection: Location,
    *,
    place: Location,
    pool: str,
    history: str,
    with_report: bool,
    exports: Sequence[ExportKind],
    progress: Progress,
) -> dict[str, Any]:
    """Writes what was asked for below a night's place; what was written, for its record. Doing it again is harmless.

    What can't be made of these inputs is among `handoff_errors`, with the reason: the selection is good without it.
    """
    made: dict[str, Any] = {"report": None, "exports": {}, "exports_missing": {}, "handoff_errors": {}}
    if with_report:
        try:
            out = place.join(REPORT_FILE)
            write_report(selection.uri, out=out.uri, history=history, progress=progress)
            made["report"] = out.absolute_uri
        except InputError as error:
            made["handoff_errors"]["report"] = str(error)
    for kind in exports:
        out = place.join(_EXPORTS, kind)
        try:
            options = ExportOptions(kind=kind, selection=selection.uri, pool=pool, out=out.uri)
            record = export_selection(options, progress=progress)
        except InputError as error:
            made["handoff_errors"][kind] = str(error)
            continue
        made["exports"][kind] = out.absolute_uri
        if record["num_missing"]:
            made["exports_missing"][kind] = record["num_missing"]
    return made
