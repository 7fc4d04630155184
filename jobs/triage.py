"""`lossight triage`: the nights of a pool that are new, each scored, selected from, compared and handed on."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distributed.options import Texts, as_sequence
from distributed.selection.options import SelectionOptions, SelectOptions
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DEGRADED, DONE, run_job, stopping_in_order
from jobs.score import ScoreOptions, ScoringOptions, about_lost_files, work_options
from jobs.select import expectation
from model.errors import InputError

if TYPE_CHECKING:
    from distributed.triage.night import TriageOptions

_NUM_LINES = 20  # of details: a morning's log is read by people


_Exports = Annotated[
    tuple[Literal["coco", "cvat", "label-studio", "fiftyone", "csv"], ...], BeforeValidator(as_sequence)
]


class TriageConfig(ScoringOptions, SelectionOptions):
    """Scores the new nights of a pool and selects from each; run again, it does what is left, or nothing."""

    pool: str = Field(
        description="the pool: date=YYYY-MM-DD/ folders, or any (a file is of the day it was written, UTC)"
    )
    model: str = Field(description="the model bundle")
    out: str = Field(description="where all nights go; the same night after night")
    date: datetime.date | None = Field(
        None, description="the last night to look at, missed ones before it included; default: yesterday (UTC)"
    )
    first_night: datetime.date | None = Field(None, description="nights before this one are none of this triage's")
    late_days: int = Field(
        30, ge=0, description="for so many days after a night its late files are taken along by the next one"
    )
    keep_days: int | None = Field(
        None, ge=1, description="remove the scores of nights so many days older than the newest; never a selection"
    )
    drift_columns: Texts = Field(
        (), description="columns, such as camera, for whose values drift is looked for besides that of all rows"
    )
    drift_nights: int = Field(7, ge=3, description="how many nights before, of the same bundle, a night is compared to")
    drift_min_rows: int = Field(200, ge=2, description="scored rows that a night, or a value, needs to be compared")
    max_psi: float = Field(0.25, gt=0, description="population stability index above which scores have drifted")
    max_ks: float = Field(0.2, gt=0, le=1, description="Kolmogorov-Smirnov distance likewise")
    fail_on_drift: bool = Field(False, description="exit code 5 where scores have drifted")
    require_data: bool = Field(False, description="exit code 2 where the last night to look at has no data")
    report: bool = Field(True, description="write a report of each night")
    exports: _Exports = Field((), description="labelling tools that each selection is exported for")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(TriageConfig, _triage, arguments, command="triage")


def _triage(config: TriageConfig) -> int:
    from distributed.doctor.probe import check_reachable
    from distributed.triage.triage import triage_nights

    for uri in (config.pool, config.model, config.out, *config.exclude):
        check_reachable(uri)
    options, today = _options(config), _today()
    bars, dates, is_degraded = ConsoleProgress(), [], False

    def tell(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        bars(stage, done, total, num_errors=num_errors, note=note)

    with stopping_in_order() as stop:
        nights = triage_nights(options, until=config.date, today=today, progress=tell, should_stop=stop.is_asked)
        while True:
            with ConsoleProgress() as bars:  # new ones for each night: what is said of it comes after its bars
                record = next(nights, None)
            if record is None:
                break
            dates.append(record["night"])
            lines, is_sound = _report(config, record)
            for line in lines:
                say(line)
            is_degraded |= not is_sound
    wanted = config.date or today - datetime.timedelta(days=1)
    if wanted.isoformat() not in dates:
        _say_missing(config, wanted)
    return DEGRADED if is_degraded else DONE


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _say_missing(config: TriageConfig, wanted: datetime.date) -> None:
    message = f"{config.pool}: no data for the night {wanted}"
    if config.require_data:
        raise InputError(f"{message}, and --require-data is set")
    say(f"{message}: nothing to do")


def _report(config: TriageConfig, record: dict[str, Any]) -> tuple[list[str], bool]:
    """What is said of a night, and whether all is well with it."""
    place = f"{config.out.rstrip('/')}/nights/{record['night']}"
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
    is_readable = record["error_rate"] <= config.max_error_rate
    if not is_readable:
        limit = f"--max-error-rate is {config.max_error_rate:.1%}"
        lines.append(f"  degraded: {record['error_rate']:.1%} of the rows have no score, {limit}")
    if lost:
        lines.append("  degraded: these files are late files of the next night")
    is_whole = not _left(record) and not about_handoff and not lost
    return lines, is_readable and is_whole and not (drifted and config.fail_on_drift)


def _about_handoff(record: dict[str, Any]) -> list[str]:
    """What went wrong once the selection was committed; records of earlier versions don't say."""
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
    if record["expected_failures"] is not None:
        lines.append(f"  {expectation(record)}")
    if record["num_selected"] < record["budget"]:
        left = f"leave no more than {record['num_selected']}"
        lines.append(f"  the budget is {record['budget']}: caps, exclusions, conditions and the night {left}")
    return lines


def _limited(lines: list[str]) -> list[str]:
    rest = len(lines) - _NUM_LINES
    return [*lines[:_NUM_LINES], f"  … and {rest} more, see run.json"] if rest > 0 else lines


def _options(config: TriageConfig) -> TriageOptions:
    from distributed.triage.drift import DriftOptions
    from distributed.triage.night import TriageOptions

    scoring = config.part(
        ScoreOptions, metadata=_metadata(config), embeddings=config.embeddings or config.reads_embeddings
    )
    selecting = config.part(SelectOptions, scores="-")
    return TriageOptions(
        pool=config.pool,
        model=config.model,
        out=config.out,
        work=work_options(scoring),
        selection=config.part(SelectionOptions),
        drift=DriftOptions(
            num_nights=config.drift_nights,
            max_psi=config.max_psi,
            max_ks=config.max_ks,
            min_rows=config.drift_min_rows,
            columns=config.drift_columns,
        ),
        first_night=config.first_night or datetime.date.min,
        late_days=config.late_days,
        keep_days=config.keep_days,
        with_report=config.report,
        exports=config.exports,
        config=config.resolved(),
        score_config=scoring.resolved(),
        select_config=selecting.resolved(),
    )


def _metadata(config: TriageConfig) -> tuple[str, ...]:
    """The columns that the scores keep: those asked for, and those that drift and the condition look at."""
    from distributed.schema import SCORES
    from distributed.selection.filters import condition_columns

    asked = (*config.metadata, *config.drift_columns, *(condition_columns(config.where) if config.where else ()))
    return tuple(dict.fromkeys(name for name in asked if name not in SCORES.names))


if __name__ == "__main__":
    sys.exit(main())
