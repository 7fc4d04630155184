"""Is `lossight score` with default options ever slower than the loop one would write with PyTorch alone?

The plain loop is a process of its own: a Dataset over the Parquet rows, a DataLoader with two workers and batches of
16, the model as it was trained (batch norms not folded), predicted loss and confidence kept. Both decode and crop with
`make_crop`. Seconds are those of whole processes, in turns; CPU seconds, which other work on the machine disturbs less,
are of a process and its children.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from pools import make_pool
from torch.utils.data import DataLoader, Dataset

from distributed.storage.bundles import read_bundle, write_bundle
from distributed.storage.location import locate
from model.bundle import dump_bundle
from model.choices import MethodName
from model.example import make_crop
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP

_MODELS: dict[str, tuple[str, MethodName]] = {
    "paper": ("hourglass", "ll++conv"),
    "small": ("hourglass-small", "ll++conv"),
}


class Rows(Dataset[Any]):
    """The crops of a pool."""

    def __init__(self, pool: str, spec: Any) -> None:
        tables = [pq.read_table(path, columns=["image", "box"]) for path in sorted(Path(pool).rglob("*.parquet"))]
        self._rows = [(image, box) for table in tables for image, box in zip(*table.to_pydict().values(), strict=True)]
        self._spec = spec

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        image, box = self._rows[index]
        return make_crop(image, box and np.array(box), spec=self._spec).pixels


def plain_loop(pool: str, model: str) -> None:
    """The loop that one would write."""
    bundle = read_bundle(locate(model))
    network, losses, confidences = bundle.model.eval(), [], []
    with torch.inference_mode():
        for pixels in DataLoader(Rows(pool, bundle.spec), batch_size=16, num_workers=2):
            prediction = network(pixels)
            losses.append(prediction.predicted_loss)
            confidences.append(prediction.heatmaps[:, -1].amax(dim=(2, 3)).mean(dim=1))
    print(len(torch.cat(losses)), float(torch.cat(confidences).mean()))


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds by the clock and of the CPU of a whole process and its children."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(_MODELS), default="paper")
    parser.add_argument("--num-rows", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--score", default="", help="further options of score, such as --debug or --ray")
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-plain")
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain_loop(*arguments.plain)
        return
    pool = make_pool(arguments.place / f"pool-{arguments.num_rows}", num_rows=arguments.num_rows, num_files=1)
    model = str(arguments.place / f"model-{arguments.model}")
    estimator, method = _MODELS[arguments.model]
    torch.manual_seed(0)
    network = PoseModel(make_spec(estimator, method=method, skeleton=LSP))
    write_bundle(locate(model), dump_bundle(network, training={}, metrics={}))
    print("| round | plain loop, s | score, s | times as fast | plain loop, CPU s | score, CPU s | ratio |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for index in range(arguments.rounds):
        with tempfile.TemporaryDirectory(dir=arguments.place) as out:
            plain = measure([sys.executable, __file__, "--plain", pool, model])
            ours = ["score", "--pool", pool, "--model", model, "--out", f"{out}/scores", *arguments.score.split()]
            score = measure([sys.executable, "-m", "jobs.cli", *ours])
        ratios.append(plain[0] / score[0])
        print(
            f"| {index + 1} | {plain[0]:.1f} | {score[0]:.1f} | {ratios[-1]:.2f} | {plain[1]:.1f} | {score[1]:.1f} | "
            f"{plain[1] / score[1]:.2f} |",
            flush=True,
        )
    print(
        f"\nmedian: {statistics.median(ratios):.2f} times as fast; {arguments.model} model, {arguments.num_rows} images"
    )


if __name__ == "__main__":
    main()
