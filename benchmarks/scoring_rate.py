"""Images a second of scoring through Ray Data, against a bare loop in one process.

The bare loop is what one would write by hand: pyarrow reads, two threads decode one batch ahead, the model computes.
Both are measured in the same run, in turns, in their steady state: from a fifth of the rows to nine tenths. With
--model near-free a stand-in for the model costs nothing, so that what is left is the pipeline itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from pools import make_pool
from torch import nn

import distributed.scoring.pipeline
import distributed.storage.bundles
from distributed.cluster.connection import connect
from distributed.scoring.options import ScoringOptions
from distributed.scoring.score import score_pool
from distributed.scoring.scorer import LossScorer
from distributed.storage.bundles import read_bundle, write_bundle
from distributed.storage.location import locate
from distributed.tables.reader import boxes, image_buffers
from model.bundle import Bundle, dump_bundle
from model.example import make_crop
from model.pose_model import PoseModel, Prediction, make_spec
from model.skeleton import LSP

_FROM, _TO = 0.2, 0.9  # of the rows: the steady state


class NearFreeModel(nn.Module):
    """Answers at once: every heatmap flat, every predicted loss the mean of a few pixels."""

    def __init__(self, model: PoseModel) -> None:
        super().__init__()
        self.spec, self.embedding_dim = model.spec, model.embedding_dim

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """The prediction of crops (B, S, S, 3)."""
        size, count = self.spec.heatmap_size, self.spec.skeleton.num_keypoints
        heatmaps = torch.zeros(1).expand(len(pixels), 1, count, size, size)
        miss, embedding = torch.full((len(pixels), count), torch.nan), torch.zeros(len(pixels), self.embedding_dim)
        return Prediction(heatmaps, pixels[:, 0, 0].float().mean(dim=1), miss, embedding)


class NearFreeScorer(LossScorer):
    """A scorer of near-free predictions."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        distributed.storage.bundles.read_bundle = lambda place: free_of_cost(read_bundle(place))
        super().__init__(*arguments, **options)


def free_of_cost(bundle: Bundle) -> Bundle:
    """The bundle with a near-free model in it."""
    return dataclasses.replace(bundle, model=NearFreeModel(bundle.model))


def bare_loop(pool: str, model: str, *, is_free: bool, batch_size: int) -> float:
    """Images a second of the loop in one process."""
    bundle = read_bundle(locate(model))
    network: nn.Module = bundle.model.to(memory_format=torch.channels_last).eval()
    network = NearFreeModel(bundle.model) if is_free else network
    done, marks = 0, Marks(num_rows_of(pool))
    with ThreadPoolExecutor(2) as threads, torch.inference_mode():

        def batches() -> Iterator[Any]:
            waiting = None
            for path in sorted(Path(pool).rglob("*.parquet")):
                for rows in pq.ParquetFile(path, page_checksum_verification=True).iter_batches(batch_size):
                    made = threads.map(
                        lambda *row: make_crop(*row, spec=bundle.spec), image_buffers(rows), boxes_of(rows)
                    )
                    if waiting is not None:
                        yield waiting
                    waiting = made
            yield waiting

        for crops in batches():
            pixels = np.stack([crop.pixels for crop in crops])
            prediction = network(torch.from_numpy(pixels))
            prediction.predicted_loss.numpy(), prediction.heatmaps[:, -1].amax(dim=(2, 3)).mean(dim=1).numpy()
            done += len(pixels)
            marks("score", done, marks.total)
    return marks.rate()


def num_rows_of(pool: str) -> int:
    """Rows of a pool, from its footers."""
    return sum(pq.read_metadata(path).num_rows for path in Path(pool).rglob("*.parquet"))


def boxes_of(rows: Any) -> Any:
    """The boxes of a record batch."""
    import pyarrow as pa

    return boxes(pa.Table.from_batches([rows]))


def pipeline(pool: str, model: str, *, is_free: bool, in_process: bool = False, **scorer: Any) -> tuple[float, float]:
    """Images a second in the steady state, and seconds until the first image was scored."""
    out = tempfile.mkdtemp(dir=Path(pool).parent)
    started, marks = time.perf_counter(), Marks(num_rows_of(pool))

    distributed.scoring.pipeline.LossScorer = NearFreeScorer if is_free else LossScorer
    # As the command does by default: here two threads decode; under Ray each core has an actor and its thread.
    options = ScoringOptions(
        decode_threads=2 if in_process else 1,
        **scorer,
        debug=in_process,
    )
    score_pool(pool, model=model, out=f"{out}/scores", options=options, config={}, progress=marks)
    shutil.rmtree(out)
    return marks.rate(), marks.first - started


class Marks:
    """A progress that notes when how many rows were done."""

    def __init__(self, total: int) -> None:
        self.total, self.first = total, 0.0
        self.marks: list[tuple[float, int]] = []

    def __call__(self, stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        """So many rows are done now."""
        del stage, total, num_errors, note
        now = time.perf_counter()
        self.first = self.first or (now if done else 0.0)
        if _FROM * self.total <= done <= _TO * self.total:
            self.marks.append((now, done))

    def rate(self) -> float:
        """Rows a second in between."""
        (first, some), (last, most) = self.marks[0], self.marks[-1]
        return (most - some) / (last - first)


def make_model(place: str) -> None:
    """Leaves an untrained small model at a location: what it costs does not depend on its weights."""
    torch.manual_seed(0)
    model = PoseModel(make_spec("hourglass-small", method="ll++conv", skeleton=LSP))
    write_bundle(locate(place), dump_bundle(model, training={}, metrics={}))


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, default=24_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--model", choices=["small", "near-free"], default="small")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-bench")
    arguments = parser.parse_args()
    is_free = arguments.model == "near-free"
    pool = make_pool(arguments.place / f"pool-{arguments.num_rows}", num_rows=arguments.num_rows, num_files=4)
    model = str(arguments.place / "model")
    make_model(model)
    connect()
    print("| round | bare loop, images/s | one process, images/s | Ray, images/s | Ray / bare | first image after, s |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for index in range(arguments.rounds):
        bare = bare_loop(pool, model, is_free=is_free, batch_size=arguments.batch_size)
        alone, _ = pipeline(pool, model, is_free=is_free, batch_size=arguments.batch_size, in_process=True)
        rate, start = pipeline(pool, model, is_free=is_free, batch_size=arguments.batch_size)
        ratios.append(rate / bare)
        print(f"| {index + 1} | {bare:.0f} | {alone:.0f} | {rate:.0f} | {ratios[-1]:.2f} | {start:.1f} |", flush=True)
    print(f"\nmedian of Ray / bare: {statistics.median(ratios):.2f}; {arguments.model} model")
    ray.shutdown()


if __name__ == "__main__":
    main()
