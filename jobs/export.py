"""`lossight export`: a selection for a labelling tool."""

from __future__ import annotations

import sys

from distributed.reporting.options import ExportOptions
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DEGRADED, DONE, run_job

_POSES = {"scores": "kept by the scores", "predicted": "predicted again by the bundle", "none": "none"}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(ExportOptions, _export, arguments, command="export")


def _export(options: ExportOptions) -> int:
    from distributed.reporting.export import export_selection

    with ConsoleProgress() as progress:
        record = export_selection(options, progress=progress)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {options.out}")
    say(f"{record['num_exported']} of {record['num_selected']} selected images; poses: {_POSES[record['poses']]}")
    if record["num_missing"]:
        say(f"degraded: left out {record['num_missing']}: {counts(record['missing'])}")
        return DEGRADED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
