"""K-centre greedy against a NumPy loop, for any sharding, on Ray and off it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.selection import k_centre as module
from distributed.selection.diversity import load_shard, shards_in_actors
from distributed.selection.k_centre import CentreShard, Picks, ShardBest, ShardStep, grid_scale, k_centre, on_grid
from model.errors import InputError, LossightError, RunFailedError

Case = dict[str, Any]


def reference(embeddings: np.ndarray, ids: list[str], *, k: int, centres: np.ndarray | None = None) -> list[str]:
    """The algorithm as the paper has it, in Python's own integers: float16 in units of its smallest number, 2^-24."""
    points = {
        name: [int(float(value) * 2**24) for value in row]
        for name, row in zip(ids, embeddings, strict=True)
        if np.isfinite(row).all()
    }
    known = [[int(float(value) * 2**24) for value in row] for row in ([] if centres is None else centres)]
    picks: list[str] = []
    while len(picks) < k and points:
        distance = {
            name: min((sum((a - b) ** 2 for a, b in zip(row, centre, strict=True)) for centre in known), default=0)
            for name, row in points.items()
        }
        picks.append(min(points, key=lambda name: (-distance[name], name)))
        known.append(points.pop(picks[-1]))
    return picks


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """Rows with duplicates and ties, some not finite; ids in no order; up to five shards, empty ones too."""
    count, dim = draw(st.integers(0, 24)), draw(st.integers(1, 3))
    component = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0] * 3 + [np.nan, np.inf])
    rows = draw(st.lists(st.lists(component, min_size=dim, max_size=dim), min_size=count, max_size=count))
    centre = st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=dim, max_size=dim)
    centres = draw(st.none() | st.lists(centre, max_size=4))
    return {
        "embeddings": np.array(rows, np.float16).reshape(count, dim),
        "ids": draw(st.permutations([f"{'é' if i % 3 else 'z'}{i}" for i in range(count)])),
        "shard_of_row": np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), int),
        "k": draw(st.integers(0, 30)),
        "centres": None if centres is None else np.array(centres, np.float16).reshape(-1, dim),
    }


def shards_of(
    case: Case, groups: list[str | None] | None = None, times: list[int | None] | None = None
) -> list[CentreShard]:
    shards = []
    for number in range(5):
        rows = np.flatnonzero(case["shard_of_row"] == number)
        shards.append(
            CentreShard(
                case["embeddings"][rows],
                keys=pa.array([case["ids"][row] for row in rows], pa.string()),
                groups=None if groups is None else pa.array([groups[row] for row in rows], pa.string()),
                times=None if times is None else pa.array([times[row] for row in rows], pa.int64()),
            )
        )
    return shards


@contextmanager
def many_rounds() -> Iterator[None]:
    """Blocks and rounds so small that small cases go through many of them."""
    blocks = {"_FIRST_CENTRES": 1, "_MOST_CENTRES": 3, "_ROWS_AT_ONCE": 2, "_HOT_FACTOR": 2}
    rounds = {"_FIRST_CANDIDATES": 3, "_MOST_CANDIDATES": 6, "_FEWEST_CANDIDATES": 1}
    with mock.patch.multiple(module, **blocks, **rounds):
        yield


def pick_alone(embeddings: np.ndarray, ids: list[str], **limits: Any) -> Picks:
    return k_centre([CentreShard(embeddings, keys=pa.array(ids, pa.string()))], **limits)


@given(cases())
def test_one_machine_picks_what_the_paper_does(case: Case) -> None:
    picks = pick_alone(case["embeddings"], case["ids"], k=case["k"], centres=case["centres"])
    expected = reference(case["embeddings"], case["ids"], k=case["k"], centres=case["centres"])
    assert picks.keys == expected


@given(cases())
def test_any_sharding_gives_the_same_picks(case: Case) -> None:
    with many_rounds():
        picks = k_centre(shards_of(case), k=case["k"], centres=case["centres"])
    assert picks.keys == reference(case["embeddings"], case["ids"], k=case["k"], centres=case["centres"])


