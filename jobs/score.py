"""`lossight score`: a pool into a scores table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from distributed.scoring.options import ScoreOptions
from jobs.console import ConsoleProgress, counts, format_seconds, say, show_table
from jobs.run import DEGRADED, DONE, run_job, stopping_in_order

_LIMITS = {"flops": "arithmetic", "bytes": "memory"}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(ScoreOptions, _score, arguments, command="score")


def _score(options: ScoreOptions) -> int:
    if options.plan:
        return _plan(options)
    with ConsoleProgress() as progress, stopping_in_order() as stop:
        record = score(options, progress, should_stop=stop.is_asked)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {options.out}")
    say(f"{record['num_rows']} rows: {record['num_scored']} scored, unreadable: {counts(record['errors'])}")
    for reason, ids in record["error_examples"].items():
        say(f"  {reason}: {', '.join(ids)}{', …' if record['errors'][reason] > len(ids) else ''}")
    if record["num_new_rows"] and not record.get("was_done"):
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in record["stage_seconds"].items())
        say(
            f"{record['num_new_rows']} rows scored now: {record['seconds']:.1f} s, "
            f"{record['images_per_second']:.0f} images/s; seconds of work: {stages}"
        )
    if num_here := record.get("num_rows_here"):
        others = "--ray uses Ray" if num_here >= record["num_new_rows"] else "the others on Ray"
        say(f"scored in this process: {num_here:,} rows; {others}")
    if record["num_restarts"] and not record.get("was_done"):
        say(f"scoring processes were lost and started again: {record['num_restarts']} times")
    lost = about_lost_files(record)
    for line in lost:
        say(line)
    if record["error_rate"] > options.max_error_rate:
        limit = f"--max-error-rate is {options.max_error_rate:.1%}"
        say(f"degraded: {record['error_rate']:.1%} of the rows have no score, {limit}")
        return DEGRADED
    if lost:
        say("degraded: what was not read is missing; the same command reads it again")
        return DEGRADED
    return DONE


def about_lost_files(record: dict[str, Any]) -> list[str]:
    """Lines about files that lost rows; records of earlier versions don't know the damaged ones."""
    return [
        *(f"file not read: {path}: {reason}" for path, reason in record["bad_files"].items()),
        *(
            f"file read in part: {path}: damaged: {num_rows} rows"
            for path, num_rows in record.get("damaged_files", {}).items()
        ),
    ]


def score(
    options: ScoreOptions, progress: ConsoleProgress, *, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Scores as configured; returns the run's record."""
    from distributed.scoring.score import score_pool

    return score_pool(
        options.pool,
        model=options.model,
        out=options.out,
        options=options,
        config=options.resolved(),
        progress=progress,
        should_stop=should_stop,
    )


def _plan(options: ScoreOptions) -> int:
    from distributed.scoring.planning import plan_scoring

    plan = plan_scoring(options.pool, model=options.model, options=options)
    files, rates = plan.manifest.files, plan.rates
    groups = [size for file in files for size in file.row_group_bytes]
    say(
        f"{plan.manifest.num_rows} rows in {len(files)} files of {sum(file.size for file in files) / 2**20:.0f} MiB, "
        f"{len(groups)} row groups of {sum(groups) / len(groups) / 2**20:.1f} MiB; "
        f"unreadable files: {len(plan.manifest.bad_files)}"
    )
    of_one = {"read": rates.read, "decode": rates.decode_thread, "model": rates.model, "decode and model": rates.scorer}
    show_table(
        "images a second, measured on a sample",
        ["stage", "one reader, thread or actor", "all"],
        [[stage, f"{of_one[stage]:.0f}", f"{rate:.0f}"] for stage, rate in plan.stages.items()],
    )
    say(
        f"{plan.bottleneck} is the slowest; an actor reaches {plan.share_of_bound:.1%} of the "
        f"{rates.bound.images_per_s:.0f} images/s that {_LIMITS[rates.bound.limit]} allows its device at most"
    )
    say(f"this pool: {format_seconds(plan.seconds)} at {plan.images_per_second:.0f} images/s, and the start")
    for line in plan.advice:
        say(f"- {line}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
