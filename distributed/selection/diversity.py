"""Diversity in the order of loss: near-duplicates passed over, and picks that are both bad and unlike each other.

Works on the head of a selection order, in memory, in one process. Distances are exact: see `distances`.
"""

# n candidates, D embedding, p centres

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.coreset import embeddings_of, with_embedding
from distributed.selection.distances import grid_scale, on_grid, squared_distances
from distributed.selection.farthest import check_limits, pick_farthest
from distributed.selection.shard import CoresetShard

_ROWS_AT_ONCE = 512
_OTHERS_AT_ONCE = 4096
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_PAIRS = 20_000  # of random rows
_NO_PAIRS = np.empty((2, 0), np.int64)


def diversify(
    candidates: pa.Table,
    *,
    k: int,
    diversity: float,
    max_per_group: int | None = None,
    min_distance: float = 0.0,
    centres: NDArray[np.generic] | None = None,
) -> pa.Table:
    """Up to `k` candidates in the order of picking, each a compromise between loss and distance; with a `reason`.

    The next pick is the row of the highest r^(1 − d) × s^d. r is 1 for the first candidate and falls to 1/n for the
    last. s is the distance to the nearest pick or centre; any constant that would bring it to (0, 1] leaves the order
    as it is, so there is none. Before there is a centre, s is the same for all. Ties go by the candidates' order; for
    0 < d < 1 scores are rounded, and two that are equal but for the last bits may go either way, always the same on
    the same machine. d = 0 walks down the order; d = 1 is k-centre greedy.

    `reason` is 'loss' where the first `k` of the order under the caps have the row, and 'diverse' where they don't.

    Args:
        candidates: rows in selection order with `embedding`, fixed_size_list[D], and with `group` if there are caps.
            Rows without an embedding, or with one that is not finite, never enter.
        k: the budget.
        diversity: d, from 0 to 1.
        max_per_group: at most so many of one group; rows without a group are free.
        min_distance: rows nearer than that (Euclidean) to a pick or centre are passed over.
        centres: (p, D) embeddings of what is labelled.

    Raises:
        ValueError: a limit is out of range, or sizes differ.
    """
    if not 0 <= diversity <= 1:
        raise ValueError(f"diversity must be between 0 and 1, found {diversity}")
    by_loss = drop_near(candidates, k=k, max_per_group=max_per_group)
    if diversity == 0:
        best = drop_near(candidates, k=k, min_distance=min_distance, max_per_group=max_per_group, centres=centres)
        return _with_reason(best, by_loss)
    known = _with_finite(candidates)
    weights, power = _exponents(1 - np.arange(len(known)) / max(1, len(known)), diversity)
    shard = CoresetShard(
        embeddings_of(known),
        keys=pa.array(np.arange(len(known))),
        groups=_groups_of(known) if max_per_group else None,
        weights=weights,
    )

    def ask(method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [getattr(shard, method)(*arguments[0])]

    picks = pick_farthest(
        ask,
        num_shards=1,
        k=k,
        centres=centres,
        power=power,
        max_per_group=max_per_group,
        min_distance=min_distance,
    )
    return _with_reason(known.take(pa.array(picks.keys, pa.int64())), by_loss)


def drop_near(
    candidates: pa.Table,
    *,
    k: int,
    min_distance: float = 0.0,
    max_per_group: int | None = None,
    centres: NDArray[np.generic] | None = None,
) -> pa.Table:
    """The first `k` candidates in their order, but for rows too near to one before them or to a centre.

    A row is taken if it is `min_distance` or more from all that were taken before and from the centres, and its group
    is not full. So of the head of an order the result is the beginning of that of the whole: where it has `k` rows, it
    is that of the whole. The head must not have been cut by the caps, or they must have been wider.

    Args:
        candidates: as in `diversify`.
        k: the budget.
        min_distance: Euclidean; 0 passes over nothing.
        max_per_group: at most so many of one group; rows without a group are free.
        centres: (p, D) embeddings of what is labelled.

    Raises:
        ValueError: a limit is out of range, or sizes differ.
    """
    check_limits(k, max_per_group, min_distance)
    known = _with_finite(candidates)
    points, known_points, limit = _measured(embeddings_of(known), centres, min_distance=min_distance)
    groups = _groups_of(known).to_pylist() if max_per_group else [None] * len(known)
    counts: Counter[str | None] = Counter()
    taken: list[int] = []
    for start in range(0, len(known), _ROWS_AT_ONCE):
        block = points[start : start + _ROWS_AT_ONCE]
        is_near = _any_near(block, known_points, limit) | _any_near(block, points[taken], limit)
        is_near_each = squared_distances(block, block) < limit
        for row in range(len(block)):
            group = groups[start + row]
            is_full = group is not None and counts[group] == max_per_group
            if is_full or is_near[row] or len(taken) == k:
                continue
            taken.append(start + row)
            counts[group] += 1
            is_near |= is_near_each[row]
        if len(taken) == k:
            break
    return known.take(pa.array(taken, pa.int64()))


def frame_distances(rows: pa.Table, *, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Quantiles of how far rows are apart, to choose a `min_distance` by: it belongs between the two.

    `consecutive`: neighbours of one group by `pool_file` and `pool_row` (frames of a drive). `unrelated`: random pairs
    of different groups. Null where there is no such pair.

    Args:
        rows: scores rows with `embedding` and `group`; some thousand consecutive ones are enough.
        seed: of the random pairs.
    """
    known = _with_finite(rows)
    known = known.set_column(
        known.schema.get_field_index("pool_file"), "pool_file", known["pool_file"].cast(pa.string())
    )
    known = known.sort_by([(name, "ascending") for name in ("pool_file", "pool_row")])
    embeddings = embeddings_of(known).astype(np.float64)
    codes = pc.fill_null(_groups_of(known).dictionary_encode().indices, -1).to_numpy()
    first, second = np.random.default_rng(seed).integers(len(known), size=(2, _PAIRS)) if len(known) else _NO_PAIRS
    is_same = codes[first] == codes[second]
    follows = np.flatnonzero((codes[1:] == codes[:-1]) & (codes[1:] >= 0))
    return {
        "consecutive": _quantiles(embeddings[follows + 1] - embeddings[follows]),
        "unrelated": _quantiles(embeddings[first[~is_same]] - embeddings[second[~is_same]]),
    }


def _quantiles(differences: NDArray[np.float64]) -> dict[str, float | None]:
    lengths = np.linalg.norm(differences, axis=1)
    return {str(at): float(np.quantile(lengths, at)) if len(lengths) else None for at in _QUANTILES}


def _exponents(ranks: NDArray[np.float64], diversity: float) -> tuple[NDArray[np.float64], float]:
    """Weights and a power so that weight × (s²) ** power goes up and down with r^(1 − d) × s^d; d > 0."""
    if diversity < 0.5:
        return ranks, diversity / (2 * (1 - diversity))
    return ranks ** (2 * (1 - diversity) / diversity), 1.0


def _measured(
    embeddings: NDArray[np.generic], centres: NDArray[np.generic] | None, *, min_distance: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Embeddings and centres on their common grid, and the least squared distance there."""
    known = embeddings[:0] if centres is None else centres[np.isfinite(centres).all(axis=1)]
    sizes = {embeddings.shape[1], known.shape[1]}
    if len(sizes) > 1:
        raise ValueError(f"expected embeddings of one size, found {sorted(sizes)}")
    largest = max(float(np.abs(part).max(initial=0)) for part in (embeddings, known))
    scale = grid_scale(largest, dim=embeddings.shape[1])
    return on_grid(embeddings, scale), on_grid(known, scale), (min_distance * scale) ** 2


def _any_near(block: NDArray[np.float64], others: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
    """(n,) whether any of the others is nearer than the limit."""
    is_near = np.zeros(len(block), bool)
    for at in range(0, len(others) if limit else 0, _OTHERS_AT_ONCE):
        is_near |= squared_distances(block, others[at : at + _OTHERS_AT_ONCE]).min(axis=1) < limit
    return is_near


def _with_finite(rows: pa.Table) -> pa.Table:
    known = with_embedding(rows)
    return known.filter(pa.array(np.isfinite(embeddings_of(known)).all(axis=1)))


def _groups_of(rows: pa.Table) -> pa.Array:
    return rows["group"].combine_chunks().cast(pa.string())


def _with_reason(best: pa.Table, by_loss: pa.Table) -> pa.Table:
    is_loss = pc.is_in(best["sample_id"], value_set=by_loss["sample_id"].combine_chunks())
    return best.append_column("reason", pc.if_else(is_loss, "loss", "diverse"))
