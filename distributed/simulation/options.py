"""Options of a simulation: strategies, what each ranks by, and the training of a stage."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from distributed.options import MACHINE, PLACE, WHAT, Address, ImageRoot, Options, Shown, as_count
from distributed.selection.options import MIN_GAP, Diversity, MaxPerGroup, MinGap
from distributed.selection.options import Strategy as Selection
from distributed.training.options import (
    Augmentation,
    BatchSize,
    Estimator,
    LearningRate,
    Method,
    SkeletonName,
    TrainingOptions,
)
from model.choices import MethodName

StrategyName = Literal[
    "random", "coreset", "ll", "ll++", "ll++conv", "confidence", "entropy", "keypoint", "hybrid", "oracle"
]


class Strategy(NamedTuple):
    """A strategy: the way in which an arm chooses its rows."""

    selection: Selection  # of `select`
    score: str  # the column of evaluated rows that it ranks by, the highest first; of confidence the lowest
    method: MethodName | None = None  # what its models are trained with; None: the simulation's own


STRATEGIES: dict[StrategyName, Strategy] = {
    "random": Strategy("random", "predicted_loss"),
    "coreset": Strategy("coreset", "predicted_loss"),
    "ll": Strategy("loss", "predicted_loss", "ll"),
    "ll++": Strategy("loss", "predicted_loss", "ll++"),
    "ll++conv": Strategy("loss", "predicted_loss", "ll++conv"),
    "confidence": Strategy("loss", "confidence"),
    "entropy": Strategy("loss", "peak_entropy"),
    "keypoint": Strategy("loss", "predicted_loss", "keypoint"),
    "hybrid": Strategy("hybrid", "predicted_loss"),
    "oracle": Strategy("loss", "true_loss"),
}


class FleetOptions(Options):
    """The synthetic fleet that a simulation is on: tables of start, pool and test; see `write_fleet_cycle`."""

    seed: int = Field(0, ge=0, description="seed of the fleet")
    num_start: int = Field(ge=48, description="rows of the start")
    num_pool: int = Field(ge=48, description="rows of the pool")
    per_slice: int = Field(ge=1, description="least number of test rows of each hard slice")
    num_easy: int = Field(ge=1, description="test rows in no hard slice")


_TableOrCount = Annotated[str | Annotated[int, Field(ge=1)], BeforeValidator(as_count)]


class SimulateOptions(Options):
    """Trains, ranks, selects and trains again, by several strategies and seeds; best from a file: --config FILE."""

    out: Annotated[str, PLACE] = Field(description="where rows, tables and models go; the same command goes on")
    start: Annotated[_TableOrCount, WHAT, Shown("URI|N")] = Field(
        "", description="the labelled table to start from, or how many rows of the pool"
    )
    pool: Annotated[str, WHAT, Shown("URI")] = Field(
        "", description="the labelled table whose rows are selected and then labelled"
    )
    test: Annotated[str, WHAT, Shown("URI")] = Field("", description="the labelled table that each model is judged on")
    fleet: Annotated[FleetOptions | None, WHAT, Shown("{KEY: N, ...}")] = Field(
        None,
        description="make a synthetic fleet rather than --start, --pool and --test: num_start, num_pool, per_slice, "
        "num_easy, seed",
    )
    image_root: ImageRoot = None
    skeleton: SkeletonName = None
    slices: str | None = Field(None, description="the column of the test table whose values are judged apart")
    strategies: tuple[StrategyName, ...] = Field(
        ("random", "confidence", "ll++", "coreset", "keypoint"), description="strategies to compare"
    )
    single_seed: tuple[StrategyName, ...] = Field((), description="strategies that are run with the first seed alone")
    seeds: tuple[int, ...] = Field((0, 1, 2), description="seeds of trainings and draws")
    stages: int = Field(3, ge=1, description="selections, each followed by a training")
    budget: int = Field(500, ge=1, description="rows that a selection takes")
    steps: int | None = Field(None, ge=1, description="gradient steps of a training, the same for few rows and many")
    epochs: int | None = Field(None, ge=1, description="passes over the rows, rather than steps")
    method: Method = "keypoint"  # of the strategies that are not a method themselves
    estimator: Estimator = "hourglass-small"
    batch_size: BatchSize = 16
    learning_rate: LearningRate = 4e-3
    augmentation: Augmentation = "light"
    max_per_group: MaxPerGroup = None
    min_gap: MinGap = MIN_GAP
    diversity: Diversity = 0.3
    workers: Annotated[int, MACHINE] = Field(
        2, ge=0, description="trainings at a time, each a Ray task; 0: in this process"
    )
    gpus: Annotated[float, MACHINE] = Field(0, ge=0, description="GPUs of a training; 0: CPUs")
    max_minutes: Annotated[float | None, MACHINE] = Field(None, gt=0, description="begin no training after so long")
    address: Address = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for name, values in (("strategies", (*self.strategies, *self.single_seed)), ("seeds", self.seeds)):
            doubled = sorted({str(value) for value in values if values.count(value) > 1})
            if doubled or not values:
                raise ValueError(f"--{name}: expected each once, found {', '.join(doubled) or 'none'}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("--steps: expected either --steps or --epochs, found both or neither")
        return self

    @property
    def arms(self) -> list[tuple[StrategyName, int]]:
        """Strategy and seed of each: all seeds of one strategy after those of another, first seeds first of all."""
        first = [(name, self.seeds[0]) for name in (*self.strategies, *self.single_seed)]
        return first + [(name, seed) for seed in self.seeds[1:] for name in self.strategies]

    def method_of(self, strategy: StrategyName) -> MethodName:
        """Method that the models of an arm are trained with."""
        return STRATEGIES[strategy].method or self.method

    @property
    def decode_threads(self) -> int:
        """Threads of a stage that decode images: an arm on CPUs has one core; a GPU takes what several decode."""
        return 8 if self.gpus else 1

    def epochs_of(self, num_rows: int) -> int:
        """Passes over so many rows: as configured, or as many as come nearest to the number of steps."""
        return self.epochs or max(1, round((self.steps or 0) * self.batch_size / num_rows))

    def with_fleet(self) -> SimulateOptions:
        """The same, with the tables where those of the synthetic fleet are or will be, if there is one."""
        place = f"{self.out.rstrip('/')}/fleet"
        tables = {name: f"{place}/{name}" for name in ("start", "pool", "test")}
        return self.model_copy(update=tables) if self.fleet else self

    def training(self, strategy: StrategyName, *, num_rows: int, seed: int) -> TrainingOptions:
        """Options of a stage's training, in the calling process."""
        return self.part(
            TrainingOptions,
            method=self.method_of(strategy),
            epochs=self.epochs_of(num_rows),
            seed=seed,
            workers="0",
            gpus_per_worker=self.gpus,
            decode_threads=self.decode_threads,
        )
