"""Near-duplicates that diversity, caps and the minimum distance avoid, and the true loss that it costs.

A pool of the synthetic fleet, whose labels are known, is scored with embeddings by a bundle. For each budget and
strategy: the share of near-duplicates (picks with another pick of the same drive at most 2 frames, 0.2 s, away) and the
mean true loss of the picks, both against plain loss order. `frames` is not a strategy: it knows which frames are near,
and takes the highest losses at least 3 frames apart. No way to avoid near-duplicates altogether does much better.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from distributed.evaluation.rows import evaluate_rows
from distributed.ingest.fleet import write_fleet
from distributed.runs.progress import silent
from distributed.runs.record import read_run
from distributed.scoring.options import ScoringOptions
from distributed.scoring.score import score_pool
from distributed.selection.diversity import diversify, drop_near, embeddings_of, load_shard, with_embedding
from distributed.selection.k_centre import k_centre
from distributed.selection.topk import top_k
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.tables.parquet import read_table

_NEAR = 2  # frames


class Fleet:
    """The scored pool, and what is true of it."""

    def __init__(self, place: Path, *, model: str, num_labelled: int, num_pool: int) -> None:
        write_fleet(str(place), seed=0, num_labelled=num_labelled, num_pool=num_pool)
        options = ScoringOptions(embeddings=True, debug=True)
        score_pool(f"{place}/pool", model=model, out=f"{place}/scores", options=options, config={}, progress=silent)
        self.scores = pa.concat_tables(
            read_table(locate(f"{place}/scores/{part}"))
            for part in read_run(locate(f"{place}/scores"), expected="scores")["parts"]
        )
        bundle = read_bundle(locate(model))
        truth = freeze_labelled(locate(f"{place}/truth"), skeleton=bundle.spec.skeleton)
        rows = evaluate_rows(bundle, truth)
        self.true_loss = dict(zip(rows["sample_id"].to_pylist(), rows["true_loss"].to_pylist(), strict=True))

    def near_share(self, ids: list[str]) -> float:
        """Picks with another pick of the drive near by; an id ends in -f and the number of the frame."""
        places = [(name[:-6], int(name[-4:])) for name in ids]
        taken = set(places)
        steps = [step for step in range(-_NEAR, _NEAR + 1) if step]
        return float(np.mean([any((drive, frame + step) in taken for step in steps) for drive, frame in places]))

    def mean_true_loss(self, ids: list[str]) -> float:
        """Mean true loss of the picks that have a label."""
        return float(np.nanmean([self.true_loss[name] for name in ids]))


def frames_apart(fleet: Fleet, *, k: int) -> list[str]:
    """The highest losses at least 3 frames apart."""
    taken: dict[str, list[int]] = {}
    picks: list[str] = []
    for name in top_k(fleet.scores, k=len(fleet.scores))["sample_id"].to_pylist():
        drive, frame = name[:-6], int(name[-4:])
        if len(picks) < k and all(abs(frame - other) > _NEAR for other in taken.get(drive, [])):
            taken.setdefault(drive, []).append(frame)
            picks.append(name)
    return picks


def strategies(
    fleet: Fleet, *, k: int, d: float, over_fetch: int, cap: int, guard: float
) -> Iterator[tuple[str, list[str]]]:
    """The picks of what is compared, by name."""
    head = top_k(fleet.scores, k=over_fetch * k)
    yield "loss", ids_of(top_k(fleet.scores, k=k))
    yield f"loss, {cap} a drive", ids_of(top_k(fleet.scores, k=k, max_per_group=cap))
    yield f"loss, guard {guard}", ids_of(drop_near(head, k=k, min_distance=guard))
    for limits in ({}, {"min_distance": guard}, {"max_per_group": cap}, {"max_per_group": cap, "min_distance": guard}):
        name = f"hybrid d={d}" + (f", {cap} a drive" if "max_per_group" in limits else "")
        name += f", guard {guard}" if "min_distance" in limits else ""
        yield name, ids_of(diversify(head, k=k, diversity=d, **limits))
    yield "coreset", k_centre([load_shard(lambda: fleet.scores)], k=k).keys
    yield "(frames)", frames_apart(fleet, k=k)


def ids_of(rows: pa.Table) -> list[str]:
    """Their sample ids."""
    return rows["sample_id"].to_pylist()


def frame_distances(rows: pa.Table) -> dict[str, np.ndarray]:
    """Distances in embeddings between neighbours of a drive, and between random rows of different drives.

    A `--min-distance` belongs between the two.
    """
    known = with_embedding(rows)
    known = known.set_column(
        known.schema.get_field_index("pool_file"), "pool_file", known["pool_file"].cast(pa.string())
    )
    known = known.sort_by([(name, "ascending") for name in ("pool_file", "pool_row")])
    points, groups = embeddings_of(known).astype(np.float64), np.array(known["group"].to_pylist())
    first, second = np.random.default_rng(0).integers(len(known), size=(2, 20_000))
    follows, differs = np.flatnonzero(groups[1:] == groups[:-1]), groups[first] != groups[second]
    return {
        "consecutive": np.linalg.norm(points[follows + 1] - points[follows], axis=1),
        "unrelated": np.linalg.norm(points[first[differs]] - points[second[differs]], axis=1),
    }


def main() -> None:
    """Prints one table a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a bundle, e.g. that of `lossight demo`")
    parser.add_argument("--num-labelled", type=int, default=1500, help="what the bundle was trained on")
    parser.add_argument("--num-pool", type=int, default=24_000)
    parser.add_argument("--budgets", nargs="+", type=int, default=[60, 100, 240])
    parser.add_argument("--diversity", type=float, default=0.3)
    parser.add_argument("--over-fetch", type=int, default=20)
    parser.add_argument("--max-per-drive", type=int, default=2)
    parser.add_argument("--min-distance", type=float, default=1.0)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-diversity")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fleet = Fleet(
        arguments.place, model=arguments.model, num_labelled=arguments.num_labelled, num_pool=arguments.num_pool
    )
    for name, distances in frame_distances(fleet.scores).items():
        quantiles = [f"{at} quantile {np.quantile(distances, at):.2f}" for at in (0.1, 0.25, 0.5, 0.75, 0.9)]
        print(f"distance, {name} rows:", ", ".join(quantiles))
    for k in arguments.budgets:
        print(f"\n| {k} of {len(fleet.scores)} | picks | near-duplicates | loss's ÷ this | mean true loss | ÷ loss's |")
        print("|---|---|---|---|---|---|")
        base: tuple[float, float] | None = None
        picks_of = strategies(
            fleet,
            k=k,
            d=arguments.diversity,
            over_fetch=arguments.over_fetch,
            cap=arguments.max_per_drive,
            guard=arguments.min_distance,
        )
        for name, ids in picks_of:
            near, loss = fleet.near_share(ids), fleet.mean_true_loss(ids)
            base = base or (near, loss)
            ratio = f"{base[0] / near:.1f}" if near else "all gone"
            print(f"| {name} | {len(ids)} | {near:.1%} | {ratio} | {loss:.5f} | {loss / base[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
