"""Cost of the keypoint head and of a second view beside the estimator's forward pass, on one thread of the CPU."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP

ROUNDS = {"hourglass-small": 50, "hourglass": 12}
BATCH = {"hourglass-small": 64, "hourglass": 2}


def main() -> None:
    """Prints a table; forward pass, head and the two-view pass take turns, so that a busy machine hits all alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimators", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    torch.set_num_threads(1)
    print("| estimator | forward, ms an image | head, share of it | two views / one |\n| --- | --- | --- | --- |")
    for name in parser.parse_args().estimators:
        measure(name)


def measure(name: str) -> None:
    """Prints a row: medians of CPU seconds of the thread."""
    model = PoseModel(make_spec(name, method="keypoint", skeleton=LSP)).eval()
    size = model.spec.input_size
    images = torch.randn(BATCH[name], 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        heatmaps = model.estimator(images).heatmaps[:, -1].float()
        calls: dict[str, Callable[[], object]] = {
            "forward": lambda: model.estimator(images),
            "head": lambda: model.loss_head(heatmaps),
            "one": lambda: model.loss_head(model.estimator(images).heatmaps[:, -1].float()),
            "two": lambda: model.loss_head(
                model.estimator(images).heatmaps[:, -1].float(), model.mirrored_heatmaps(images)
            ),
        }
        seconds: dict[str, list[float]] = {key: [] for key in calls}
        for _ in range(ROUNDS[name]):
            for key, call in calls.items():
                started = time.thread_time()
                call()
                seconds[key].append(time.thread_time() - started)
    found = {key: statistics.median(values) for key, values in seconds.items()}
    forward = 1000 * found["forward"] / BATCH[name]
    print(
        f"| {name} | {forward:.2f} | {found['head'] / found['forward']:.1%} | {found['two'] / found['one']:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
