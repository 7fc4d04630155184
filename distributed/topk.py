"""Exact capped top-k over score tables: the kernels that selection is made of.

Knows tables in memory only: no Ray, no storage. The walk goes down all rows in selection order and takes each whose
group has fewer than Q rows so far, until k. So a row is taken exactly if fewer than Q rows of its group are ahead of
it, and ahead(row) = sum over groups of min(Q, rows of the group ahead of it) is under k. More rows never lower these
counts: what a shard cuts is not taken in the whole. And only rows that are taken change the walk: leaving the others
out changes nothing. Hence the walk down the shards' lists is the walk down all their rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# A capped walk starts on this multiple of k rows, and takes this many times more whenever the caps leave it short.
HEAD_FACTOR = 2
HEAD_GROWTH = 4


def top_k(scores: pa.Table, *, k: int, max_per_group: int | None = None) -> pa.Table:
    """The best `k` rows in selection order, all columns kept.

    The order is `predicted_loss` descending (infinities are numbers, −0.0 equals 0.0), then `sample_id` ascending by
    UTF-8 bytes, then `pool_file` and `pool_row` where present, which order duplicates of an id. Rows whose
    `predicted_loss` is null or NaN, or whose `error` (if there is such a column) is not null, never enter.

    Args:
        scores: `sample_id` string, `predicted_loss` float32; `group` string is needed only with a cap.
        k: The budget: 0 gives an empty table, more than there is gives all that may enter.
        max_per_group: At most so many rows of one group. Rows without a group (null) are never capped.

    Raises:
        ValueError: `k` is negative or `max_per_group` is less than 1.
    """
    _check_limits(k, max_per_group)
    return _walk(scores, -scores["predicted_loss"].to_numpy(), k=k, max_per_group=max_per_group)


def merge_top_k(shards: Sequence[pa.Table], *, k: int, max_per_group: int | None = None) -> pa.Table:
    """What `top_k` gives for all rows of which `shards` are the lists, each made with the same limits.

    Exact, associative and indifferent to the order of the shards; a shard may also be a plain score table.

    Raises:
        ValueError: No shard at all (nothing tells the schema), or a bad limit as in `top_k`.
    """
    if not shards:
        raise ValueError("merge_top_k needs at least one shard, found none")
    return top_k(pa.concat_tables(shards), k=k, max_per_group=max_per_group)


def random_k(scores: pa.Table, *, k: int, seed: int, max_per_group: int | None = None) -> pa.Table:
    """A uniform draw of `k` rows in the order of `hash_order`; ties, caps and refused rows as in `top_k`.

    The draw of several shards is the draw of their concatenated draws: the hash belongs to the id, not to the place.

    Raises:
        ValueError: A bad limit as in `top_k`.
    """
    _check_limits(k, max_per_group)
    return _walk(scores, hash_order(scores["sample_id"], seed=seed), k=k, max_per_group=max_per_group)


def hash_order(sample_ids: pa.Array | pa.ChunkedArray, *, seed: int) -> NDArray[np.uint64]:
    """uint64[n], uniform and fixed by id and seed alone: the same on any machine and for any partition.

    It is BLAKE2b with an 8-byte digest of the id's UTF-8 bytes, read as little-endian, salted by the seed.

    Raises:
        OverflowError: The seed does not fit 16 signed bytes.
    """
    salt = seed.to_bytes(hashlib.blake2b.SALT_SIZE, "little", signed=True)
    ids = sample_ids.cast(pa.large_binary()).to_pylist()
    digests = b"".join([hashlib.blake2b(sample_id, digest_size=8, salt=salt).digest() for sample_id in ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def exclude_ids(scores: pa.Table, excluded: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The rows whose `sample_id` is not in `excluded`, in their order."""
    sample_ids = scores["sample_id"]
    return scores.filter(pc.invert(pc.is_in(sample_ids, value_set=excluded.cast(sample_ids.type))))


