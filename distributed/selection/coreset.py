"""k-centre greedy (coreset) selection: each pick is the row farthest from all that is labelled or picked so far.

On one machine or on Ray, with any sharding, the picks are the same: distances are exact (see `distances`). Source:
Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, algorithm 1.
"""

# n rows, D embedding, p centres

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.farthest import Picks, pick_farthest
from distributed.selection.shard import Candidates, CoresetShard, Step


class Limits(TypedDict, total=False):
    """What every form of the algorithm takes besides its rows; see `farthest.pick_farthest`."""

    centres: NDArray[np.generic] | None  # (p, D) embeddings of what is labelled
    max_per_group: int | None
    min_distance: float  # Euclidean: once the farthest row is nearer, the picking ends


def k_centre_greedy(
    embeddings: NDArray[np.generic],
    *,
    sample_ids: pa.Array,
    k: int,
    groups: pa.Array | None = None,
    **limits: Unpack[Limits],
) -> Picks:
    """Up to `k` ids in the order of picking, and the squared distance of each from the nearest centre by then.

    Ties in distance go to the smaller id. Without centres the first pick is the smallest id: the guarantee of at most
    twice the best radius holds for any first pick, and this one needs no further pass over the rows.

    Args:
        embeddings: (n, D) floats; a row that is not finite is never picked.
        sample_ids: n unique strings.
        k: the budget; if it is more than there are rows, all are picked.
        groups: n strings or nulls, for `max_per_group`.
        limits: centres, caps and the least distance.

    Raises:
        ValueError: lengths or sizes differ, or a limit is out of range.
    """
    return k_centre_of_shards([CoresetShard(embeddings, keys=sample_ids, groups=groups)], k=k, **limits)


def k_centre_of_shards(shards: Sequence[CoresetShard], *, k: int, **limits: Unpack[Limits]) -> Picks:
    """What `k_centre_greedy` picks from the rows of all shards, each worked on by a thread of this process.

    Shards remember what was picked: they serve once.

    Raises:
        ValueError: there is no shard, or as in `k_centre_greedy`.
    """
    if not shards:
        raise ValueError("expected at least one shard, found none")
    with ThreadPoolExecutor(len(shards)) as threads:

        def ask(method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
            return list(threads.map(lambda shard, given: getattr(shard, method)(*given), shards, arguments))

        return pick_farthest(ask, num_shards=len(shards), k=k, **limits)


def k_centre_on_ray(
    loaders: Sequence[Callable[[], pa.Table]], *, k: int, cpus_per_actor: float = 1, **limits: Unpack[Limits]
) -> Picks:
    """What `k_centre_greedy` picks from the rows of all loaders, each called in an actor that keeps its rows.

    A loader gives a table as `shard_of` takes it; it travels to its actor. The rows themselves never come to the
    driver, but for the candidates of each round. Ray has to be connected.

    Raises:
        InputError: the cluster lacks the CPUs.
        RunFailedError: an actor failed.
        ValueError: there is no loader, or as in `k_centre_greedy`.
    """
    import ray

    from distributed.cluster import check_resources, reported

    if not loaders:
        raise ValueError("expected at least one loader, found none")
    check_resources(workers=len(loaders), cpus=cpus_per_actor, gpus=0)
    remote: Any = ray.remote(num_cpus=cpus_per_actor)(_LoadedShard)
    actors = [remote.remote(load) for load in loaders]

    def ask(method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return ray.get([getattr(actor, method).remote(*given) for actor, given in zip(actors, arguments, strict=True)])

    try:
        with reported():
            return pick_farthest(ask, num_shards=len(actors), k=k, **limits)
    finally:
        for actor in actors:
            ray.kill(actor)


class _LoadedShard:
    """A shard that loads its rows where it lives: on the first call, since an actor that fails at birth hides why."""

    def __init__(self, load: Callable[[], pa.Table]) -> None:
        self._load = load

    @cached_property
    def _shard(self) -> CoresetShard:
        return shard_of(self._load())

    def extent(self) -> tuple[int, int, float]:
        return self._shard.extent()

    def advance(self, step: Step) -> Candidates:
        return self._shard.advance(step)


def shard_of(rows: pa.Table) -> CoresetShard:
    """The rows of a scores table (`sample_id`, `embedding`, `group` if there is one) that have an embedding."""
    known = with_embedding(rows)
    groups = known["group"].cast(pa.large_string()).combine_chunks() if "group" in known.column_names else None
    ids = known["sample_id"].cast(pa.large_string()).combine_chunks()  # an array of strings ends at 2 GiB
    return CoresetShard(embeddings_of(known), keys=ids, groups=groups)


def with_embedding(rows: pa.Table) -> pa.Table:
    """The rows whose `embedding` is not null."""
    return rows.filter(pc.is_valid(rows["embedding"]))


def embeddings_of(rows: pa.Table) -> NDArray[np.generic]:
    """(n, D) embeddings of rows that all have one, as they are stored: float16."""
    column = rows["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), column.type.list_size)
