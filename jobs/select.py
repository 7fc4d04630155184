"""`lossight select`: scores tables into a budgeted selection."""

from __future__ import annotations

import sys
from typing import Any

from distributed.selection.options import SelectOptions
from jobs.console import counts, say
from jobs.run import DONE, run_job


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(SelectOptions, _select, arguments, command="select")


def _select(options: SelectOptions) -> int:
    record = select(options)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {options.out}")
    say(f"{record['num_selected']} selected of {record['num_scored']} scored: {counts(record['num_by_reason'])}")
    for line in _remarks(options, record):
        say(line)
    return DONE


def _remarks(options: SelectOptions, record: dict[str, Any]) -> list[str]:
    """Remarks that a reader of the selection needs."""
    lines = warnings(record)
    if record["num_eligible"] is not None:
        lines.append(f"the budget is {options.budget} of {record['num_eligible']} that could be: {record['budget']}")
    if record["expected_failures"] is not None:
        lines.append(expectation(record))
    if record.get("num_passed_over"):
        near = f"within {options.min_gap:g} s of a better one of their group"
        lines.append(f"passed over: {record['num_passed_over']} images {near} (--min-gap)")
    if record["num_selected"] < record["budget"]:
        left = f"leave no more than {record['num_selected']}"
        lines.append(f"the budget is {record['budget']}: caps, gaps, exclusions, conditions and the pool {left}")
    if record["num_uncommitted_parts"]:
        lines.append(f"not read: {record['num_uncommitted_parts']} files of scores that no finished run has published")
    return lines


def warnings(record: dict[str, Any]) -> list[str]:
    """Doubts about the bundle behind a record; records of earlier versions have none."""
    return [f"warning: {line}" for line in record.get("warnings") or ()]


def expectation(record: dict[str, Any]) -> str:
    """The calibration's expectation of a selection in words; empty for a record that lacks it."""
    return (
        f"about {record['expected_failures']:.0f} are expected below PCK {record['failure_pck']:g}; "
        f"a random draw of as many would hold {record['expected_failures_at_random']:.0f}"
    )


def select(options: SelectOptions) -> dict[str, Any]:
    """Selects as configured; returns the run's record."""
    from distributed.selection.select import select_samples

    return select_samples(
        options.scores,
        out=options.out,
        options=options,
        allow_mixed=options.allow_mixed,
        config=options.resolved(),
        workers=_join_cluster(options),
    )


def _join_cluster(options: SelectOptions) -> int:
    """Number of workers that read; joins the cluster if there are any."""
    if options.workers == 0 or (options.workers is None and options.address is None):
        return 0
    from distributed.cluster.connection import connect
    from distributed.cluster.resources import room_for

    connect(options.address)
    return options.workers or room_for(cpus=1, gpus=0)


if __name__ == "__main__":
    sys.exit(main())
