"""Options of a training: those that a simulation trains with too, and those of `lossight train`; the job of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distributed.options import MACHINE, PLACE, Address, ImageRoot, Options, SpanOrNone, parse_span
from model.choices import AugmentationName, MethodName, Precision

if TYPE_CHECKING:
    from distributed.storage.location import Location
    from distributed.tables.manifest import Manifest
    from model.fit import FitOptions
    from model.spec import ModelSpec

# Shared with simulations, whose defaults are others.
Estimator = Annotated[
    str,
    Field(
        description="hourglass: the paper's 2 stacks at 256 px; hourglass-small: at 64 px, for CPUs; vitpose:FOLDER: a "
        "checkpoint of transformers, fine-tuned; or the name of one of your own"
    ),
]
Method = Annotated[
    MethodName,
    Field(
        description="what predicts the loss: keypoint: LL++ on the heatmaps of each keypoint, and its probability of a "
        "miss; ll, ll++, ll++conv: the published heads"
    ),
]
BatchSize = Annotated[int, Field(ge=2, description="images of a step, of all workers together")]
LearningRate = Annotated[float, Field(gt=0, description="peak rate of the estimator, after a warm-up")]
Augmentation = Annotated[
    AugmentationName,
    Field(
        description="shift, scale, rotation and flip of training images; the paper's takes 80 epochs or more to pay off"
    ),
]
SkeletonName = Annotated[
    str | None,
    Field(
        description="the keypoints: lsp, mpii, coco or a JSON file; default: what the table was written with, else the "
        "one with as many keypoints"
    ),
]


class TrainingOptions(Options):
    """Estimator, method, rates and epochs of a training, and its use of the machine."""

    estimator: Estimator = "hourglass"
    method: Method = "keypoint"
    epochs: int = Field(
        80,
        ge=0,
        description="passes over the table; 0: the estimator stays as its checkpoint has it, only the head is taught",
    )
    batch_size: BatchSize = 16
    learning_rate: LearningRate = 1e-3
    augmentation: Augmentation = "paper"
    patience: int | None = Field(
        None, ge=1, description="end after so many epochs without a better loss on the validation rows"
    )
    accumulate: int = Field(1, ge=1, description="batches of a worker whose gradients make one step")
    head_learning_rate: float = Field(3e-4, gt=0, description="constant rate of a published loss head")
    clip_norm: float | None = Field(None, gt=0, description="greatest norm of the gradients of estimator and of head")
    precision: Precision | None = Field(
        None, description="precision of the forward pass; default: float32 on CPUs, bfloat16 on GPUs"
    )
    reduce_frames: bool = Field(
        False,
        description="decode JPEGs from 720p on at 1/2, 1/4 or 1/8 where the crop loses no resolution by it: half "
        "the time; the bundle scores the same way",
    )
    sync_batchnorm: bool = Field(False, description="batch norm over the images of all workers; on GPUs")
    seed: int = Field(0, ge=0, description="seed of initial weights, order and augmentation")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="stop above this share of unreadable images")
    workers: SpanOrNone = Field(
        "1", description="Ray Train workers: N, or MIN:MAX for as many as there is room for; 0: in this process, no Ray"
    )
    cpus_per_worker: Annotated[float, MACHINE] = Field(
        2, gt=0, description="CPUs that a worker reserves and computes with"
    )
    gpus_per_worker: Annotated[float, MACHINE] = Field(
        0, ge=0, description="GPUs that a worker reserves; 0 computes on CPUs"
    )
    decode_threads: Annotated[int, MACHINE] = Field(2, ge=1, description="threads of a worker that decode images")
    max_failures: Annotated[int, MACHINE] = Field(
        3, ge=0, description="how often lost workers are started again from the last checkpoint"
    )

    @property
    def min_workers(self) -> int:
        """Fewest Ray Train workers; 0: the calling process trains, without Ray."""
        return parse_span(self.workers, least=0)[0]

    @property
    def max_workers(self) -> int:
        """Most Ray Train workers."""
        return parse_span(self.workers, least=0)[1]

    @property
    def device(self) -> str:
        """Device of the calling process; Ray Train tells its workers theirs."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def fit(self) -> FitOptions:
        """Options of the single-device code."""
        from model.fit import FitOptions

        return FitOptions(
            learning_rate=self.learning_rate,
            head_learning_rate=self.head_learning_rate,
            clip_norm=self.clip_norm,
            precision=self.precision or ("bfloat16" if self.gpus_per_worker else "float32"),
        )

    def rows_per_batch(self, world_size: int) -> int:
        """Rows that a rank decodes and computes at once: a step of all ranks is at most `batch_size` rows."""
        return max(2, self.batch_size // (world_size * self.accumulate))


class TrainOptions(TrainingOptions):
    """Fits the pose model and the loss head with Ray Train and writes a model bundle; goes on where it was killed."""

    labelled: Annotated[str, PLACE] = Field(description="the labelled table: a path or an s3:// URI")
    out: Annotated[str, PLACE] = Field(
        description="where the bundle goes; checkpoints, metrics.jsonl and TensorBoard logs lie beside it"
    )
    validation: Annotated[str | None, PLACE] = Field(
        None, description="a second labelled table: chooses the best epoch, and calibrates ll, ll++ and ll++conv"
    )
    image_root: ImageRoot = None
    skeleton: Annotated[SkeletonName, PLACE] = None
    address: Address = None


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Tables, output, model and options, as every rank needs them; travels to the workers."""

    labelled: Manifest
    validation: Manifest | None
    out: Location
    spec: ModelSpec
    options: TrainingOptions