@given(cases(), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0, 1.5]), st.sampled_from([0, 1, 2]))
def test_caps_the_least_distance_and_the_gap_hold_in_any_sharding(case: Case, cap: int, least: float, gap: int) -> None:
    groups = [None if i % 5 == 0 else f"g{i % 3}" for i in range(len(case["ids"]))]
    times = [None if i % 7 == 0 else i // 2 * 10**6 for i in range(len(case["ids"]))]
    limits = {"k": case["k"], "centres": case["centres"], "max_per_group": cap, "min_distance": least, "min_gap": gap}
    with many_rounds():
        picks = k_centre(shards_of(case, groups, times), **limits)
    assert picks.keys == limited_reference(case, groups, times, cap=cap, least=least, gap=gap * 10**6)


def limited_reference(
    case: Case, groups: list[str | None], times: list[int | None], *, cap: int, least: float, gap: int
) -> list[str]:
    """Takes the first pick of all rows that may still be picked, again and again."""
    group_of, row_of = dict(zip(case["ids"], groups, strict=True)), {name: i for i, name in enumerate(case["ids"])}
    time_of = dict(zip(case["ids"], times, strict=True))

    def is_near(name: str, pick: str) -> bool:
        one, other = time_of[name], time_of[pick]
        is_moment = gap and group_of[name] is not None and None not in (one, other)
        return bool(is_moment and group_of[name] == group_of[pick] and abs(one - other) <= gap)

    known = [] if case["centres"] is None else list(case["centres"])
    picks: list[str] = []
    while len(picks) < case["k"]:
        taken = [group_of[name] for name in picks]
        free = [
            name
            for name in case["ids"]
            if name not in picks
            and (group_of[name] is None or taken.count(group_of[name]) < cap)
            and not any(is_near(name, pick) for pick in picks)
        ]
        rows = case["embeddings"][[row_of[name] for name in free]]
        best = reference(rows, free, k=1, centres=np.array(known) if known else None)
        if not best:
            break
        point = case["embeddings"][row_of[best[0]]].astype(float)
        if known and min(np.linalg.norm(point - np.asarray(centre, float)) for centre in known) < least:
            break  # the farthest: so all are
        picks += best
        known.append(point)
    return picks


def loop(embeddings: np.ndarray, ids: np.ndarray, *, k: int) -> list[str]:
    """Ten lines of NumPy in float64, for more rows than Python's integers are good for."""
    points = embeddings.astype(np.float64)
    distance = np.full(len(points), np.inf)
    picks: list[int] = []
    for _ in range(k):
        ties = np.flatnonzero(distance == distance.max())
        picks.append(ties[np.argmin(ids[ties])])
        distance = np.minimum(distance, ((points - points[picks[-1]]) ** 2).sum(axis=1))
        distance[picks] = -1
    return list(ids[picks])


@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_picks_are_those_of_a_plain_loop_on_many_rows(num_shards: int) -> None:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(40, 16))
    embeddings = (centres[rng.integers(0, 40, 6000)] + 0.2 * rng.normal(size=(6000, 16))).astype(np.float16)
    ids = np.array([f"s{i:04d}" for i in rng.permutation(6000)])
    shards = [CentreShard(embeddings[i::num_shards], keys=pa.array(ids[i::num_shards])) for i in range(num_shards)]
    assert k_centre(shards, k=300).keys == loop(embeddings, ids, k=300)


@given(st.integers(1, 4096), st.floats(2**-14, 60000, width=16))
def test_sums_on_the_grid_are_integers_that_float64_holds(dim: int, largest: float) -> None:
    scale = grid_scale(largest, dim=dim)
    point = int(on_grid(np.array([largest]), scale)[0])
    assert dim * (2 * point) ** 2 <= 2**53
    assert dim * (8 * point) ** 2 > 2**48  # and no coarser than it has to be


def test_distances_are_those_at_the_time_of_the_pick() -> None:
    embeddings = np.array([[0.0], [1.0], [4.0]], np.float16)
    picks = pick_alone(embeddings, list("abc"), k=3)
    assert (picks.keys, picks.values.tolist()) == (["a", "c", "b"], [np.inf, 16.0, 1.0])


def test_bad_arguments_are_refused() -> None:
    rows = np.zeros((2, 3), np.float16)
    with pytest.raises(ValueError, match="one key a row, found 1 keys and 2 rows"):
        pick_alone(rows, ["a"], k=1)
    ids = ["a", "b"]
    with pytest.raises(ValueError, match=r"embeddings of one size, found \[2, 3\]"):
        pick_alone(rows, ids, k=1, centres=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="k must be at least 0, found -1"):
        pick_alone(rows, ids, k=-1)
    with pytest.raises(ValueError, match="max_per_group must be at least 1, found 0"):
        pick_alone(rows, ids, k=1, max_per_group=0)
    with pytest.raises(ValueError, match="min_distance must be at least 0, found nan"):
        pick_alone(rows, ids, k=1, min_distance=float("nan"))
    with pytest.raises(ValueError, match="at least one shard"):
        k_centre([], k=1)


