"""The kernels against plain Python: sort everything, walk down, count groups."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.selection.topk import FIRST_ROWS_FACTOR, FIRST_ROWS_GROWTH, TopK, hash_order, top_k

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("group", pa.string()),
        ("captured_at", pa.timestamp("us", tz="UTC")),
        ("predicted_loss", pa.float32()),
        ("error", pa.string()),
        ("pool_file", pa.dictionary(pa.int32(), pa.string())),
        ("pool_row", pa.int64()),
        ("keypoints", pa.list_(pa.float16(), 3)),
    ]
)
Row = dict[str, Any]

START = datetime(1969, 12, 31, 23, 59, 57, tzinfo=UTC)  # some times are negative as numbers
TIMES = [None, *(START + timedelta(seconds=s) for s in (0, 0.5, 1, 2, 2.5, 4, 5, 6, 9))]
LOSSES = st.one_of(
    st.sampled_from([None, math.nan, math.inf, -math.inf, -0.0, 0.0, 0.5, 1.0, 2.0]),
    st.floats(width=32),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            # Few ids, so that some are duplicates; beyond the BMP, UTF-8 and UTF-16 order differ.
            "sample_id": st.text("aBé\uffee\U0001f600", max_size=3),
            "group": st.sampled_from([None, "", "night", "rain", "tunnel"]),
            "captured_at": st.sampled_from(TIMES),
            "predicted_loss": LOSSES,
            "error": st.sampled_from([None, None, None, "undecodable"]),
            "pool_file": st.sampled_from(["z.parquet", "a.parquet", "m.parquet"]),
        }
    ),
    max_size=40,
).map(lambda rows: [row | {"pool_row": number, "keypoints": [number, 0, 1]} for number, row in enumerate(rows)])
PINNED = [5014893899742914148, 3571758507108379717, 10391206072305663881, 18246247577492440333]
BUDGETS = st.one_of(st.integers(0, 6), st.integers(0, 45))
CAPS = st.one_of(st.none(), st.integers(1, 4))
GAPS = st.sampled_from([0, 0.5, 0.999999, 1, 2.0, 10.0])


def table(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def scores(*rows: tuple[str, str | None, float | None]) -> pa.Table:
    schema = pa.schema([("sample_id", pa.string()), ("group", pa.string()), ("predicted_loss", pa.float32())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def may_enter(row: Row) -> bool:
    return row["predicted_loss"] is not None and not math.isnan(row["predicted_loss"]) and row["error"] is None


def walk_down(
    rows: list[Row],
    *,
    key: Any,
    k: int,
    max_per_group: int | None,
    min_gap: float = 0,
    taken: Sequence[str | None] = (),
    passed_over: list[Row] | None = None,
) -> list[Row]:
    def order(row: Row) -> Any:
        return key(row), row["sample_id"].encode(), -row["predicted_loss"], row["pool_file"].encode(), row["pool_row"]

    def is_near(row: Row) -> bool:
        """True if the row is near to one that was selected before it."""
        if not min_gap or row["group"] is None or row["captured_at"] is None:
            return False
        own = [other["captured_at"] for other in selected if other["group"] == row["group"]]
        return any(time and abs(time - row["captured_at"]) <= timedelta(seconds=min_gap) for time in own)

    selected: list[Row] = []
    samples = set()
    counts = Counter(taken)
    for row in sorted(filter(may_enter, rows), key=order):
        sample = (row["sample_id"],)
        if max_per_group is not None:
            sample += (row["group"],)
        if min_gap and row["group"] is not None and row["captured_at"] is not None:
            sample += (row["group"], row["captured_at"])
        cap = math.inf if max_per_group is None or row["group"] is None else max_per_group
        if len(selected) < k and counts[row["group"]] < cap and sample not in samples:
            if is_near(row):
                if passed_over is not None:
                    passed_over.append(row)
            else:
                counts[row["group"]] += 1
                selected.append(row)
        samples.add(sample)
    return selected


def by_loss(row: Row) -> Any:
    return -row["predicted_loss"]


def best(rows: list[Row], **limits: Any) -> list[int]:
    return [row["pool_row"] for row in walk_down(rows, key=by_loss, **limits)]


def kept(rows: pa.Table, **limits: Any) -> pa.Table:
    """Rows that a shard hands on."""
    top = TopK(**limits)
    top.push(rows)
    return top.kept()


def split(rows: list[Row], data: st.DataObject) -> list[pa.Table]:
    """The rows in any order, cut anywhere, empty shards included; dictionaries differ from shard to shard."""
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=6)))
    return [table(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


def pool_rows(selection: pa.Table) -> list[int]:
    assert selection.schema == SCHEMA
    numbers: list[int] = selection["pool_row"].to_pylist()
    return numbers


@given(rows=ROWS, k=BUDGETS, cap=CAPS, gap=GAPS)
def test_top_k_is_sorting_everything_and_walking_down(rows: list[Row], k: int, cap: int | None, gap: float) -> None:
    selection = top_k(table(rows), k=k, max_per_group=cap, min_gap=gap)
    assert pool_rows(selection) == best(rows, k=k, max_per_group=cap, min_gap=gap)
    assert [values[0] for values in selection["keypoints"].to_pylist()] == selection["pool_row"].to_pylist()


@given(rows=ROWS, k=BUDGETS, cap=CAPS, gap=GAPS, data=st.data())
def test_merged_shards_give_the_whole_in_any_split_order_and_nesting(
    rows: list[Row], k: int, cap: int | None, gap: float, data: st.DataObject
) -> None:
    limits: Any = {"k": k, "max_per_group": cap, "min_gap": gap}
    lists = [kept(shard, **limits) for shard in split(rows, data)]
    cut = data.draw(st.integers(1, len(lists)))
    left = kept(pa.concat_tables(lists[:cut]), **limits)
    passed_over: list[Row] = []
    expected = best(rows, **limits, passed_over=passed_over)
    for merged in (lists, [left, *lists[cut:]]):
        whole = TopK(**limits)
        whole.push(pa.concat_tables(merged))
        assert pool_rows(whole.result()) == expected
        assert whole.num_passed_over() == (len(passed_over) if k else 0)


def test_a_row_that_another_shard_frees_is_taken() -> None:
    """A is near to B, and B to C: a shard that knows B and C alone must not drop C."""
    times = {name: START + timedelta(seconds=second) for name, second in (("a", 0), ("b", 1), ("c", 2))}
    rows = [
        {"sample_id": name, "group": "x", "captured_at": time, "predicted_loss": loss, "pool_file": "f", "pool_row": n}
        for n, ((name, time), loss) in enumerate(zip(times.items(), (3.0, 2.0, 1.0), strict=True))
    ]
    shards = [table(rows[1:]), table(rows[:1])]
    assert top_k(shards[0], k=2, min_gap=1)["sample_id"].to_pylist() == ["b"]
    lists = [kept(shard, k=2, min_gap=1) for shard in shards]
    assert top_k(pa.concat_tables(lists), k=2, min_gap=1)["sample_id"].to_pylist() == ["a", "c"]


@given(rows=ROWS, k=BUDGETS, cap=CAPS, gap=GAPS, data=st.data())
def test_streaming_in_any_batching_equals_one_shot(
    rows: list[Row], k: int, cap: int | None, gap: float, data: st.DataObject
) -> None:
    limits: Any = {"k": k, "max_per_group": cap, "min_gap": gap}
    running = TopK(**limits)
    for shard in split(rows, data):
        batches = shard.to_batches(max_chunksize=3) if data.draw(st.booleans()) else []
        for batch in batches or [shard]:
            running.push(batch)
            if data.draw(st.booleans()):
                running.result()
    assert pool_rows(running.result()) == best(rows, **limits)


@given(rows=ROWS, k=st.integers(1, 6), cap=CAPS, data=st.data())
def test_rows_under_the_last_one_cannot_enter_once_the_capped_list_is_full(
    rows: list[Row], k: int, cap: int | None, data: st.DataObject
) -> None:
    running, seen = TopK(k=k, max_per_group=cap), []
    for shard in split(rows, data):
        running.push(shard)
        running.result()
        seen += shard.to_pylist()
        taken = walk_down(seen, key=by_loss, k=k, max_per_group=cap)
        last = np.float32(taken[-1]["predicted_loss"] if len(taken) == k else -math.inf)
        losses = np.array([last, np.nextafter(last, np.float32(-math.inf)), math.nan], np.float32)
        assert running.may_enter(-losses).tolist() == [True, bool(losses[1] >= last), False]


@given(rows=ROWS, k=BUDGETS, cap=CAPS, gap=GAPS, seed=st.integers(0, 3), data=st.data())
def test_random_draw_is_the_walk_by_hash_and_merges_and_streams(
    rows: list[Row], k: int, cap: int | None, gap: float, seed: int, data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.sampled_from([None, "night", "rain"]), max_size=4))
    taken = pa.chunked_array([groups], pa.string()) if groups else None

    def blake(row: Row) -> int:
        salt = seed.to_bytes(16, "little")
        return int.from_bytes(hashlib.blake2b(row["sample_id"].encode(), digest_size=8, salt=salt).digest(), "little")

    drawn = walk_down(rows, key=blake, k=k, max_per_group=cap, min_gap=gap, taken=groups)
    expected = [row["pool_row"] for row in drawn]
    limits: Any = {"k": k, "seed": seed, "max_per_group": cap, "min_gap": gap, "taken": taken}
    assert pool_rows(top_k(table(rows), **limits)) == expected
    shards = split(rows, data)
    lists = [kept(shard, **limits) for shard in shards]
    assert pool_rows(top_k(pa.concat_tables(lists), **limits)) == expected
    running = TopK(**limits)
    for shard in shards:
        running.push(shard)
    assert pool_rows(running.result()) == expected


def test_a_sample_counts_once_with_its_highest_loss() -> None:
    pool = scores(("a", "x", 1.0), ("b", "x", 2.0), ("a", "x", 3.0), ("c", "x", 0.5))
    assert top_k(pool, k=9).to_pylist() == [pool.to_pylist()[i] for i in (2, 1, 3)]
    assert top_k(pool, k=9, max_per_group=2)["sample_id"].to_pylist() == ["a", "b"]
    assert top_k(pool, k=9, seed=0)["predicted_loss"].to_pylist().count(3.0) == 1


def test_with_a_cap_an_id_in_two_groups_is_two_samples_so_that_shards_agree() -> None:
    pool = scores(("a", "x", 3.0), ("a", "y", 2.0), ("b", "y", 1.0))
    assert top_k(pool, k=9, max_per_group=1)["predicted_loss"].to_pylist() == [3.0, 2.0]
    assert top_k(pool, k=9)["sample_id"].to_pylist() == ["a", "b"]


def test_ties_at_the_last_place_go_to_the_smaller_id_in_bytes() -> None:
    pool = scores(("\U0001f600", None, 1.0), ("\uffee", None, 1.0), ("b", None, 0.5), ("a", None, 0.5))
    assert top_k(pool, k=3)["sample_id"].to_pylist() == ["\uffee", "\U0001f600", "a"]


@pytest.mark.parametrize("losses", [(0.0, -0.0), (-0.0, 0.0)])
def test_both_zeros_tie(losses: tuple[float, float]) -> None:
    pool = scores(("b", None, losses[0]), ("a", None, losses[1]))
    assert top_k(pool, k=2)["sample_id"].to_pylist() == ["a", "b"]
    assert top_k(pa.concat_tables([pool.slice(1), pool.slice(0, 1)]), k=1)["sample_id"].to_pylist() == ["a"]


def test_a_row_at_the_threshold_enters_a_full_stream_by_its_smaller_id() -> None:
    running = TopK(k=1)
    for sample_id, loss in (("c", -0.0), ("b", 0.0), ("a", -0.0)):
        running.push(scores((sample_id, None, loss)))
    assert running.result()["sample_id"].to_pylist() == ["a"]


def test_rows_without_a_group_are_never_capped() -> None:
    pool = scores(("a", None, 3.0), ("b", None, 2.0), ("c", "", 1.0), ("d", "", 0.0))
    assert top_k(pool, k=4, max_per_group=1)["sample_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize("num_hot", [FIRST_ROWS_FACTOR * 5, FIRST_ROWS_FACTOR * 5 * FIRST_ROWS_GROWTH, 500])
def test_one_group_that_holds_all_the_best_rows_does_not_hide_the_rest(num_hot: int) -> None:
    hot = [(f"hot-{i:03d}", "hot", 10.0 + i) for i in range(num_hot)]
    cold = [(f"cold-{i}", f"cold-{i}", float(-i)) for i in range(6)]
    ids = top_k(scores(*cold, *hot), k=5, max_per_group=1)["sample_id"].to_pylist()
    assert ids == [hot[-1][0], "cold-0", "cold-1", "cold-2", "cold-3"]


def test_group_and_file_may_be_dictionaries_even_untidy_ones() -> None:
    pool = scores(("a", None, 1.0), ("a", None, 1.0), ("b", None, 0.5), ("c", None, 0.1))
    untidy = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 2]), pa.array(["x", "x", None]))
    files = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, 1]), pa.array(["n", "m"]))
    pool = pool.set_column(1, "group", untidy).append_column("pool_file", files)
    selection = top_k(pool, k=4, max_per_group=1)
    assert selection["sample_id"].to_pylist() == ["a", "b", "c"]
    assert selection["pool_file"].cast(pa.string()).to_pylist() == ["m", "m", "m"]


def test_zero_budget_keeps_the_schema_and_lets_nothing_in() -> None:
    pool = scores(("a", None, math.inf))
    running = TopK(k=0)
    running.push(pool)
    assert running.result().equals(pool.schema.empty_table())
    assert top_k(pool, k=0).equals(pool.schema.empty_table())


def test_empty_tables_and_streams_of_empty_batches_give_empty_selections() -> None:
    empty = SCHEMA.empty_table()
    running = TopK(k=3, max_per_group=1)
    running.push(empty)
    running.push(empty)
    for selection in (running.result(), top_k(empty, k=3, max_per_group=1), top_k(empty, k=3, seed=0)):
        assert selection.equals(empty)
    assert hash_order(empty["sample_id"], seed=0).size == 0


def test_a_stream_goes_on_after_its_result_was_read() -> None:
    running = TopK(k=2)
    running.push(scores(("a", None, 1.0), ("b", None, 2.0)))
    assert running.result()["sample_id"].to_pylist() == ["b", "a"]
    running.push(scores(("c", None, 3.0), ("d", None, 0.5)))
    assert running.result()["sample_id"].to_pylist() == ["c", "b"]


@pytest.mark.parametrize("cap", [None, 5])
def test_a_stream_holds_about_k_rows_and_drops_what_is_under_the_threshold(cap: int | None) -> None:
    k, batch = 4000, 500  # a walk after every 2,000 new rows
    running = TopK(k=k, max_per_group=cap)
    rng = np.random.default_rng(0)
    for start in range(0, 40_000, batch):
        losses = rng.random(batch, dtype=np.float32)
        running.push(scores(*[(f"{start + i}", f"{i}", float(loss)) for i, loss in enumerate(losses)]))
        assert sum(part.num_rows for part in running._pending) <= k + k // 2 + batch
    assert sum(part.num_rows for part in running._pending) >= min(k, 500 * (cap or k))


@pytest.mark.parametrize("seed", [None, 3])
def test_what_cannot_enter_is_known_beforehand(seed: int | None) -> None:
    running = TopK(k=3, seed=seed)
    pool = scores(*[(f"{i}", None, float(i)) for i in range(5000)])
    assert running.may_enter(running.penalty(pool)).all()
    running.push(pool)
    best = running.result()["sample_id"].to_pylist()
    found = pool.filter(pa.array(running.may_enter(running.penalty(pool))))["sample_id"].to_pylist()
    assert sorted(found) == sorted(best)
    assert not TopK(k=0, seed=seed).may_enter(running.penalty(pool)).any()


def test_hash_order_is_pinned_and_the_same_in_any_partition() -> None:
    ids = ["drive-1/0001", "drive-1/0002", "é", ""]
    whole = hash_order(pa.array(ids), seed=7)
    assert whole.dtype == np.uint64
    # The values are what published selections were drawn by: they may never change.
    assert whole.tolist() == PINNED
    assert hash_order(pa.chunked_array([ids[:1], [], ids[1:]], pa.string()), seed=7).tolist() == PINNED
    assert hash_order(pa.array(ids), seed=8).tolist() != PINNED


@pytest.mark.parametrize(
    ("seed", "salt"), [(-1, b"\xff" * 16), (-(2**127), bytes(15) + b"\x80")], ids=["minus one", "the least"]
)
def test_seeds_may_be_negative_as_far_as_sixteen_signed_bytes_go(seed: int, salt: bytes) -> None:
    digest = hashlib.blake2b(b"drive-1/0001", digest_size=8, salt=salt).digest()
    assert hash_order(pa.array(["drive-1/0001"]), seed=seed).tolist() == [int.from_bytes(digest, "little")]
    with pytest.raises(OverflowError):
        hash_order(pa.array(["drive-1/0001"]), seed=2**127)


def test_hash_order_is_uniform() -> None:
    hashes = hash_order(pa.array([f"drive-7/{i:06d}" for i in range(20_000)]), seed=0)
    counts = np.bincount((hashes >> np.uint64(60)).astype(np.int64), minlength=16)
    chi_squared = float(((counts - 1250) ** 2 / 1250).sum())
    assert chi_squared < 37.7  # the 99.9th percentile with 15 degrees of freedom; the ids and the seed are fixed


@pytest.mark.parametrize(
    ("k", "cap", "named"), [(-1, None, "k must"), (1, 0, "max_per_group"), (0, -2, "max_per_group")]
)
def test_bad_limits_are_refused(k: int, cap: int | None, named: str) -> None:
    pool = scores(("a", None, 1.0))
    with pytest.raises(ValueError, match=named):
        top_k(pool, k=k, max_per_group=cap)


def test_nothing_at_all_has_no_schema() -> None:
    with pytest.raises(ValueError, match="no schema"):
        TopK(k=1).result()
