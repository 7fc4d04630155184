"""`lossight train`: labelled rows into a model bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from distributed.options import Options, SpanOrNone, parse_span
from jobs.console import ConsoleProgress, counts, format_seconds, number, say
from jobs.run import DONE, run_job, stopping_in_order

# Options that say how the work is spread, not what comes out.
_HOW = frozenset(
    {
        "gpus_per_worker",
        "cpus_per_worker",
        "decode_threads",
        "max_failures",
        "address",
        "labelled",
        "validation",
        "skeleton",
        "out",
    }
)


class TrainOptions(Options):
    """Fits the pose model and the loss head with Ray Train and writes a model bundle; goes on where it was killed."""

    labelled: str = Field(description="the labelled table: a path or an s3:// URI")
    validation: str | None = Field(
        None, description="a labelled table apart from it: chooses the best epoch, and calibrates ll, ll++ and ll++conv"
    )
    out: str = Field(description="where the bundle goes; checkpoints, metrics.jsonl and TensorBoard logs lie beside it")
    skeleton: str | None = Field(
        None,
        description="what the keypoints are: lsp, mpii, coco or a JSON file; if not given, what the table was written "
        "with, else the one with as many keypoints",
    )
    estimator: str = Field(
        "hourglass",
        description="hourglass: the paper's 2 stacks at 256 px; hourglass-small: at 64 px, for CPUs; vitpose:FOLDER: a "
        "checkpoint of transformers, fine-tuned; package.module:function: your own, an entry point of its package",
    )
    method: Literal["ll", "ll++", "ll++conv", "keypoint"] = Field(
        "keypoint",
        description="what predicts the loss: keypoint: LL++ on the heatmaps of each keypoint, and its probability of a "
        "miss; ll, ll++, ll++conv: the published heads",
    )
    epochs: int = Field(80, ge=1, description="passes over the table")
    patience: int | None = Field(
        None, ge=1, description="end after so many epochs without a better loss on the validation rows"
    )
    batch_size: int = Field(16, ge=2, description="images of a step, of all workers together")
    accumulate: int = Field(1, ge=1, description="batches of a worker whose gradients make one step")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate of the estimator, after a warm-up")
    head_learning_rate: float = Field(3e-4, gt=0, description="rate of a published loss head; stays")
    schedule: Literal["cosine", "plateau", "constant"] = Field(
        "cosine", description="how the estimator's rate falls: along a cosine, or by half when the loss stays"
    )
    clip_norm: float | None = Field(None, gt=0, description="greatest norm of the gradients of estimator and of head")
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the forward pass; default: float32 on CPUs, bfloat16 on GPUs"
    )
    sync_batchnorm: bool = Field(False, description="batch norm over all workers' images; on GPUs")
    augmentation: Literal["none", "light", "paper"] = Field(
        "paper", description="shift, scale, rotation and flip of training images; the paper's wants 80 epochs and more"
    )
    seed: int = Field(0, ge=0, description="of initial weights, order and augmentation")
    max_error_rate: float = Field(0.05, ge=0, le=1, description="stop above this share of unreadable images")
    workers: SpanOrNone = Field(
        "1", description="Ray Train workers: N, or MIN:MAX for as many as there is room for; 0: in this process, no Ray"
    )
    cpus_per_worker: float = Field(2, gt=0, description="CPUs that a worker reserves and computes with")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that a worker reserves; 0 computes on CPUs")
    decode_threads: int = Field(2, ge=1, description="threads of a worker that decode images")
    max_failures: int = Field(3, ge=0, description="how often lost workers are started again from the last checkpoint")
    address: str | None = Field(
        None, description="the Ray cluster; default: RAY_ADDRESS, else one is started on this machine"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(TrainOptions, _train, arguments, command="train")


def _train(config: TrainOptions) -> int:
    with ConsoleProgress() as progress, stopping_in_order() as stop:
        record = train(config, progress, should_stop=stop.is_asked)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    history = record["metrics"]["history"]
    say(
        f"{record['num_rows']} labelled rows, {len(history)} epochs, {format_seconds(record['seconds'])}, "
        f"{record['images_per_second']:.0f} images/s; the bundle is that of epoch {record['epoch']}"
    )
    if history[-1]["pairs_per_step"]:
        say(f"pairs ranked a step: {history[-1]['pairs_per_step']:.0f}")
    if record["num_dropped_per_epoch"]:
        say(f"left over by equal shards: {record['num_dropped_per_epoch']} rows an epoch, others each time")
    if record["unreadable_per_epoch"]:
        say(f"unreadable, left out: {counts(record['unreadable_per_epoch'])}")
    for path, reason in record["bad_files"].items():
        say(f"file not read: {path}: {reason}")
    validation = record["metrics"].get("validation")
    if validation:
        rho = validation["spearman"]
        say(
            f"validation: PCK {number(validation['pck'])}, Spearman with the true loss: "
            f"predicted loss {number(rho['predicted_loss'])}, heatmap confidence {number(rho['confidence'])}"
        )
    return DONE


def train(
    config: TrainOptions, progress: ConsoleProgress, *, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Trains as configured; returns the run's record."""
    from distributed.training.options import TrainingOptions
    from distributed.training.train import train_model

    min_workers, max_workers = parse_span(config.workers, least=0)
    same = {name: getattr(config, name) for name in TrainingOptions.__dataclass_fields__ if hasattr(config, name)}
    options = TrainingOptions(**same, min_workers=min_workers, max_workers=max_workers)
    return train_model(
        config.labelled,
        validation=config.validation,
        skeleton=config.skeleton,
        out=config.out,
        options=options,
        config=config.resolved(),
        ignored=_HOW,
        address=config.address,
        progress=progress,
        should_stop=should_stop,
    )


if __name__ == "__main__":
    sys.exit(main())
