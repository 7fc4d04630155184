"""Exact capped top-k over score tables: the kernel of every selection.

Knows tables in memory only: no Ray, no storage. The walk goes down all rows in selection order and takes each whose
sample was not met before and whose group has room, until k. So a row is taken exactly if it is the first of its sample,
fewer than Q samples of its group are ahead of it, and ahead(row) = sum over groups of min(Q, samples of the group ahead
of it) is under k. More rows never lower these counts: what a shard cuts is not taken in the whole. And only rows that
are taken change the walk: leaving the others out changes nothing. Hence the walk down the shards' lists is the walk
down all their rows. With a cap, a sample is an id in a group: were it the id alone, one whose groups contradict each
other would count against another group in the whole than in a shard.

With a gap a row is also passed over if one of its group that was captured within the gap was taken before it. Here more
rows can free a row: they take the place of what was near to it. So a shard keeps all that may yet be taken. Let it walk
with twice the gap: each row it takes is either taken in the whole, or near to one that is, and no two of them are near
to the same. So at least as many of each group, up to its cap, are taken in the whole ahead of any row: what comes after
the k-th, or after Q of its group, is not taken and is cut; the rows between are kept, and the last walk, down the lists
of all shards, is the one with the gap itself. A list holds at most k times the rows that a group has in four gaps of
time. A sample is then an id with its moment, a group and a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.selection.moments import Walk, microseconds, moments_of, walk

# A walk under limits starts on the first rows of the order, this multiple of k, and takes this many times more whenever
# they leave it short.
FIRST_ROWS_FACTOR = 2
FIRST_ROWS_GROWTH = 4
# A stream walks anew after this share of k new rows, so that its limit is seldom far behind, but not for a few.
_RENEWED_SHARE = 2
_FEWEST_NEW = 1024

Penalty: TypeAlias = NDArray[Any]  # float32 or uint64, smallest first


class _Kept(NamedTuple):
    """The rows of a list that may be taken, in selection order."""

    rows: pa.Table
    penalty: Penalty
    is_full: bool  # there are k: what comes after the last of these rows is never taken


def top_k(
    scores: pa.Table,
    *,
    k: int,
    max_per_group: int | None = None,
    min_gap: float = 0.0,
    seed: int | None = None,
    taken: pa.ChunkedArray | None = None,
) -> pa.Table:
    """The best `k` rows in selection order, all columns kept; of several rows of one sample the first.

    The order is `predicted_loss` descending (infinities are numbers, −0.0 equals 0.0), then `sample_id` ascending by
    UTF-8 bytes, then `pool_file`, `pool_row`, `group` and `captured_at` where present, which order the rows of one
    id. Rows whose `predicted_loss` is null or NaN, or whose `error` (if there is such a column) is not null, never
    enter.

    With a seed the order is that of `hash_order`, which makes the result a uniform draw; of several rows of one id the
    one with the highest loss is drawn.

    What is taken of the concatenated results of shards is what is taken of all their rows: exact, associative and
    indifferent to the order of the shards. With a gap that holds of what `TopK.kept` gives.

    Args:
        scores: `sample_id` string, `predicted_loss` float32; `group` string is needed only with a cap or a gap,
            `captured_at` timestamp only with a gap.
        k: the budget: 0 gives an empty table, more than there is gives all that may enter.
        max_per_group: at most so many rows of one group. Rows without a group (null) are never capped. With a cap, an
            id that is in two groups is two samples.
        min_gap: seconds; a row of a group that was captured within so many of one that was taken is passed over. Rows
            without a group or a time never are. 0: none is. With a gap an id that is there with two times is two.
        seed: of a draw.
        taken: groups of rows that were selected before, one value a row: they count against the cap.

    Raises:
        ValueError: `k` or `min_gap` is negative, or `max_per_group` is less than 1.
    """
    top = TopK(k=k, max_per_group=max_per_group, min_gap=min_gap, seed=seed, taken=taken)
    top.push(scores)
    return top.result()


def hash_order(sample_ids: pa.Array | pa.ChunkedArray, *, seed: int) -> NDArray[np.uint64]:
    """uint64[n], uniform and fixed by id and seed alone: the same on any machine and for any partition.

    It is BLAKE2b with an 8-byte digest of the id's UTF-8 bytes, read as little-endian, salted by the seed.

    Raises:
        OverflowError: the seed does not fit 16 signed bytes.
    """
    salt = seed.to_bytes(hashlib.blake2b.SALT_SIZE, "little", signed=True)
    ids = sample_ids.cast(pa.large_binary()).to_pylist()
    digests = b"".join([hashlib.blake2b(sample_id, digest_size=8, salt=salt).digest() for sample_id in ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


class TopK:
    """`top_k` of all that was pushed, in memory for 2k rows and a few batches; with a gap, for twice what is kept.

    Batches are of one schema. Rows that cannot enter any more are dropped on arrival, so a long stream soon costs one
    comparison a row.

    Raises:
        ValueError: as in `top_k`.
    """

    def __init__(
        self,
        *,
        k: int,
        max_per_group: int | None = None,
        min_gap: float = 0.0,
        seed: int | None = None,
        taken: pa.ChunkedArray | None = None,
    ) -> None:
        if k < 0:
            raise ValueError(f"k must be at least 0, found {k}")
        if max_per_group is not None and max_per_group < 1:
            raise ValueError(f"max_per_group must be at least 1, found {max_per_group}")
        self._k = k
        self._max_per_group = max_per_group
        self._gap = microseconds(min_gap)
        self._seed = seed
        self._taken = taken
        self._pending: list[pa.Table] = []
        self._penalties: list[Penalty] = []
        self._num_kept = 0  # rows of that list
        self._num_new = 0  # rows since `_pending` was one finished list
        self._last: Any = None  # penalty of the k-th row, once there are k: rows to come can only lower it

    @property
    def k(self) -> int:
        """The budget."""
        return self._k

    @property
    def is_by_loss(self) -> bool:
        """False for a draw."""
        return self._seed is None

    @property
    def first_columns(self) -> list[str]:
        """The columns that `penalty` reads."""
        return ["predicted_loss"] if self.is_by_loss else ["sample_id"]

    def penalty(self, rows: pa.Table) -> Penalty:
        """Each row's place in the order, smallest first: the loss negated (float32), or the hash (uint64)."""
        if self._seed is not None:
            return hash_order(rows["sample_id"], seed=self._seed)
        penalty: Penalty = -rows["predicted_loss"].to_numpy()  # a null becomes NaN
        return penalty

    def may_enter(self, penalty: Penalty) -> NDArray[np.bool_]:
        """False where nothing of this penalty can enter any more; NaN never can. Cheap, and may lag behind.

        A row that equals the last one may enter by its id.
        """
        if self._k == 0:
            return np.zeros(penalty.shape, dtype=np.bool_)
        result: NDArray[np.bool_] = ~np.isnan(penalty) if self._last is None else penalty <= self._last
        return result

    def push(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Takes the rows of `batch` that may still enter."""
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        penalty = self.penalty(table)
        is_wanted = self.may_enter(penalty)
        if not is_wanted.all():
            table, penalty = table.filter(pa.array(is_wanted)), penalty[is_wanted]
        if table.num_rows > 0 or not self._pending:
            self._pending.append(table)
            self._penalties.append(penalty)
        self._num_new += table.num_rows
        if self._num_new > max(_FEWEST_NEW, max(self._k, self._num_kept) // _RENEWED_SHARE):
            self._compact()

    def result(self) -> pa.Table:
        """The selection so far; pushing may go on.

        Raises:
            ValueError: nothing was pushed, so there is no schema.
        """
        kept = self.kept()
        return kept.take(pa.array(self._walk_down(kept, self._gap).taken, pa.int64())) if self._gap else kept

    def num_passed_over(self) -> int:
        """Rows ahead of the last of the selection so far that have room in their group, and lack the gap."""
        found = self._walk_down(self.kept(), self._gap) if self._gap else Walk([], [])
        return len(found.met) - len(found.taken)

    def kept(self) -> pa.Table:
        """All rows that were pushed and may be taken whatever is pushed yet, in selection order.

        Raises:
            ValueError: nothing was pushed, so there is no schema.
        """
        if not self._pending:
            raise ValueError("nothing was pushed: there is no schema")
        self._compact()
        return self._pending[0]

    def _walk_down(self, ordered: pa.Table, gap: int) -> Walk:
        groups, times = moments_of(ordered)
        counts = Counter([] if self._taken is None else self._taken.cast(pa.string()).to_pylist())
        return walk(groups, times, k=self._k, gap=gap, max_per_group=self._max_per_group, counts=counts)

    def _compact(self) -> None:
        if not self._num_new and len(self._pending) <= 1:
            return
        kept = self._walk(pa.concat_tables(self._pending), np.concatenate(self._penalties))
        self._pending, self._penalties, self._num_new = [kept.rows], [kept.penalty], 0
        self._num_kept = kept.rows.num_rows
        if self._k and kept.is_full:
            self._last = kept.penalty[-1]

    def _walk(self, scores: pa.Table, penalty: Penalty) -> _Kept:
        """The first `k` rows under the limits by (`penalty`, ids) ascending, of those that may enter.

        Only the first rows of the order are ever sorted: all whose penalty is at most that of the m-th, so ties are
        whole. The walk down them is that down everything, if it reaches `k`; if limits or samples leave it short, m
        grows.
        """
        is_eligible = _is_scored(scores)
        eligible = penalty[is_eligible]
        is_limited = self._max_per_group is not None or bool(self._gap)
        num_first = FIRST_ROWS_FACTOR * self._k if is_limited else self._k
        while num_first < eligible.size:
            is_first = is_eligible & (penalty <= np.partition(eligible, num_first - 1)[num_first - 1])
            kept = self._walk_sorted(scores, penalty, is_first)
            if kept.is_full:
                return kept
            num_first *= FIRST_ROWS_GROWTH
        return self._walk_sorted(scores, penalty, is_eligible)

    def _walk_sorted(self, scores: pa.Table, penalty: Penalty, is_first: NDArray[np.bool_]) -> _Kept:
        """The walk down these rows, by sorting them all."""
        # Filtered before anything is joined: a whole string column may exceed Arrow's 2 GiB of one array.
        rows, penalty = scores.filter(pa.array(is_first)).combine_chunks(), penalty[is_first]
        order = _selection_order(rows, penalty)
        if self._gap:
            order = order[_is_first_of_sample(rows, order, within=self._tells_apart(rows))]
            wide = self._walk_down(rows.select(["group", "captured_at"]).take(pa.array(order)), 2 * self._gap)
            order = order[wide.met]
            return _Kept(rows.take(pa.array(order)), penalty[order], len(wide.taken) == self._k)
        if self._max_per_group is None and _is_distinct(rows["sample_id"].take(pa.array(order[: self._k]))):
            order = order[: self._k]
        else:
            order = order[_is_first_of_sample(rows, order, within=self._tells_apart(rows))]
        if self._max_per_group is not None:
            group = rows["group"].take(pa.array(order))
            order = order[_rank_in_group(group, self._taken) < self._max_per_group]
        order = order[: self._k]
        return _Kept(rows.take(pa.array(order)), penalty[order], len(order) == self._k)

    def _tells_apart(self, rows: pa.Table) -> list[pa.ChunkedArray]:
        """The values beside the id by which the limits tell samples apart."""
        found = [] if self._max_per_group is None else [rows["group"]]
        if self._gap:
            is_moment = pc.and_(rows["group"].is_valid(), rows["captured_at"].is_valid())
            found += [pc.if_else(is_moment, rows[name], None) for name in ("group", "captured_at")]
        return found


def _is_scored(scores: pa.Table) -> NDArray[np.bool_]:
    """True where there is a loss that is a number, and no error."""
    is_scored: NDArray[np.bool_] = ~np.isnan(scores["predicted_loss"].to_numpy())  # a null becomes NaN
    if "error" in scores.column_names:
        is_scored &= scores["error"].is_null().to_numpy()
    return is_scored


def _selection_order(rows: pa.Table, penalty: Penalty) -> NDArray[np.uint64]:
    """The row numbers in selection order. Rows whose penalties tie are few: these alone are sorted by all else."""
    order = np.argsort(penalty, kind="stable").astype(np.uint64)
    ordered = penalty[order]
    is_tied = np.zeros(order.size, np.bool_)
    is_tied[1:] = ordered[1:] == ordered[:-1]
    is_tied[:-1] |= is_tied[1:]
    if is_tied.any():
        tied = order[is_tied]
        order[is_tied] = tied[_order_of_ties(rows.take(pa.array(tied)), penalty[tied])]
    return order


def _order_of_ties(rows: pa.Table, penalty: Penalty) -> NDArray[np.uint64]:
    """The row numbers in selection order; Arrow compares strings by their bytes."""
    loss = pa.array(-rows["predicted_loss"].to_numpy())  # orders the rows of one id in a draw
    keys = pa.table({"penalty": penalty, "sample_id": rows["sample_id"], "loss": loss})
    for name in ("pool_file", "pool_row", "group", "captured_at"):
        if name in rows.column_names:
            values = rows[name]  # dictionary codes are in no order, so by text
            keys = keys.append_column(name, values.cast(pa.string()) if name in ("pool_file", "group") else values)
    ascending = [(name, "ascending") for name in keys.column_names]
    order: NDArray[np.uint64] = pc.sort_indices(keys, sort_keys=ascending).to_numpy()
    return order


def _is_distinct(values: pa.ChunkedArray) -> bool:
    return bool(pc.count_distinct(values).as_py() == len(values))


def _is_first_of_sample(
    rows: pa.Table, order: NDArray[np.uint64], *, within: Sequence[pa.ChunkedArray]
) -> NDArray[np.bool_]:
    """True for each row in `order` that no row of the same id and the same values comes before."""
    ids = rows["sample_id"].combine_chunks().dictionary_encode()
    is_first = np.ones(order.size, dtype=np.bool_)
    if len(ids.dictionary) == order.size:
        return is_first
    codes = ids.indices.to_numpy().astype(np.int64)
    for values in within:
        others = _codes(values)
        codes = np.unique(codes * (int(others.max()) + 2) + others + 1, return_inverse=True)[1]
    is_first[:] = False
    is_first[np.unique(codes[order], return_index=True)[1]] = True
    return is_first


def _rank_in_group(group: pa.ChunkedArray, taken: pa.ChunkedArray | None) -> NDArray[np.int64]:
    """Number of rows of the same group before each row; 0 for rows without a group."""
    codes = _codes(group)
    order = np.argsort(codes, kind="stable")
    by_group = codes[order]
    rank = np.empty(codes.size, dtype=np.int64)
    rank[order] = np.arange(codes.size) - np.searchsorted(by_group, by_group)
    if taken is not None:
        counts = pc.value_counts(taken.cast(pa.string()))
        place = pc.index_in(group.cast(pa.string()), value_set=counts.field("values"))
        rank += pc.fill_null(counts.field("counts").take(place.combine_chunks()), 0).to_numpy()
    rank[codes < 0] = 0
    return rank


def _codes(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each value, −1 for null."""
    # Not those of a dictionary, which may name a value twice, or null.
    plain = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
    indices = plain.combine_chunks().dictionary_encode().indices
    codes: NDArray[np.int64] = pc.fill_null(indices, -1).to_numpy().astype(np.int64)
    return codes
