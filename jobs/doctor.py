"""`lossight doctor`: checks this machine, a cluster and a store, and says what to fix."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distributed.options import PLACE, WHAT, Options
from jobs.console import say, show_table
from jobs.run import DONE, FAILED, run_job

if TYPE_CHECKING:
    from distributed.doctor.machine import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


class DoctorOptions(Options):
    """Checks this machine; a cluster and a store too where they are named. Exit code 3 if a check failed."""

    storage: Annotated[str | None, PLACE] = Field(
        None, description="a path or an s3:// URI that runs shall write to; left as it was"
    )
    address: Annotated[str | None, WHAT] = Field(None, description="the Ray cluster to check")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(DoctorOptions, _doctor, arguments, command="doctor")


def _doctor(options: DoctorOptions) -> int:
    from distributed.doctor.machine import check_cluster, check_machine
    from distributed.doctor.probe import check_storage
    from distributed.storage.location import locate

    if options.storage is not None:
        locate(options.storage)  # a URI that can't be is said before anything else
    findings: list[Finding] = _show("this machine", check_machine())
    if options.address is not None:
        findings += _show(f"cluster {options.address}", check_cluster(options.address))
    if options.storage is not None:
        findings += _show(f"storage {options.storage}", check_storage(options.storage))
    return FAILED if any(finding.state == "failed" for finding in findings) else DONE


def _show(title: str, findings: Iterable[Finding]) -> list[Finding]:
    """Shows the findings as a table, and below it a line for each that needs one; returns them."""
    shown = list(findings)
    rows = [[finding.name, finding.state, finding.found if finding.state == "ok" else "see below"] for finding in shown]
    show_table(title, ["check", "state", "found"], rows, styles=_STYLES)
    for finding in shown:
        if finding.state != "ok":
            say(f"{finding.state}: {finding.name}: {finding.found}; to fix: {finding.fix}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