class TopK:
    """`top_k` of all that was pushed, in memory for `k` rows and a few batches.

    Batches are of one schema. Rows under the threshold are dropped on arrival, so a long stream soon costs one
    comparison a row.

    Raises:
        ValueError: A bad limit as in `top_k`.
    """

    def __init__(self, *, k: int, max_per_group: int | None = None) -> None:
        _check_limits(k, max_per_group)
        self._k = k
        self._max_per_group = max_per_group
        self._pending: list[pa.Table] = []
        self._num_new = 0  # rows since `_pending` was one finished list
        self._threshold = math.inf if k == 0 else None

    def push(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Takes the rows of `batch` that may still enter."""
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        if self._threshold is not None:
            floor = pa.scalar(self._threshold, table.schema.field("predicted_loss").type)
            table = table.filter(pc.greater_equal(table["predicted_loss"], floor))
        if table.num_rows > 0 or not self._pending:
            self._pending.append(table)
        self._num_new += table.num_rows
        if self._num_new > self._k:
            self._compact()

    @property
    def threshold(self) -> float | None:
        """The `predicted_loss` under which, strictly, nothing can enter any more; None while there is room.

        It is that of the k-th row of the capped list so far: rows to come can only raise it. A row that equals it may
        enter by its id. With `k` = 0 it is +inf.
        """
        self._compact()
        return self._threshold

    def result(self) -> pa.Table:
        """`top_k` of everything pushed so far; more may be pushed after.

        Raises:
            ValueError: Nothing was pushed, not even an empty batch, so the schema is unknown.
        """
        if not self._pending:
            raise ValueError("TopK has no schema before the first push, which may be of an empty batch")
        self._compact()
        return self._pending[0]

    def _compact(self) -> None:
        if self._num_new == 0:
            return
        best = merge_top_k(self._pending, k=self._k, max_per_group=self._max_per_group)
        self._pending, self._num_new = [best], 0
        if 0 < self._k == best.num_rows:
            self._threshold = best["predicted_loss"][-1].as_py()


def _check_limits(k: int, max_per_group: int | None) -> None:
    if k < 0:
        raise ValueError(f"k must be at least 0, found {k}")
    if max_per_group is not None and max_per_group < 1:
        raise ValueError(f"max_per_group must be at least 1, found {max_per_group}")


def _walk(scores: pa.Table, penalty: NDArray[np.generic], *, k: int, max_per_group: int | None) -> pa.Table:
    """The first `k` rows under the caps by (`penalty`, ids) ascending, of those that may enter.

    Only a head of the order is ever sorted: all rows whose penalty is at most that of the m-th, so ties are whole.
    The walk down a head is that down everything, if it reaches `k`; if the caps leave it short, the head grows.
    """
    if k == 0:
        return scores.schema.empty_table()
    is_eligible = _may_enter(scores)
    eligible = penalty[is_eligible]
    head_rows = k if max_per_group is None else HEAD_FACTOR * k
    while head_rows < eligible.size:
        in_head = is_eligible & (penalty <= np.partition(eligible, head_rows - 1)[head_rows - 1])
        best = _walk_sorted(scores, penalty, in_head, k=k, max_per_group=max_per_group)
        if best.num_rows == k:
            return best
        head_rows *= HEAD_GROWTH
    return _walk_sorted(scores, penalty, is_eligible, k=k, max_per_group=max_per_group)


def _may_enter(scores: pa.Table) -> NDArray[np.bool_]:
    """True where the row was scored, by a number."""
    is_scored: NDArray[np.bool_] = ~np.isnan(scores["predicted_loss"].to_numpy())  # a null becomes NaN
    if "error" in scores.column_names:
        is_scored &= scores["error"].is_null().to_numpy()
    return is_scored


def _walk_sorted(
    scores: pa.Table, penalty: NDArray[np.generic], in_head: NDArray[np.bool_], *, k: int, max_per_group: int | None
) -> pa.Table:
    """The walk down the rows of `in_head`, by sorting them all."""
    # Filtered before anything is joined: a whole string column may exceed Arrow's 2 GiB of one array, a head does not.
    head = scores.filter(pa.array(in_head)).combine_chunks()
    order = _selection_order(head, penalty[in_head])
    if max_per_group is not None:
        order = order[_rank_in_group(head["group"].take(pa.array(order))) < max_per_group]
    return head.take(pa.array(order[:k]))


def _selection_order(head: pa.Table, penalty: NDArray[np.generic]) -> NDArray[np.uint64]:
    """The row numbers in selection order. Arrow compares strings by their bytes, and only where penalties tie."""
    keys = pa.table({"penalty": penalty, "sample_id": head["sample_id"]})
    if "pool_file" in head.column_names:  # dictionary codes are in no order, so by text
        keys = keys.append_column("pool_file", head["pool_file"].cast(pa.string()))
    if "pool_row" in head.column_names:
        keys = keys.append_column("pool_row", head["pool_row"])
    ascending = [(name, "ascending") for name in keys.column_names]
    order: NDArray[np.uint64] = pc.sort_indices(keys, sort_keys=ascending).to_numpy()
    return order


def _rank_in_group(group: pa.ChunkedArray) -> NDArray[np.int64]:
    """How many rows of the same group come before each row; 0 for rows without a group."""
    # As text first: a dictionary may name a value twice, or null.
    codes = pc.fill_null(group.cast(pa.string()).combine_chunks().dictionary_encode().indices, -1).to_numpy()
    order = np.argsort(codes, kind="stable")
    by_group = codes[order]
    rank = np.empty(codes.size, dtype=np.int64)
    rank[order] = np.arange(codes.size) - np.searchsorted(by_group, by_group)
    rank[codes < 0] = 0
    return rank
