"""Which loss head finds the failures? All heads beside one estimator a seed, against heatmap confidence and random.

Heads read what the estimator puts out and never bend it: one estimator serves all, and they differ in nothing else.

python benchmarks/heads_on_lspet.py --labelled LABELLED --pool POOL_WITH_LABELS --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distributed.storage.location import locate
from distributed.tables.labelled import COLUMNS, Collator, freeze_labelled
from distributed.tables.manifest import Manifest
from distributed.tables.reader import plan_bins, read_bin
from distributed.tables.shuffle import shuffled_rows
from distributed.training.fitting import one_ahead
from model.augment import AUGMENTATIONS
from model.estimator import PoseOutput
from model.fit import Batch
from model.heatmap import decode_heatmaps, encode_heatmaps
from model.metrics import normalised_distances, pck, pck_per_image, spearman, torso_lengths
from model.objective import heatmap_loss, kl_ranking_loss, margin_ranking_loss
from model.pose_model import PoseModel, make_spec
from model.schedule import head_rate_share, rate_share
from model.skeleton import LSP

WORST_SHARE = 0.1


class Contender(NamedTuple):
    """A head and how it learns."""

    head: str
    ranking: str
    pairs: str
    taught_by: str = "all"  # rows: "all", "fitted" or "held out" ones


def main() -> None:
    """Prints a table of means over seeds, and one line a seed and contender as JSON where --out says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labelled", required=True)
    parser.add_argument("--pool", required=True, help="rows with labels, which no head ever sees")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--head-learning-rate", type=float, default=3e-4)
    parser.add_argument("--estimator", default="hourglass-small")
    parser.add_argument("--held-out-share", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="a file that results are added to, so that seeds may run one by one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for seed in options.seeds:
        found = run_seed(seed, options)
        results.append(found)
        if options.out:
            with Path(options.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, "held_out_share": options.held_out_share, "found": found}) + "\n")
    show(results)


def contenders(held_out_share: float) -> list[Contender]:
    """All that run beside one estimator."""
    if held_out_share:
        return [
            Contender(head, "ll++", "all", taught_by)
            for head in ("conv", "outputs")
            for taught_by in ("all", "fitted", "held out")
        ]
    return [
        Contender(head, ranking, pairs)
        for head in ("gap", "conv", "outputs")
        for ranking in ("ll", "ll++")
        for pairs in ("half", "all")
    ]


