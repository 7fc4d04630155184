"""`lossight select`: a scores table into a budgeted selection."""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import Field

from jobs.console import say
from jobs.options import JobConfig
from jobs.run import DONE, run_job


class SelectConfig(JobConfig):
    """Picks what to label: the highest predicted losses, or a random draw, under a budget and caps."""

    scores: str = Field(description="the scores table: a path or an s3:// URI")
    out: str = Field(description="where the selection goes")
    budget: int = Field(ge=1, description="how many images to select")
    strategy: Literal["loss", "random"] = Field("loss", description="highest predicted loss first, or at random")
    max_per_group: int | None = Field(None, ge=1, description="at most so many of one group; rows without one are free")
    exclude: tuple[str, ...] = Field(
        (), description="tables whose sample ids are left out: labelled, or selected before"
    )
    seed: int = Field(0, ge=0, description="of the random strategy")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(SelectConfig, _select, arguments, command="select")


def _select(config: SelectConfig) -> int:
    record = select(config)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(f"{record['num_selected']} selected of {record['num_scored']} scored")
    if record["num_selected"] < config.budget:
        say(f"the budget is {config.budget}: caps, exclusions and the pool leave no more than {record['num_selected']}")
    return DONE


def select(config: SelectConfig) -> dict[str, Any]:
    """Selects as configured; returns the run's record."""
    from distributed.selection import SelectionOptions, select_samples

    options = SelectionOptions(
        budget=config.budget,
        strategy=config.strategy,
        max_per_group=config.max_per_group,
        exclude=config.exclude,
        seed=config.seed,
    )
    return select_samples(config.scores, out=config.out, options=options, config=config.resolved())


if __name__ == "__main__":
    sys.exit(main())
