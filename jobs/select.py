"""`lossight select`: scores tables into a budgeted selection."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs.console import counts, say
from jobs.options import Budget, JobConfig, Locations, parse_budget
from jobs.run import DONE, run_job

if TYPE_CHECKING:
    from distributed.selection.strategies import SelectionOptions


class SelectingOptions(JobConfig):
    """Which rows are selected, and how many, whatever scores they are of."""

    budget: Budget = Field(
        description="how many images to select, or a share such as 5% of those that could be, rounded down"
    )
    strategy: Literal["loss", "random", "coreset", "hybrid"] = Field(
        "loss", description="highest predicted loss first; at random; what is unlike all else; or high loss and unlike"
    )
    diversity: float = Field(0.3, ge=0, le=1, description="of hybrid: 0 is loss order, 1 what is most unlike")
    min_distance: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="pass over images whose embeddings are nearer than this to others'"
    )
    max_per_group: int | None = Field(None, ge=1, description="at most so many of one group; rows without one are free")
    exclude: Locations = Field(
        (), description="tables whose sample ids are left out: labelled, or selected before; may be repeated"
    )
    min_loss: float | None = Field(
        None, allow_inf_nan=False, description="least predicted loss that the strategy may select"
    )
    max_loss: float | None = Field(None, allow_inf_nan=False, description="greatest predicted loss likewise")
    where: str | None = Field(
        None, description="condition on columns of the scores, such as \"confidence < 0.5 and group != 'x'\""
    )
    control_share: float = Field(
        0.0, ge=0, le=1, description="share of the budget that is drawn at random from the rest: it proves the gain"
    )
    seed: int = Field(0, ge=0, description="of the random strategy and the control arm")


class SelectConfig(SelectingOptions):
    """Picks what to label: the highest predicted losses, or a random draw, under a budget and caps."""

    scores: Locations = Field(
        min_length=1, description="the scores table: a path or an s3:// URI; several to select from all of them"
    )
    out: str = Field(description="where the selection goes")
    allow_mixed: bool = Field(False, description="rank scores of different bundles together")
    workers: int | None = Field(
        None,
        ge=0,
        description="Ray processes that read the scores, and hold the embeddings of coreset; 0: this one alone; "
        "default: 0, with --address as many as the cluster has CPUs to spare; same selection",
    )
    address: str | None = Field(
        None, description="the Ray cluster; default: RAY_ADDRESS, else one is started on this machine"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(SelectConfig, _select, arguments, command="select")


def _select(config: SelectConfig) -> int:
    record = select(config)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(f"{record['num_selected']} selected of {record['num_scored']} scored: {counts(record['num_by_reason'])}")
    for line in _remarks(config, record):
        say(line)
    return DONE


def _remarks(config: SelectConfig, record: dict[str, Any]) -> list[str]:
    """What a reader of the result should know."""
    lines = []
    if record["num_eligible"] is not None:
        lines.append(f"the budget is {config.budget} of {record['num_eligible']} that could be: {record['budget']}")
    if record["expected_failures"] is not None:
        lines.append(expectation(record))
    if record["num_selected"] < record["budget"]:
        left = f"leave no more than {record['num_selected']}"
        lines.append(f"the budget is {record['budget']}: caps, exclusions, conditions and the pool {left}")
    if record["num_uncommitted_parts"]:
        lines.append(f"not read: {record['num_uncommitted_parts']} files of scores that no finished run has published")
    return lines


def expectation(record: dict[str, Any]) -> str:
    """What the calibration expects of a selection, for a record that has it."""
    return (
        f"about {record['expected_failures']:.0f} are expected below PCK {record['failure_pck']:g}; "
        f"a random draw of as many would hold {record['expected_failures_at_random']:.0f}"
    )


def select(config: SelectConfig) -> dict[str, Any]:
    """Selects as configured; returns the run's record."""
    from distributed.selection.select import select_samples

    options = replace(selection_options(config), allow_mixed=config.allow_mixed)
    return select_samples(
        config.scores, out=config.out, options=options, config=config.resolved(), workers=_join_cluster(config)
    )


def selection_options(config: SelectingOptions) -> SelectionOptions:
    """What to select as configured."""
    from distributed.selection.strategies import SelectionOptions

    return SelectionOptions(
        budget=parse_budget(str(config.budget)),
        strategy=config.strategy,
        max_per_group=config.max_per_group,
        exclude=config.exclude,
        min_loss=config.min_loss,
        max_loss=config.max_loss,
        where=config.where,
        diversity=config.diversity,
        min_distance=config.min_distance,
        control_share=config.control_share,
        seed=config.seed,
    )


def _join_cluster(config: SelectConfig) -> int:
    """How many workers are to read; the cluster is joined if there are any."""
    if config.workers == 0 or (config.workers is None and config.address is None):
        return 0
    from distributed.cluster.connection import connect
    from distributed.cluster.resources import room_for

    connect(config.address)
    return config.workers or room_for(cpus=1, gpus=0)


if __name__ == "__main__":
    sys.exit(main())
