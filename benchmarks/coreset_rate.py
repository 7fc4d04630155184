"""Seconds of a coreset pick against a plain NumPy loop, equality of the picks, and the cost of sharding.

The loop is what one would write by hand: all embeddings as float32 in one array, their squared lengths computed once,
one matrix-vector product a pick (by BLAS, on all cores). Its picks are of rounded distances, so the picks are compared
with those of a second loop in float64 on the same grid, where both are exact.

  kinds of embeddings: `gauss`, independent; `drives`, 24 near-duplicates of each; `flat`, a 3-dimensional cube in all
  dimensions, where the smallest distances fall fast and little work is saved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray

from distributed.cluster.connection import connect
from distributed.selection.diversity import shards_in_actors
from distributed.selection.k_centre import CentreShard, Shard, ShardBest, ShardStep, grid_scale, k_centre, on_grid

_KINDS = ("gauss", "drives", "flat")


def make_embeddings(kind: str, *, num_rows: int, dim: int) -> np.ndarray:
    """(n, D) float16."""
    rng = np.random.default_rng(0)
    if kind == "flat":
        basis = rng.standard_normal((3, dim), dtype=np.float32)
        return (rng.random((num_rows, 3), dtype=np.float32) @ basis).astype(np.float16)
    rows = rng.standard_normal((num_rows, dim), dtype=np.float32)
    if kind == "drives":
        rows *= 0.1
        rows += np.repeat(rng.standard_normal((num_rows // 24 + 1, dim), dtype=np.float32), 24, axis=0)[:num_rows]
    return rows.astype(np.float16)


def numpy_loop(points: np.ndarray, *, k: int) -> tuple[list[int], float]:
    """The picks (from row 0 on), and seconds a pick."""
    norms = np.einsum("nd,nd->n", points, points)
    distances = np.full(len(points), np.inf, points.dtype)
    picks = [0]
    started = time.perf_counter()
    for _ in range(k - 1):
        row = picks[-1]
        np.minimum(distances, points @ (-2 * points[row]) + (norms + norms[row]), out=distances)
        distances[row] = -1
        picks.append(int(distances.argmax()))
    return picks, (time.perf_counter() - started) / max(1, k - 1)


def load_rows(path: str, rows: slice, dim: int) -> pa.Table:
    """Every so manieth row as a table; ids go with the row numbers, so that both loops break ties alike."""
    embeddings = np.load(path, mmap_mode="r")
    numbers = range(*rows.indices(len(embeddings)))
    return pa.table(
        {
            "sample_id": pa.array([f"s{i:09d}" for i in numbers]),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(embeddings[rows]).ravel()), dim
            ),
        }
    )


def loaders_of(path: str, *, num_shards: int, dim: int) -> list[Callable[[], pa.Table]]:
    """One a shard; each shard has every so manieth row."""
    return [partial(load_rows, path, slice(shard, None, num_shards), dim) for shard in range(num_shards)]


class TimedShard:
    """A shard and the times of its calls."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self.loaded = 0.0
        self.rounds: list[float] = []  # seconds

    def extent(self) -> tuple[int, int, float]:
        """As in `Shard`; the rows are loaded by it."""
        found = self._shard.extent()
        self.loaded = time.perf_counter()
        return found

    def advance(self, step: ShardStep) -> ShardBest:
        """As in `Shard`."""
        started = time.perf_counter()
        found = self._shard.advance(step)
        self.rounds.append(time.perf_counter() - started)
        return found


class Clock(NamedTuple):
    """Times of a picking on actors."""

    loading: float
    picking: float  # from when all rows are loaded
    rounds: list[float]  # seconds that the driver waited for the shards


def on_actors(path: str, *, num_shards: int, dim: int, k: int) -> tuple[list[str], Clock]:
    """The picks, and what they took."""
    begun = time.perf_counter()
    with shards_in_actors(loaders_of(path, num_shards=num_shards, dim=dim), cpus_per_actor=0.25) as shards:
        timed = [TimedShard(shard) for shard in shards]
        picks = k_centre(timed, k=k)
        ended, loaded = time.perf_counter(), max(shard.loaded for shard in timed)
    rounds = [max(each) for each in zip(*(shard.rounds for shard in timed), strict=True)]
    return picks.keys, Clock(loaded - begun, ended - loaded, rounds)


def compare(kind: str, *, num_rows: int, dim: int, k: int, shards: Sequence[int], place: str) -> None:
    """Prints the rows of one kind."""
    embeddings = make_embeddings(kind, num_rows=num_rows, dim=dim)
    path = str(Path(place) / f"{kind}.npy")
    np.save(path, embeddings)
    _, loop = numpy_loop(embeddings.astype(np.float32), k=k)
    scale = grid_scale(float(np.abs(embeddings).max()), dim=dim)
    exact, exact_loop = numpy_loop(on_grid(embeddings, scale), k=k)
    expected = [f"s{i:09d}" for i in exact]
    print(f"| {kind} | loop, float32 | {1e3 * loop:.2f} | 1 | | | | |", flush=True)
    print(
        f"| {kind} | loop, float64 on the grid | {1e3 * exact_loop:.2f} | {exact_loop / loop:.2f} | (these) | | | |",
        flush=True,
    )
    ids = pa.array([f"s{i:09d}" for i in range(num_rows)])
    started = time.perf_counter()
    picks = k_centre([CentreShard(embeddings, keys=ids)], k=k).keys
    each = (time.perf_counter() - started) / k
    print(f"| {kind} | one process | {1e3 * each:.2f} | {each / loop:.2f} | {picks == expected} | | | |", flush=True)
    del embeddings, ids
    for num_shards in shards:
        picks, clock = on_actors(path, num_shards=num_shards, dim=dim, k=k)
        each, rounds = clock.picking / k, clock.rounds
        label = f"{num_shards} actor{'s' * (num_shards > 1)}"
        print(
            f"| {kind} | {label} | {1e3 * each:.2f} | {each / loop:.2f} | {picks == expected} "
            f"| {len(rounds)} | {1e3 * sum(rounds) / len(rounds):.0f} | {clock.loading:.1f} |",
            flush=True,
        )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=300)
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--actors", nargs="*", type=int, default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    connect()
    print(f"{arguments.num_rows} x {arguments.dim}, {arguments.k} picks\n")
    columns = [
        "embeddings",
        "how",
        "ms a pick",
        "÷ loop",
        "same picks",
        "rounds",
        "ms of the shards a round",
        "start, s",
    ]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    with TemporaryDirectory() as place:
        for kind in arguments.kinds:
            compare(
                kind,
                num_rows=arguments.num_rows,
                dim=arguments.dim,
                k=arguments.k,
                shards=arguments.actors,
                place=place,
            )
    ray.shutdown()


if __name__ == "__main__":
    main()
