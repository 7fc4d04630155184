"""`lossight simulate`: active-learning cycles on labelled rows, to see which strategy is worth its labels."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from distributed.options import Options
from jobs.console import ConsoleProgress, say
from jobs.run import DONE, run_job, stopping_in_order

_HOW = frozenset({"workers", "address", "max_minutes", "out", "gpus"})
_STRATEGIES = Literal[
    "random", "coreset", "ll", "ll++", "ll++conv", "confidence", "entropy", "keypoint", "hybrid", "oracle"
]


def _as_count(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isdecimal() else value


_TableOrCount = Annotated[str | Annotated[int, Field(ge=1)], BeforeValidator(_as_count)]


class FleetConfig(BaseModel):
    """A synthetic fleet: tables of start, pool and test below OUT/fleet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    num_start: int = Field(ge=48)
    num_pool: int = Field(ge=48)
    per_slice: int = Field(ge=1, description="test rows of each hard slice, at least")
    num_easy: int = Field(ge=1, description="test rows in no hard slice")


class SimulateOptions(Options):
    """Trains, ranks, selects and trains again, by several strategies and seeds; best from a file: --config FILE."""

    out: str = Field(description="where rows, tables and models go; the same command goes on")
    fleet: FleetConfig | None = Field(None, description="make a synthetic fleet, rather than --start, --pool, --test")
    start: _TableOrCount = Field("", description="the labelled table to start from, or how many rows of the pool")
    pool: str = Field("", description="the labelled table whose rows are selected and then labelled")
    test: str = Field("", description="the labelled table that each model is judged on")
    skeleton: str | None = Field(None, description="as in lossight train")
    slices: str | None = Field(None, description="the column of the test table whose values are judged apart")
    strategies: tuple[_STRATEGIES, ...] = Field(("random", "confidence", "ll++", "coreset", "keypoint"))
    single_seed: tuple[_STRATEGIES, ...] = Field((), description="strategies that are run with the first seed alone")
    seeds: tuple[int, ...] = Field((0, 1, 2), description="of training, and of draws")
    stages: int = Field(3, ge=1, description="selections, each followed by a training")
    budget: int = Field(500, ge=1, description="rows that a selection takes")
    method: Literal["ll", "ll++", "ll++conv", "keypoint"] = Field(
        "keypoint", description="of the strategies that are not a method themselves"
    )
    estimator: str = Field("hourglass-small", description="as in lossight train")
    steps: int | None = Field(None, ge=1, description="gradient steps of a training, the same for few rows and many")
    epochs: int | None = Field(None, ge=1, description="passes over the rows, rather than steps")
    batch_size: int = Field(16, ge=2, description="images of a step")
    learning_rate: float = Field(4e-3, gt=0, description="as in lossight train")
    head_learning_rate: float = Field(3e-4, gt=0, description="as in lossight train")
    augmentation: Literal["none", "light", "paper"] = Field("light", description="as in lossight train")
    max_per_group: int | None = Field(None, ge=1, description="as in lossight select, for all strategies")
    diversity: float = Field(0.3, ge=0, le=1, description="of hybrid, as in lossight select")
    min_distance: float = Field(0.0, ge=0, description="of hybrid, as in lossight select")
    gpus: float = Field(0, ge=0, description="GPUs of a training; 0: CPUs")
    workers: int = Field(2, ge=0, description="trainings at a time, each a Ray task; 0: in this process")
    max_minutes: float | None = Field(None, gt=0, description="begin no training after so long")
    address: str | None = Field(None, description="the Ray cluster; default: one on this machine")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(SimulateOptions, _simulate, arguments, command="simulate")


def _simulate(config: SimulateOptions) -> int:
    from distributed.simulation.options import FleetOptions, SimulationOptions
    from distributed.simulation.simulate import simulate

    place = f"{config.out.rstrip('/')}/fleet"
    tables = {"start": config.start, "pool": config.pool, "test": config.test}
    if config.fleet is not None:
        tables = {name: f"{place}/{name}" for name in tables}
    same = {name: getattr(config, name) for name in SimulationOptions.__dataclass_fields__}
    fleet = config.fleet and FleetOptions(**config.fleet.model_dump())
    with ConsoleProgress() as progress, stopping_in_order() as stop:
        record = simulate(
            SimulationOptions(**{**same, **tables, "fleet": fleet}),
            out=config.out,
            config=config.resolved(),
            ignored=_HOW,
            workers=config.workers,
            address=config.address,
            max_minutes=config.max_minutes,
            progress=progress,
            should_stop=stop.is_asked,
        )
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(f"{record['num_stages']} stages; tables in {config.out}/{record['report']}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
