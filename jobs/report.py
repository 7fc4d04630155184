"""`lossight report`: a selection as one HTML file."""

from __future__ import annotations

import sys

from distributed.reporting.options import ReportOptions
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DONE, run_job

_POSES = {
    "scores": "as the scores kept them",
    "predicted": "predicted again by the bundle",
    "none": "none: the bundle that made the scores is gone",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(ReportOptions, _report, arguments, command="report")


def _report(options: ReportOptions) -> int:
    from distributed.reporting.origin import find_selection
    from distributed.reporting.report import write_report

    with ConsoleProgress() as progress:
        record = write_report(
            find_selection(options.run),
            out=options.out or f"{options.run.rstrip('/')}/report.html",
            history=options.history,
            evaluation=options.evaluation,
            progress=progress,
        )
    say(f"wrote: {record['report']}, {record['num_bytes'] / 1e6:.1f} MB")
    say(
        f"{record['num_pictures']} of {record['num_selected']} selected images have a picture, "
        f"{record['num_poses']} a pose; poses: {_POSES[record['poses']]}"
    )
    if record["num_missing"]:
        say(f"not in the pool as they were scored: {record['num_missing']}: {counts(record['missing'])}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
