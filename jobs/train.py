"""`lossight train`: labelled rows into a model bundle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from distributed.training.options import TrainOptions
from jobs.console import ConsoleProgress, counts, format_seconds, number, say
from jobs.run import DONE, run_job, stopping_in_order
from jobs.select import warnings


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(TrainOptions, _train, arguments, command="train")


def _train(options: TrainOptions) -> int:
    with ConsoleProgress() as progress, stopping_in_order() as stop:
        record = train(options, progress, should_stop=stop.is_asked)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {options.out}")
    history = record["metrics"]["history"]
    done = f"{record['num_rows']} labelled rows, {len(history)} epochs, {format_seconds(record['seconds'])}"
    if history:
        done += f", {record['images_per_second']:.0f} images/s; the bundle is that of epoch {record['epoch']}"
    say(done)
    if history and history[-1]["pairs_per_step"]:
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
    for line in warnings(record):
        say(line)
    return DONE


def train(
    options: TrainOptions, progress: ConsoleProgress, *, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Trains as configured; returns the run's record."""
    from distributed.training.train import train_model

    return train_model(
        options.labelled,
        validation=options.validation,
        image_root=options.image_root,
        skeleton=options.skeleton,
        out=options.out,
        options=options,
        config=options.resolved(),
        ignored=TrainOptions.undecisive(),
        address=options.address,
        progress=progress,
        should_stop=should_stop,
    )


if __name__ == "__main__":
    sys.exit(main())
