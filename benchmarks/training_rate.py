"""Images a second of training through Ray Train and Ray Data, against a plain PyTorch loop.

The plain loop is one process: all rows in memory, threads that decode a batch ahead, the same model and step. Rates are
of whole epochs but for the first, in which processes and kernels warm up. `benchmarks/gpu` compares without Ray.

python benchmarks/training_rate.py --num-rows 1536 --epochs 4 --rounds 3
"""

from __future__ import annotations

import argparse
import tempfile

import torch

from benchmarks.gpu.networks import photos
from benchmarks.gpu.training import Learner, as_table, epoch_rate, product_seconds, rate_of_epochs
from distributed.cluster.connection import connect
from distributed.ingest.fleet import write_fleet
from distributed.runs.progress import silent
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.pose_model import make_spec
from model.skeleton import LSP

DECODE_THREADS = 2


def main() -> None:
    """Prints a table, one line a round: both in turn, so that they meet the same machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, default=1536)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.cores)
    training = TrainingOptions(
        estimator="hourglass-small",
        augmentation="light",
        epochs=options.epochs,
        cpus_per_worker=options.cores,
        decode_threads=DECODE_THREADS,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_fleet(folder, seed=0, num_labelled=options.num_rows, num_pool=48, progress=silent)
        connect()
        print("| round | plain loop, images/s | Ray, images/s | Ray ÷ plain | Ray: start, s |")
        print("| --- | --- | --- | --- | --- |")
        for number in range(1, options.rounds + 1):
            plain = plain_rate(options.num_rows, training)
            through_ray, start_s = ray_rate(f"{folder}/labelled", f"{folder}/model-{number}", training)
            print(
                f"| {number} | {plain:.0f} | {through_ray:.0f} | {through_ray / plain:.2f} | {start_s:.1f} |",
                flush=True,
            )


def plain_rate(num_rows: int, options: TrainingOptions) -> float:
    """Images a second of the plain loop, on frames of the same fleet."""
    spec = make_spec(options.estimator, method=options.method, skeleton=LSP)
    learner = Learner(spec, options.fit, torch.device("cpu"))
    seconds = product_seconds(
        as_table(photos(num_rows)),
        learner,
        batch_size=options.batch_size,
        epochs=options.epochs,
        decode_threads=options.decode_threads,
    )
    return rate_of_epochs(num_rows, seconds)


def ray_rate(labelled: str, out: str, options: TrainingOptions) -> tuple[float, float]:
    """Images a second of Ray Train, and the seconds that are in no epoch."""
    record = train_model(labelled, out=out, options=options, config={}, progress=silent)
    rate, seconds = epoch_rate(out)
    return rate, record["seconds"] - seconds


if __name__ == "__main__":
    main()
