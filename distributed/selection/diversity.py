"""Selections that look at embeddings: coreset, near-duplicates passed over, and picks that are both bad and unlike.

Coreset takes all rows, in shards of this process or of Ray actors; the other two take the best rows by loss, here.
Distances are exact: see `k_centre`.
"""

# n candidates, D embedding, p centres

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.k_centre import (
    CentreShard,
    Shard,
    ShardBest,
    ShardStep,
    check_limits,
    grid_scale,
    k_centre,
    on_grid,
    squared_distances,
)
from distributed.selection.moments import times_of

_LIVES = 3  # of an actor for one question: what kills it so often is its rows
_ROWS_AT_ONCE = 512
_OTHERS_AT_ONCE = 4096


def load_shard(load: Callable[[], pa.Table]) -> CentreShard:
    """The rows of a scores table (`sample_id`, `embedding`; `group`, `captured_at` if any) that have an embedding."""
    known = with_embedding(load())
    groups = known["group"].cast(pa.large_string()).combine_chunks() if "group" in known.column_names else None
    times = times_of(known).combine_chunks() if "captured_at" in known.column_names else None
    ids = known["sample_id"].cast(pa.large_string()).combine_chunks()  # an array of strings ends at 2 GiB
    return CentreShard(embeddings_of(known), keys=ids, groups=groups, times=times)


@contextmanager
def shards_in_actors(loaders: Sequence[Callable[[], pa.Table]], *, cpus_per_actor: float = 1) -> Iterator[list[Shard]]:
    """A Ray actor for each loader, which keeps its rows in memory for the block; Ray has to be connected.

    A loader gives a table as `load_shard` takes it; it travels to its actor, and gives the same again where an actor is
    lost. The rows themselves never come to the driver, but for the candidates of each round.

    Raises:
        InputError: the cluster lacks the CPUs.
        RunFailedError: an actor was lost again and again.
    """
    from distributed.cluster.faults import reported
    from distributed.cluster.resources import check_resources

    check_resources(workers=len(loaders), cpus=cpus_per_actor, gpus=0)
    actors = [_RemoteShard(load, cpus=cpus_per_actor) for load in loaders]
    try:
        with reported():
            yield [*actors]
    finally:
        for actor in actors:
            actor.end()


class _RemoteShard:
    """A shard in an actor, as the driver sees it: it knows all steps, to bring a successor up to date with one."""

    def __init__(self, load: Callable[[], pa.Table], *, cpus: float) -> None:
        self._load = load
        self._cpus = cpus
        self._steps: list[ShardStep] = []  # those that were answered; the actors' lists share their centres
        self._is_ended = False
        self._start()

    def _start(self) -> None:
        import ray

        self._actor: Any = ray.remote(num_cpus=self._cpus)(_LoadedShard).remote(self._load)

    def extent(self) -> tuple[int, int, float]:
        found: tuple[int, int, float] = self._ask("extent", lambda _: ())
        return found

    def advance(self, step: ShardStep) -> ShardBest:
        found: ShardBest = self._ask("advance", lambda life: (_together([*self._steps, step]) if life else step,))
        self._steps.append(step)
        return found

    def _ask(self, method: str, arguments: Callable[[int], tuple[Any, ...]]) -> Any:
        """The answer; from a successor, where the actor is lost."""
        import ray
        from ray.exceptions import RayActorError

        life = 0
        while True:
            try:
                return ray.get(getattr(self._actor, method).remote(*arguments(life)))
            except RayActorError:
                life += 1
                if life == _LIVES or self._is_ended:
                    raise
                self._start()

    def end(self) -> None:
        """Ends the actor; its memory is free."""
        import ray

        self._is_ended = True
        ray.kill(self._actor)


def _together(steps: Sequence[ShardStep]) -> ShardStep:
    """One step that says what all of them said."""
    return steps[-1]._replace(
        centres=np.concatenate([step.centres for step in steps]),
        taken=np.concatenate([step.taken for step in steps]),
        closed=[group for step in steps for group in step.closed],
        near=[moment for step in steps for moment in step.near],
    )


class _LoadedShard:
    """A shard that loads its rows where it lives: on the first call, since an actor that fails at birth hides why."""

    def __init__(self, load: Callable[[], pa.Table]) -> None:
        self._load = load

    @cached_property
    def _shard(self) -> CentreShard:
        return load_shard(self._load)

    def extent(self) -> tuple[int, int, float]:
        return self._shard.extent()

    def advance(self, step: ShardStep) -> ShardBest:
        return self._shard.advance(step)


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
    ranks = 1 - np.arange(len(known)) / max(1, len(known))
    # A weight and a power so that weight × (s²) ** power goes up and down with r^(1 − d) × s^d.
    is_mild = diversity < 0.5
    weights = ranks if is_mild else ranks ** (2 * (1 - diversity) / diversity)
    power = diversity / (2 * (1 - diversity)) if is_mild else 1.0
    shard = CentreShard(
        embeddings_of(known),
        keys=pa.array(np.arange(len(known))),
        groups=_groups_of(known) if max_per_group else None,
        weights=weights,
    )
    picks = k_centre([shard], k=k, centres=centres, power=power, max_per_group=max_per_group, min_distance=min_distance)
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
    is not full. So of the first rows of an order the result is the beginning of that of the whole: where it has `k`
    rows, it is that of the whole. The first rows must not have been cut by the caps, or these must have been wider.

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


def with_embedding(rows: pa.Table) -> pa.Table:
    """The rows whose `embedding` is not null."""
    return rows.filter(pc.is_valid(rows["embedding"]))


def embeddings_of(rows: pa.Table) -> NDArray[np.generic]:
    """(n, D) embeddings of rows that all have one, as they are stored: float16."""
    column = rows["embedding"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), column.type.list_size)


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
    """(n,) True where any of the others is nearer than the limit."""
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
