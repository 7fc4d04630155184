"""What a training is told: options, and the job that every rank must know. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from distributed.storage.location import Location
from distributed.tables.manifest import Manifest
from model.example import AugmentationName
from model.fit import FitOptions, Precision, ScheduleName
from model.objective import MethodName
from model.pose_model import ModelSpec

# Options that say how the work is spread: the bundle, and so its id, does not depend on them.
HOW = frozenset({"cpus_per_worker", "gpus_per_worker", "decode_threads", "max_failures"})


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What to train, and how; see `jobs.train` for the words."""

    estimator: str = "hourglass"
    method: MethodName = "keypoint"
    learning_rate: float = 1e-3
    head_learning_rate: float = 3e-4
    schedule: ScheduleName = "cosine"
    clip_norm: float | None = None
    precision: Precision | None = None  # None: what suits the device
    sync_batchnorm: bool = False
    augmentation: AugmentationName = "paper"
    epochs: int = 80
    patience: int | None = None  # epochs without a better validation loss before it ends
    batch_size: int = 16  # of a step, of all workers together
    accumulate: int = 1  # batches of a worker in one step
    seed: int = 0
    max_error_rate: float = 0.05
    min_workers: int = 1  # 0: in the calling process, without Ray
    max_workers: int = 1
    cpus_per_worker: float = 2
    gpus_per_worker: float = 0
    decode_threads: int = 2
    max_failures: int = 3  # restarts after the death of a worker

    @property
    def device(self) -> str:
        """Where the calling process computes; a Ray Train worker is told its own."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def fit(self) -> FitOptions:
        """What the single-device code needs of it."""
        return FitOptions(
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            clip_norm=self.clip_norm,
            precision=self.precision or ("bfloat16" if self.gpus_per_worker else "float32"),
        )

    def rows_per_batch(self, world_size: int) -> int:
        """Rows that a rank decodes and computes at once: a step of all ranks is at most `batch_size` rows."""
        return max(2, self.batch_size // (world_size * self.accumulate))


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What every rank must know; travels to the workers."""

    labelled: Manifest
    validation: Manifest | None
    out: Location
    spec: ModelSpec
    options: TrainingOptions
