"""`lossight promote`: a bundle becomes the champion that triage follows, if it is no worse than the one in use."""

from __future__ import annotations

import sys
from typing import Any

from distributed.evaluation.options import PromoteOptions
from jobs.console import ConsoleProgress, number, say, show_table
from jobs.run import DEGRADED, DONE, run_job
from jobs.select import warnings

_MOST_SLICES, _MOST_REASONS = 40, 3  # on a terminal


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(PromoteOptions, _promote, arguments, command="promote")


def _promote(options: PromoteOptions) -> int:
    if options.back:
        return _roll_back(options.champion)
    from distributed.evaluation.promote import promote, worse_parts

    with ConsoleProgress() as progress:
        record = promote(options, progress=progress)
    if record["is_champion"]:
        say(f"already the champion: {options.champion} names {record['bundle_id']}")
        return DONE
    _show(record)
    for line in warnings(record):
        say(line)
    say(f"record: {record['record']}")
    if record["is_moved"]:
        before = f", {record['champion']} before" if record["champion"] else ", the first champion"
        say(f"moved: {options.champion} names {record['challenger']}{before}")
        return DONE
    reasons = [
        f"{_label(name, each)}: the difference may be {number(each['interval'][0])}, under {-each['margin']:g}"
        for name, each in worse_parts(record)
    ]
    shown = "; ".join(reasons[:_MOST_REASONS])
    more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
    say(f"not moved: {options.champion} still names {record['champion']}: {shown}{more}")
    return DEGRADED


def _roll_back(pointer: str) -> int:
    from distributed.storage.champion import read_champion, roll_back
    from distributed.storage.location import locate

    before = read_champion(locate(pointer))
    after = roll_back(locate(pointer))
    say(f"moved back: {pointer} names {after.bundle_id}, {before.bundle_id if before else 'none'} before")
    return DONE


def _show(record: dict[str, Any]) -> None:
    """Both bundles on each table."""
    show_table(
        "how good are they? (Spearman with the true loss; PCK of the 10 % ranked worst; calibration errors)",
        ["rows", "PCK", "Spearman", "confidence's", "worst", "of PCK", "failures"],
        [
            [f"{name}: {role}", *_measures(table[role])]
            for name, table in record["tables"].items()
            for role in ("champion", "challenger")
            if role in table
        ],
    )
    compared = [(name, each) for name, table in record["tables"].items() for each in table["comparisons"]]
    counting = [(name, each) for name, each in compared if each["margin"] is not None or each["column"] is None]
    if counting:
        show_table(
            "is the challenger no worse? (PCK, and the 95 % interval of its difference)",
            ["rows", "images", "champion", "challenger", "difference", "at least"],
            [_compared_row(name, each) for name, each in counting[:_MOST_SLICES]],
        )
    rest = len(compared) - len(counting[:_MOST_SLICES])
    if rest:
        say(f"{rest} more slices are in the record; those of few images decide nothing")


def _measures(metrics: dict[str, Any]) -> list[str]:
    errors = metrics["expected_calibration_error"] or {}
    return [
        number(metrics["pck"]),
        number(metrics["spearman"]["predicted_loss"]),
        number(metrics["spearman"]["confidence"]),
        number(metrics["pck_of_worst"]["predicted_loss"]),
        number(errors.get("pck")),
        number(errors.get("failure_share")),
    ]


def _compared_row(name: str, each: dict[str, Any]) -> list[str]:
    low, high = map(number, each["interval"])
    return [
        _label(name, each),
        str(each["num_images"]),
        number(each["pck_champion"]),
        number(each["pck_challenger"]),
        f"{low} to {high}",
        "-" if each["margin"] is None else f"{-each['margin']:g}",
    ]


def _label(name: str, each: dict[str, Any]) -> str:
    return f"{name}: all" if each["column"] is None else f"{name}: {each['column']}: {each['value'] or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
