"""k-centre greedy (coreset) selection: each pick is the row farthest from all that is labelled or picked so far.

With any sharding the picks are the same, here and in actors (see `actors`): distances are exact (see `distances`).
Source: Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018,
algorithm 1.
"""

# n rows, D embedding, p centres

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.farthest import Picks, pick_farthest
from distributed.selection.shard import CoresetShard


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
