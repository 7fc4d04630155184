"""`lossight triage`: the nights of a pool that are new, each scored, selected from, compared and handed on."""

from __future__ import annotations

import datetime
import sys
from typing import Any

from distributed.triage.options import TriageOptions
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DEGRADED, DONE, run_job, stopping_in_order
from jobs.score import about_lost_files
from jobs.select import expectation, warnings
from model.errors import InputError

_NUM_LINES = 20  # of details: a morning's log is read by people


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(TriageOptions, _triage, arguments, command="triage")


def _triage(options: TriageOptions) -> int:
    from distributed.doctor.probe import check_reachable
    from distributed.triage.triage import triage_nights

    for uri in (options.pool, options.model, options.out, *options.exclude):
        check_reachable(uri)
    today = _today()
    bars, dates, is_degraded = ConsoleProgress(), [], False

    def tell(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        bars(stage, done, total, num_errors=num_errors, note=note)

    with stopping_in_order() as stop:
        nights = triage_nights(options, today=today, progress=tell, should_stop=stop.is_asked)
        while True:
            with ConsoleProgress() as bars:  # new ones for each night: what is said of it comes after its bars
                record = next(nights, None)
            if record is None:
                break
            dates.append(record["night"])
            lines, is_sound = _report(options, record)
            for line in lines:
                say(line)
            is_degraded |= not is_sound
    wanted = options.date or today - datetime.timedelta(days=1)
    if wanted.isoformat() not in dates:
        _say_missing(options, wanted)
    return DEGRADED if is_degraded else DONE


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _say_missing(options: TriageOptions, wanted: datetime.date) -> None:
    message = f"{options.pool}: no data for the night {wanted}"
    if options.require_data:
        raise InputError(f"{message}, and --require-data is set")
    say(f"{message}: nothing to do")


def _report(options: TriageOptions, record: dict[str, Any]) -> tuple[list[str], bool]:
    """Lines about a night, and True if all is well with it."""
    place = f"{options.out.rstrip('/')}/nights/{record['night']}"
    late, lost = len(record["late_files"]), about_lost_files(record)
    lines = [
        f"{record['night']}: {'already there' if record.get('was_done') else 'wrote'}: {place}",
        f"  {record['num_rows']} rows of {record['num_files']} files{f', {late} of them late' if late else ''}: "
        f"{record['num_scored']} scored, unreadable: {counts(record['errors'])}; "
        f"{record['images_per_second']:.0f} images/s",
        *_about_selection(record),
        *_limited([f"  {line}" for line in lost]),
        *_limited([f"  late file left for the next night: {path}: {why}" for path, why in _left(record).items()]),
    ]
    about_handoff = _about_handoff(record)
    lines += about_handoff
    drifted = [finding["words"] for finding in record["drift"] if finding["is_drifted"]]
    if drifted:  # the log has each
        num_compared = sum(finding["psi"] is not None for finding in record["drift"])
        lines.append(f"  drift: {len(drifted)} of {num_compared} compared; {drifted[0]}")
    is_readable = record["error_rate"] <= options.max_error_rate
    if not is_readable:
        limit = f"--max-error-rate is {options.max_error_rate:.1%}"
        lines.append(f"  degraded: {record['error_rate']:.1%} of the rows have no score, {limit}")
    if lost:
        lines.append("  degraded: these files are late files of the next night")
    is_whole = not _left(record) and not about_handoff and not lost
    return lines, is_readable and is_whole and not (drifted and options.fail_on_drift)


def _about_handoff(record: dict[str, Any]) -> list[str]:
    """Lines about failures after the selection was committed; records of earlier versions have none."""
    return [
        *(f"  {kind} not written: {reason}" for kind, reason in record.get("handoff_errors", {}).items()),
        *(f"  {kind}: left out {number} images" for kind, number in record.get("exports_missing", {}).items()),
    ]


def _left(record: dict[str, Any]) -> dict[str, str]:
    """Late files that the night went on without, and why; records of earlier versions don't say."""
    return dict(record.get("late_files_left", {}))


def _about_selection(record: dict[str, Any]) -> list[str]:
    if not record["selection"]:
        return ["  nothing selected: no row could be scored"]
    lines = [f"  {record['num_selected']} selected: {counts(dict(sorted(record['num_by_reason'].items())))}"]
    lines += [f"  {line}" for line in warnings(record)]
    if record["expected_failures"] is not None:
        lines.append(f"  {expectation(record)}")
    if record["num_selected"] < record["budget"]:
        left = f"leave no more than {record['num_selected']}"
        lines.append(f"  the budget is {record['budget']}: caps, exclusions, conditions and the night {left}")
    return lines


def _limited(lines: list[str]) -> list[str]:
    rest = len(lines) - _NUM_LINES
    return [*lines[:_NUM_LINES], f"  … and {rest} more, see run.json"] if rest > 0 else lines


if __name__ == "__main__":
    sys.exit(main())