def run_seed(seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measures of each contender, of confidence, of random and of the oracle, on the pool."""
    torch.manual_seed(seed)
    names = contenders(options.held_out_share)
    models = [PoseModel(make_spec(options.estimator, head=name.head, skeleton=LSP)) for name in names]
    heads = nn.ModuleList(model.loss_head for model in models)
    model = models[0].to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([{"params": model.estimator.parameters()}, {"params": heads.parameters()}])
    labelled = freeze_labelled(locate(options.labelled), expected_keypoints=LSP.num_keypoints)
    num_steps = options.epochs * -(-labelled.num_rows // options.batch_size)
    started, step = time.monotonic(), 0
    with ThreadPoolExecutor(options.threads) as threads:
        for epoch in range(options.epochs):
            collate = Collator(
                spec=model.spec,
                augmentation=AUGMENTATIONS["light"],
                seed=seed,
                epoch=epoch,
                held_out_share=options.held_out_share,
                threads=threads,
                skipped=Counter(),
            )
            rows = shuffled_rows(
                labelled, columns=COLUMNS, batch_size=options.batch_size, seed=seed * 1_000_003 + epoch
            )
            model.train()
            heads.train()
            for made in one_ahead(rows, collate):
                rates = optimizer.param_groups
                rates[0]["lr"] = options.learning_rate * rate_share("cosine", step / num_steps)
                rates[1]["lr"] = options.head_learning_rate * head_rate_share(step / num_steps)
                train_step(model, heads, names, optimizer, made.batch)
                step += 1
            print(f"seed {seed}: epoch {epoch + 1}/{options.epochs}, {time.monotonic() - started:.0f} s", flush=True)
        pool = freeze_labelled(locate(options.pool), expected_keypoints=LSP.num_keypoints)
        return measure(model, heads, names, pool, threads)


def train_step(
    model: PoseModel, heads: nn.ModuleList, names: list[Contender], optimizer: torch.optim.Optimizer, batch: Batch
) -> None:
    """One step of the estimator and of all heads, each with its own objective."""
    output, true_loss = forward(model, batch)
    known = batch.labelled.any(dim=1)
    fitted = known & ~batch.is_held_out
    taught_by = {"all": known, "fitted": fitted, "held out": known & batch.is_held_out}
    total = (true_loss * fitted).sum() / fitted.sum().clamp(min=1)
    for name, head in zip(names, heads, strict=True):
        rank = margin_ranking_loss if name.ranking == "ll" else kl_ranking_loss
        rows = taught_by[name.taught_by]
        total = total + rank(head(output)[rows], true_loss.detach()[rows], pairs=name.pairs)  # type: ignore[arg-type]
    optimizer.zero_grad()
    total.backward()
    optimizer.step()


def forward(model: PoseModel, batch: Batch) -> tuple[PoseOutput, Tensor]:
    """What heads may read, detached, and the true losses, which teach the estimator."""
    spec = model.spec
    images = (batch.pixels.permute(0, 3, 1, 2).float() - model.pixel_mean) / model.pixel_std
    output = model.estimator(images)
    targets = encode_heatmaps(
        batch.keypoints, input_size=spec.input_size, heatmap_size=spec.heatmap_size, sigma=spec.sigma
    )
    read = PoseOutput(output.heatmaps.detach(), tuple(feature.detach() for feature in output.features))
    return read, heatmap_loss(output.heatmaps, targets, batch.labelled)


def measure(
    model: PoseModel, heads: nn.ModuleList, names: list[Contender], pool: Manifest, threads: ThreadPoolExecutor
) -> dict[str, dict[str, float]]:
    """Spearman correlation with the true loss and with 1 - PCK, and PCK of the tenth that looks worst, by score."""
    model.eval()
    heads.eval()
    true, distances, scores = [], [], []
    with torch.inference_mode():
        for batch in plain_batches(model, pool, threads):
            output, true_loss = forward(model, batch)
            pose = decode_heatmaps(output.heatmaps[:, -1], input_size=model.spec.input_size)
            keypoints, labelled = batch.keypoints.numpy(), batch.labelled.numpy()
            lengths = torso_lengths(keypoints, labelled, LSP)
            distances.append(
                normalised_distances(pose.keypoints.numpy(), keypoints, labelled, reference_lengths=lengths)
            )
            true.append(true_loss.numpy())
            scores.append(torch.stack([-pose.peaks.mean(dim=1), *(head(output) for head in heads)]).numpy())
    is_known = np.concatenate(true) > 0
    losses, judged = np.concatenate(true)[is_known], np.concatenate(distances)[is_known]
    columns = np.concatenate(scores, axis=1)[:, is_known]
    random = np.random.default_rng(0).random(len(losses))
    rows = {"confidence": columns[0], "random": random, "oracle": losses}
    rows |= {"/".join(name): column for name, column in zip(names, columns[1:], strict=True)}
    return {name: measures(score, losses, judged) for name, score in rows.items()} | {"all": {"pck": pck(judged)}}


def plain_batches(model: PoseModel, pool: Manifest, threads: ThreadPoolExecutor) -> Iterator[Batch]:
    """All rows of the pool, without augmentation."""
    collate = Collator(
        spec=model.spec,
        augmentation=AUGMENTATIONS["none"],
        seed=0,
        epoch=0,
        held_out_share=0.0,
        threads=threads,
        skipped=Counter(),
    )
    for bin_ in plan_bins(pool.segments):
        for rows in read_bin(pool.location, bin_, columns=COLUMNS):
            for start in range(0, len(rows), 64):
                yield collate(rows.slice(start, 64))


def measures(score: np.ndarray, losses: np.ndarray, judged: np.ndarray) -> dict[str, float]:
    """Of one score; greater means worse."""
    per_image = pck_per_image(judged)
    has_pck = ~np.isnan(per_image)
    worst = np.argsort(-score, kind="stable")[: round(WORST_SHARE * len(score))]
    return {
        "spearman": spearman(score, losses),
        "spearman_pck": spearman(score[has_pck], 1 - per_image[has_pck]),
        "pck_of_worst": pck(judged[worst]),
    }


def show(results: list[dict[str, dict[str, float]]]) -> None:
    """Mean and standard deviation over seeds."""
    every = np.array([found["all"]["pck"] for found in results])
    print(f"\n{len(results)} seeds; PCK@0.2 of the pool {every.mean():.3f} ± {every.std():.3f}")
    print("| score | Spearman with true loss | Spearman with 1 - PCK | PCK of the worst tenth |")
    print("| --- | --- | --- | --- |")
    for name in results[0]:
        if name != "all":
            cells = [np.array([found[name][key] for found in results]) for key in results[0][name]]
            print(f"| {name} | " + " | ".join(f"{cell.mean():.3f} ± {cell.std():.3f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
