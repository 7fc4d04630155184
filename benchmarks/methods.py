"""Failure detection of each method against heatmap confidence, on rows that nothing has seen, over several seeds.

Methods of one seed share the estimator to the bit: heads never bend it. Bundles are kept, so that the same command goes
on, and judges again without training.

python benchmarks/methods.py --labelled LABELLED --validation VALIDATION --pool POOL_WITH_LABELS --out FOLDER
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distributed.evaluation.rows import evaluate_rows, observed
from distributed.runs.progress import silent
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.metrics import mean_of_top, spearman
from model.skeleton import LSP

SHARES = (0.01, 0.02, 0.05, 0.1)  # of the pool, the worst by each score
RESAMPLES = 200  # of images, in pairs: both scores on the same ones
NUM_BINS = 15
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The rows of a pool with a PCK, all (N,)."""

    scores: dict[str, Numbers]  # the worst highest
    true_loss: Numbers
    pck: Numbers
    expected_pck: Numbers

    def figures(self, name: str, rows: NDArray[np.int64] | slice = slice(None)) -> Numbers:
        """Spearman with the true loss and with 1 - PCK, and PCK of the worst shares."""
        score, pck = self.scores[name][rows], self.pck[rows]
        worst = mean_of_top(score, pck, shares=SHARES)
        return np.array([spearman(score, self.true_loss[rows]), spearman(score, 1 - pck), *worst])


def main() -> None:
    """Prints a row a score: means over seeds, and its difference from confidence with a 95 % interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("labelled", "validation", "pool", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["keypoint", "ll++", "ll", "ll++conv"])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--augmentation", default="light")
    options = parser.parse_args()
    judged = [judge(options, seed) for seed in options.seeds]
    accuracies = ", ".join(f"{each.pck.mean():.3f}" for each in judged)
    print(f"{len(judged[0].pck)} rows, seeds {options.seeds}; PCK of the estimators: {accuracies}")
    print("| score | rho(loss) | rho(1-PCK) | " + " | ".join(f"worst {share:.0%}" for share in SHARES) + " | ECE |")
    print("| --- |" + " --- |" * (3 + len(SHARES)))
    for name in judged[0].scores:
        print(row_of(name, judged))


def judge(options: argparse.Namespace, seed: int) -> Judged:
    """Predictions of all methods of one seed for the pool."""
    pool = freeze_labelled(locate(options.pool), skeleton=LSP)
    found: dict[str, pa.Table] = {}
    for method in options.methods:
        out = str(Path(options.out) / f"{method}-s{seed}")
        train_model(
            options.labelled,
            validation=options.validation,
            out=out,
            options=TrainingOptions(
                estimator="hourglass-small",
                method=method,
                epochs=options.epochs,
                learning_rate=4e-3,
                augmentation=options.augmentation,
                seed=seed,
                workers="0",
            ),
            config={"method": method, "seed": seed, "epochs": options.epochs},
            progress=silent,
        )
        bundle = read_bundle(locate(out))
        for views in (1, 2) if method == "keypoint" else (1,):
            name = method if views == 1 else f"{method}, 2 views"
            found[name] = evaluate_rows(bundle, pool, views=views)  # type: ignore[arg-type]
    first = observed(next(iter(found.values())))
    keep = first.is_judged
    scores = {"confidence": -first.confidence[keep]}
    scores |= {name: observed(table).predicted_loss[keep] for name, table in found.items()}
    return Judged(
        scores=scores,
        true_loss=first.true_loss[keep],
        pck=first.image_pck[keep],
        expected_pck=first.expected_pck[keep],
    )


def row_of(name: str, judged: list[Judged]) -> str:
    """Means over seeds; in brackets the difference from confidence and its interval, resampled within each seed."""
    mean = np.mean([each.figures(name) for each in judged], axis=0)
    cells = [f"{value:.3f}" for value in mean]
    if name != "confidence":
        rng = np.random.default_rng(0)
        gaps = np.mean([[gap(each, name, rng) for _ in range(RESAMPLES)] for each in judged], axis=0)
        low, high = np.percentile(gaps, [2.5, 97.5], axis=0)
        base = np.mean([each.figures("confidence") for each in judged], axis=0)
        cells = [
            f"{cell} ({value - least:+.3f}; {a:+.3f} to {b:+.3f})"
            for cell, value, least, a, b in zip(cells, mean, base, low, high, strict=True)
        ]
    error = np.mean([calibration_error(each.expected_pck, each.pck) for each in judged])
    return f"| {name} | " + " | ".join(cells) + f" | {f'{error:.3f}' if name == 'keypoint' else ''} |"


def gap(judged: Judged, name: str, rng: np.random.Generator) -> Numbers:
    """The score's figures less confidence's, on one resample of the images."""
    rows = rng.integers(len(judged.pck), size=len(judged.pck))
    return judged.figures(name, rows) - judged.figures("confidence", rows)


def calibration_error(expected: Numbers, found: Numbers) -> float:
    """Mean distance of found from expected PCK over bins of as many images each."""
    order = np.argsort(expected, kind="stable")
    bins = np.array_split(order, NUM_BINS)
    return float(np.average([abs(expected[b].mean() - found[b].mean()) for b in bins], weights=[len(b) for b in bins]))


if __name__ == "__main__":
    main()
