"""What a simulation is told: strategies, what each ranks by, and how a stage is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from distributed.selection.options import Strategy as Selection
from distributed.training.options import TrainingOptions
from model.errors import InputError
from model.example import AugmentationName
from model.objective import MethodName

StrategyName = Literal[
    "random", "coreset", "ll", "ll++", "ll++conv", "confidence", "entropy", "keypoint", "hybrid", "oracle"
]


class Strategy(NamedTuple):
    """How an arm chooses its rows."""

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


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """The synthetic fleet that a simulation is on; see `write_fleet_cycle`."""

    seed: int
    num_start: int
    num_pool: int
    per_slice: int
    num_easy: int


@dataclass(frozen=True, kw_only=True)
class SimulationOptions:
    """What is simulated; see `jobs.simulate` for the words."""

    start: str | int  # a labelled table, or how many rows of the pool, drawn by the arm's seed
    pool: str
    test: str
    fleet: FleetOptions | None  # written first, where start, pool and test are then found
    skeleton: str | None
    slices: str | None
    strategies: tuple[StrategyName, ...]
    single_seed: tuple[StrategyName, ...]
    seeds: tuple[int, ...]
    stages: int
    budget: int
    method: MethodName
    estimator: str
    steps: int | None
    epochs: int | None
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    augmentation: AugmentationName
    max_per_group: int | None
    diversity: float
    min_distance: float
    gpus: float

    @property
    def arms(self) -> list[tuple[StrategyName, int]]:
        """Strategy and seed of each: all seeds of one strategy after those of another, first seeds first of all."""
        first = [(name, self.seeds[0]) for name in (*self.strategies, *self.single_seed)]
        return first + [(name, seed) for seed in self.seeds[1:] for name in self.strategies]

    def method_of(self, strategy: StrategyName) -> MethodName:
        """What the models of an arm are trained with."""
        return STRATEGIES[strategy].method or self.method

    @property
    def decode_threads(self) -> int:
        """Threads of a stage that decode images: an arm on CPUs has one core; a GPU takes what several decode."""
        return 8 if self.gpus else 1

    def epochs_of(self, num_rows: int) -> int:
        """Passes over so many rows: as configured, or as many as come nearest to the number of steps."""
        return self.epochs or max(1, round((self.steps or 0) * self.batch_size / num_rows))


def check_options(options: SimulationOptions) -> None:
    """Passes if the options make sense together.

    Raises:
        InputError: a strategy or seed is there twice, or steps and epochs are both given, or neither.
    """
    for name, values in (
        ("strategies", (*options.strategies, *options.single_seed)),
        ("seeds", options.seeds),
    ):
        doubled = sorted({str(value) for value in values if values.count(value) > 1})
        if doubled or not values:
            raise InputError(f"--{name}: expected each once, found {', '.join(doubled) or 'none'}")
    if (options.steps is None) == (options.epochs is None):
        raise InputError("--steps: expected either --steps or --epochs, found both or neither")


def training_options(options: SimulationOptions, *, method: MethodName, num_rows: int, seed: int) -> TrainingOptions:
    """How a stage is trained, in the calling process."""
    return TrainingOptions(
        method=method,
        estimator=options.estimator,
        epochs=options.epochs_of(num_rows),
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        head_learning_rate=options.head_learning_rate,
        augmentation=options.augmentation,
        seed=seed,
        min_workers=0,
        max_workers=0,
        gpus_per_worker=options.gpus,
        decode_threads=options.decode_threads,
    )
