"""Diversity: hybrid and the near-duplicate guard against brute force."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distributed.selection import diversity as module
from distributed.selection import k_centre as kernel
from distributed.selection.diversity import diversify, drop_near
from distributed.selection.k_centre import CentreShard, k_centre

Row = tuple[list[float] | None, str | None]


def candidates(rows: list[Row], *, dim: int) -> pa.Table:
    """Candidates in selection order: s00, s01, …"""
    return pa.table(
        {
            "sample_id": pa.array([f"s{i:02d}" for i in range(len(rows))], pa.string()),
            "group": pa.array([group for _, group in rows], pa.string()),
            "embedding": pa.array(
                [None if point is None else np.array(point, np.float16) for point, _ in rows],
                pa.list_(pa.float16(), dim),
            ),
        }
    )


def ids_of(table: pa.Table) -> list[str]:
    return table["sample_id"].to_pylist()


def usable(rows: list[Row]) -> list[tuple[int, np.ndarray, str | None]]:
    found = [(i, np.array(point, float), group) for i, (point, group) in enumerate(rows) if point is not None]
    return [(i, point, group) for i, point, group in found if np.isfinite(point).all()]


def check_by_definition(
    picks: list[str], rows: list[Row], *, k: int, d: float, cap: int | None, least: float, centres: list[list[float]]
) -> None:
    """Passes if each pick has the best score of all that may be picked by then, and nothing may be picked after.

    Scores that are equal but for rounding may go in any order; where there is no rounding, at d = 0 and 1, they go by
    theirs. Before there is a centre all rows are equally far, and the first one is due.
    """
    left, known, groups = usable(rows), [np.array(centre) for centre in centres], []
    rank = {i: 1 - at / len(left) for at, (i, _, _) in enumerate(left)}
    for step in range(k + 1):
        free = [
            (i, point, group)
            for i, point, group in left
            if (group is None or cap is None or groups.count(group) < cap)
            and all(np.linalg.norm(point - other) >= least for other in known)
        ]
        if step == len(picks):
            assert step == k or not free
            return
        far = {i: min((((point - other) ** 2).sum() for other in known), default=1.0) for i, point, _ in free}
        score = {i: rank[i] ** (1 - d) * far[i] ** (d / 2) for i in far}
        due = next(i for i in score if score[i] == max(score.values())) if known or not d else min(score)
        pick = int(picks[step][1:])
        assert pick == due or (0 < d < 1 and known and score[pick] >= max(score.values()) * (1 - 1e-12))
        known.append(next(point for i, point, _ in free if i == pick))
        groups.append(next(group for i, _, group in free if i == pick))
        left = [row for row in left if row[0] != pick]


rows_2d = st.lists(
    st.tuples(
        st.none() | st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0] * 4 + [np.nan]), min_size=2, max_size=2),
        st.sampled_from([None, "a", "b"]),
    ),
    max_size=16,
)
centres_2d = st.lists(st.lists(st.sampled_from([0.0, 3.0]), min_size=2, max_size=2), max_size=3)


def as_array(centres: list[list[float]]) -> np.ndarray:
    return np.array(centres, np.float16).reshape(-1, 2)


@example(  # two scores of 2 exactly, one of which is rounded
    rows=[([1.0, 0.0], None)] * 2 + [([0.0, 0.0], None)] * 4, k=1, d=0.5, cap=None, least=0.0, centres=[[3.0, 0.0]]
)
@given(
    rows=rows_2d,
    k=st.integers(0, 18),
    d=st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]),
    cap=st.none() | st.integers(1, 3),
    least=st.sampled_from([0.0, 1.0, 1.2]),
    centres=centres_2d,
)
def test_the_picks_are_those_of_the_definition(
    rows: list[Row], k: int, d: float, cap: int | None, least: float, centres: list[list[float]]
) -> None:
    rounds = {"_FIRST_CANDIDATES": 2, "_FEWEST_CANDIDATES": 1, "_MOST_CANDIDATES": 4}
    with mock.patch.multiple(kernel, **rounds), mock.patch.multiple(module, _ROWS_AT_ONCE=3, _OTHERS_AT_ONCE=2):
        best = diversify(
            candidates(rows, dim=2),
            k=k,
            diversity=d,
            max_per_group=cap,
            min_distance=least,
            centres=as_array(centres),
        )
    check_by_definition(ids_of(best), rows, k=k, d=d, cap=cap, least=least, centres=centres)


@given(rows_2d, st.integers(0, 18), centres_2d.filter(bool))
def test_full_diversity_is_k_centre_greedy(rows: list[Row], k: int, centres: list[list[float]]) -> None:
    known = usable(rows)
    points = np.array([point for _, point, _ in known], np.float16).reshape(-1, 2)
    ids = pa.array([f"s{i:02d}" for i, _, _ in known], pa.string())
    best = diversify(candidates(rows, dim=2), k=k, diversity=1, centres=as_array(centres))
    assert ids_of(best) == k_centre([CentreShard(points, keys=ids)], k=k, centres=as_array(centres)).keys


def test_no_diversity_is_the_order_of_loss() -> None:
    table = candidates([([float(i % 3)], "a") for i in range(9)], dim=1)
    best = diversify(table, k=4, diversity=0)
    assert ids_of(best) == ids_of(table)[:4]
    assert set(best["reason"].to_pylist()) == {"loss"}


def test_the_reason_is_diverse_where_the_order_of_loss_would_not_have_taken_the_row() -> None:
    rows: list[Row] = [([0.0], "a"), ([0.0], "a"), ([0.5], "b"), ([9.0], "b"), ([1.0], "c")]
    best = diversify(candidates(rows, dim=1), k=2, diversity=0.5)
    assert list(zip(ids_of(best), best["reason"].to_pylist(), strict=True)) == [("s00", "loss"), ("s03", "diverse")]
    capped = diversify(candidates(rows, dim=1), k=3, diversity=0.5, max_per_group=1)
    # Under the caps the order of loss takes s00, s02 and s04.
    reasons = dict(zip(ids_of(capped), capped["reason"].to_pylist(), strict=True))
    assert reasons == {"s00": "loss", "s03": "diverse", "s04": "loss"}


@given(rows_2d, rows_2d, st.integers(0, 18), st.none() | st.integers(1, 3), st.sampled_from([0.0, 1.0, 1.2]))
def test_of_the_first_rows_the_guard_takes_the_beginning_of_what_it_takes_of_the_whole(
    first: list[Row], tail: list[Row], k: int, cap: int | None, least: float
) -> None:
    with mock.patch.multiple(module, _ROWS_AT_ONCE=3, _OTHERS_AT_ONCE=2):
        limits: dict[str, Any] = {"k": k, "max_per_group": cap, "min_distance": least}
        few = ids_of(drop_near(candidates(first, dim=2), **limits))
        whole = ids_of(drop_near(candidates(first + tail, dim=2), **limits))
    assert few == whole[: len(few)]
    assert whole == few or len(few) < k


def test_all_columns_are_kept() -> None:
    table = candidates([([0.0], "a"), ([9.0], "b")], dim=1)
    assert drop_near(table, k=1, min_distance=1).equals(table.slice(0, 1))
    assert diversify(table, k=2, diversity=0.5).column_names == [*table.column_names, "reason"]


def test_bad_arguments_are_refused() -> None:
    table = candidates([([0.0], "a")], dim=1)
    with pytest.raises(ValueError, match=r"diversity must be between 0 and 1, found 1.5"):
        diversify(table, k=1, diversity=1.5)
    with pytest.raises(ValueError, match="k must be at least 0, found -1"):
        diversify(table, k=-1, diversity=0.5)
    for refused in (drop_near, lambda *given, **named: diversify(*given, diversity=0.5, **named)):
        with pytest.raises(ValueError, match=r"embeddings of one size, found \[1, 2\]"):
            refused(table, k=1, min_distance=1, centres=np.zeros((1, 2)))