def table(*, start: int, stop: int) -> Callable[[], pa.Table]:
    """Loads scores rows, e.g. of one file; each fifth failed."""

    def load() -> pa.Table:  # nested, so that it travels to an actor by value
        rng = np.random.default_rng(start)
        embeddings = [None if i % 5 == 0 else rng.normal(size=4).astype(np.float16) for i in range(start, stop)]
        return pa.table(
            {
                "sample_id": pa.array([f"s{i:03d}" for i in range(start, stop)], pa.string()),
                "group": pa.array([f"g{i % 9}" for i in range(start, stop)], pa.string()),
                "captured_at": pa.array([i * 200_000 for i in range(start, stop)], pa.timestamp("us", tz="UTC")),
                "embedding": pa.array(embeddings, pa.list_(pa.float16(), 4)),
            }
        )

    return load


def test_rows_without_an_embedding_never_enter() -> None:
    picks = k_centre([load_shard(table(start=0, stop=20))], k=20)
    assert sorted(picks.keys) == [f"s{i:03d}" for i in range(20) if i % 5]
    assert k_centre([load_shard(table(start=0, stop=0))], k=3).keys == []


def pick_in_actors(loaders: list[Callable[[], pa.Table]], **limits: Any) -> Picks:
    with shards_in_actors(loaders, cpus_per_actor=0.1) as shards:
        return k_centre(shards, **limits)


@pytest.mark.ray
def test_actors_pick_what_one_machine_does(local_ray: None) -> None:
    loaders = [table(start=start, stop=start + 30) for start in (0, 30, 60)]
    limits = {"k": 25, "centres": np.zeros((1, 4), np.float16), "max_per_group": 3, "min_gap": 2}
    alone = k_centre([load_shard(load) for load in loaders], **limits)
    spread = pick_in_actors(loaders, **limits)
    assert spread.keys == alone.keys
    np.testing.assert_array_equal(spread.values, alone.values)


@pytest.mark.ray
def test_a_failing_actor_says_why_in_one_line(local_ray: None) -> None:
    def fail() -> pa.Table:
        raise InputError("scores/part-7.parquet: expected a readable file")

    with pytest.raises(LossightError, match=r"^scores/part-7.parquet: expected a readable file$"):
        pick_in_actors([fail], k=1)


@pytest.mark.ray
def test_an_actor_that_is_killed_between_rounds_changes_no_pick(local_ray: None, tmp_path: Path) -> None:
    """Its successor loads the same rows and hears of all that was picked, of full groups and of centres."""
    mark = tmp_path / "killed"

    class Mortal(CentreShard):
        num_steps = 0

        def advance(self, step: ShardStep) -> ShardBest:
            self.num_steps += 1
            if self.num_steps == 4 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().advance(step)

    def mortal(load: Callable[[], pa.Table]) -> Callable[[], pa.Table]:
        def load_mortal() -> pa.Table:  # in the actor, whose shards are mortal from now on
            from distributed.selection import diversity

            diversity.CentreShard = Mortal  # type: ignore[misc]
            return load()

        return load_mortal

    loaders = [table(start=start, stop=start + 30) for start in (0, 30, 60)]
    limits = {"k": 60, "centres": np.zeros((1, 4), np.float16), "max_per_group": 6, "min_distance": 0.2, "min_gap": 2}
    with many_rounds():
        alone = k_centre([load_shard(load) for load in loaders], **limits)
        spread = pick_in_actors([loaders[0], mortal(loaders[1]), loaders[2]], **limits)
    assert mark.exists()
    assert spread.keys == alone.keys
    np.testing.assert_array_equal(spread.values, alone.values)


@pytest.mark.ray
def test_an_actor_that_dies_of_its_rows_ends_the_run_in_one_line(local_ray: None) -> None:
    def die() -> pa.Table:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(RunFailedError, match=r"^compute failed: ") as raised:
        pick_in_actors([die], k=1)
    assert "\n" not in str(raised.value)
