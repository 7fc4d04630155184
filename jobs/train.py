"""`lossight train`: labelled rows into a model bundle."""

from __future__ import annotations

import sys
from typing import Any, Literal

from pydantic import Field

from jobs.console import ConsoleProgress, counts, number, say
from jobs.options import JobConfig
from jobs.run import DONE, run_job

# Options that say how the work is spread, not what comes out.
_HOW = frozenset(
    {"gpus_per_worker", "cpus_per_worker", "decode_threads", "address", "labelled", "validation", "out", "skeleton"}
)


class TrainConfig(JobConfig):
    """Fits the pose model and the loss head with Ray Train and writes a model bundle."""

    labelled: str = Field(description="the labelled table: a path or an s3:// URI")
    validation: str | None = Field(None, description="a labelled table that the bundle's metrics are measured on")
    out: str = Field(description="where the bundle goes")
    skeleton: str | None = Field(
        None,
        description="what the keypoints are: lsp, mpii, coco or a JSON file; if not given, what the table was written "
        "with, else the one with as many keypoints",
    )
    estimator: str = Field(
        "hourglass",
        description="hourglass: the paper's 2 stacks at 256 px; hourglass-small: at 64 px, for CPUs; vitpose:FOLDER: a "
        "checkpoint of transformers, fine-tuned; package.module:function: one of your own",
    )
    head: Literal["gap", "conv"] = Field("conv", description="the loss head: LL++ (gap) or LL++conv (conv)")
    ranking: Literal["ll", "ll++"] = Field("ll++", description="the head's objective: margin (ll) or KL (ll++)")
    pairs: Literal["half", "all"] = Field(
        "all", description="pairs of a batch that are ranked: the paper's half, or all"
    )
    epochs: int = Field(80, ge=1, description="passes over the table")
    batch_size: int = Field(16, ge=2, description="images of a step, of all workers together")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate of the estimator; falls along a cosine")
    head_learning_rate: float = Field(3e-4, gt=0, description="rate of the loss head; stays")
    augmentation: Literal["none", "light", "paper"] = Field(
        "paper", description="shift, scale, rotation and flip of training images; the paper's wants 80 epochs and more"
    )
    seed: int = Field(0, ge=0, description="of initial weights, order and augmentation")
    workers: int = Field(1, ge=0, description="Ray Train workers; 0 trains in this process, without Ray")
    cpus_per_worker: float = Field(2, gt=0, description="CPUs that a worker reserves and computes with")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that a worker reserves; 0 computes on CPUs")
    decode_threads: int = Field(2, ge=1, description="threads of a worker that decode images")
    address: str | None = Field(None, description="the Ray cluster; one is started on this machine if not given")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(TrainConfig, _train, arguments, command="train")


def _train(config: TrainConfig) -> int:
    with ConsoleProgress() as progress:
        record = train(config, progress)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(f"{record['num_rows']} labelled rows, {record['seconds']:.0f} s, {record['images_per_second']:.0f} images/s")
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


def train(config: TrainConfig, progress: ConsoleProgress) -> dict[str, Any]:
    """Trains as configured; returns the run's record."""
    from distributed.training.fitting import TrainingOptions
    from distributed.training.train import train_model

    if config.workers:
        from distributed.cluster import connect

        connect(config.address)
    options = TrainingOptions(
        estimator=config.estimator,
        head=config.head,
        ranking=config.ranking,
        pairs=config.pairs,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        augmentation=config.augmentation,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=config.gpus_per_worker,
        decode_threads=config.decode_threads,
    )
    return train_model(
        config.labelled,
        validation=config.validation,
        skeleton=config.skeleton,
        out=config.out,
        options=options,
        config=config.resolved(),
        ignored=_HOW,
        progress=progress,
    )


if __name__ == "__main__":
    sys.exit(main())
