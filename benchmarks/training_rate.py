"""How many images a second does training through Ray Train and Ray Data give, against a plain PyTorch loop?

The plain loop is one process: all rows in memory, threads that decode a batch ahead, the same model and step. Rates are
of whole epochs but for the first, in which processes and kernels warm up.

python benchmarks/training_rate.py --num-rows 1536 --epochs 4 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from distributed.cluster.connection import connect
from distributed.ingest.fleet import write_fleet
from distributed.runs.progress import silent
from distributed.storage.location import locate
from distributed.tables.labelled import COLUMNS
from distributed.tables.parquet import read_table
from distributed.training.data import Collator, one_ahead
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.example import AUGMENTATIONS
from model.fit import make_optimizer, train_step
from model.pose_model import PoseModel, make_spec
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
            plain = plain_rate(f"{folder}/labelled", training)
            through_ray, start_s = ray_rate(f"{folder}/labelled", f"{folder}/model-{number}", training)
            print(
                f"| {number} | {plain:.0f} | {through_ray:.0f} | {through_ray / plain:.2f} | {start_s:.1f} |",
                flush=True,
            )


def plain_rate(labelled: str, options: TrainingOptions) -> float:
    """Images a second of the plain loop."""
    files = sorted(Path(labelled).rglob("*.parquet"))
    rows = pa.concat_tables([read_table(locate(str(file))).select(COLUMNS) for file in files])
    torch.manual_seed(0)
    model = PoseModel(make_spec(options.estimator, method=options.method, skeleton=LSP)).to(
        memory_format=torch.channels_last
    )
    optimizer = make_optimizer(model, options.fit)
    seconds = []
    with ThreadPoolExecutor(options.decode_threads) as threads:
        for epoch in range(options.epochs):
            started = time.perf_counter()
            collate = Collator(
                spec=model.spec,
                augmentation=AUGMENTATIONS[options.augmentation],
                seed=0,
                epoch=epoch,
                threads=threads,
            )
            model.train()
            for made in one_ahead(batches(rows, options.batch_size, seed=epoch), collate):
                train_step(model, optimizer, [made.batch], spec=model.spec, options=options.fit)
            seconds.append(time.perf_counter() - started)
    return len(rows) * (options.epochs - 1) / sum(seconds[1:])


def batches(rows: pa.Table, batch_size: int, *, seed: int) -> Iterator[pa.Table]:
    """The rows in a random order."""
    order = np.random.default_rng(seed).permutation(len(rows))
    for start in range(0, len(rows), batch_size):
        yield rows.take(pa.array(order[start : start + batch_size]))


def ray_rate(labelled: str, out: str, options: TrainingOptions) -> tuple[float, float]:
    """Images a second of Ray Train, and the seconds that are in no epoch."""
    record = train_model(labelled, out=out, options=options, config={}, progress=silent)
    epochs = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rate = sum(epoch["num_rows"] for epoch in epochs[1:]) / sum(epoch["seconds"] for epoch in epochs[1:])
    return rate, record["seconds"] - sum(epoch["seconds"] for epoch in epochs)


if __name__ == "__main__":
    main()
