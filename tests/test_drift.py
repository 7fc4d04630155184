"""Distances between distributions of scores against scipy and numbers worked by hand; what is said of a night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import scores_table, with_file_ids
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from distributed.evaluation.slices import MOST_VALUES
from distributed.storage.location import Location, locate
from distributed.tables.scores import write_part
from distributed.tables.sketch import NUM_QUANTILES, Sketch, sketch
from distributed.triage.drift import (
    NUM_BINS,
    Drift,
    DriftOptions,
    judge,
    kolmogorov_smirnov,
    population_stability_index,
    sketch_slices,
)
from model.errors import InputError

FEW = st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=NUM_QUANTILES)
ALL = (None, None)


def sketch_of(values: Sequence[float]) -> Sketch:
    return sketch(np.asarray(values, np.float64))


@given(*[st.lists(st.floats(-5, 5, width=16), min_size=4, max_size=NUM_QUANTILES)] * 2)  # scipy's p-value needs some
def test_ks_of_few_values_is_scipys(night: list[float], reference: list[float]) -> None:
    expected = stats.ks_2samp(night, reference, method="asymp").statistic
    assert kolmogorov_smirnov(sketch_of(night), sketch_of(reference)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (1.5, 1.0), (0.0, 2.0)])
def test_ks_of_many_values_is_scipys_to_a_hundredth(shift: float, scale: float) -> None:
    rng = np.random.default_rng(1)
    night, reference = rng.normal(shift, scale, 20_000), rng.normal(0, 1, 30_000)
    expected = stats.ks_2samp(night, reference, method="asymp").statistic
    assert kolmogorov_smirnov(sketch(night), sketch(reference)) == pytest.approx(expected, abs=0.01)


def test_psi_by_hand() -> None:
    """The reference has a value in each of ten bins; the night three in the first, seven in the last, none between."""
    reference, night = sketch_of(range(1, 11)), sketch_of([1, 1, 1, 10, 10, 10, 10, 10, 10, 10])
    empty = 0.5 / 10
    expected = (0.3 - 0.1) * math.log(3) + (0.7 - 0.1) * math.log(7) + 8 * (empty - 0.1) * math.log(empty / 0.1)
    assert population_stability_index(night, reference) == pytest.approx(expected)


def test_psi_of_two_bins_by_hand() -> None:
    """All ties but one value: the edges at 0 are one, so there are two bins; shares 0.9 and 0.1 become 0.5 each."""
    reference, night = sketch_of([0] * 9 + [1]), sketch_of([0] * 5 + [1] * 5)
    expected = (0.5 - 0.9) * math.log(0.5 / 0.9) + (0.5 - 0.1) * math.log(0.5 / 0.1)
    assert population_stability_index(night, reference) == pytest.approx(expected)


def test_psi_of_normals_is_that_of_their_distributions() -> None:
    """Against the shares that the normal distribution itself has in the deciles of another."""
    rng = np.random.default_rng(2)
    edges = stats.norm.ppf(np.arange(1, NUM_BINS) / NUM_BINS)
    shares = np.diff(stats.norm.cdf(edges, loc=0.5), prepend=0, append=1)
    expected = ((shares - 1 / NUM_BINS) * np.log(shares * NUM_BINS)).sum()
    found = population_stability_index(sketch(rng.normal(0.5, 1, 50_000)), sketch(rng.normal(0, 1, 50_000)))
    assert found == pytest.approx(expected, abs=0.03)


@given(FEW)
def test_equal_distributions_have_no_distance(values: list[float]) -> None:
    assert population_stability_index(sketch_of(values), sketch_of(values)) == 0
    assert kolmogorov_smirnov(sketch_of(values), sketch_of(values)) == 0


@given(FEW, FEW)
def test_distances_are_never_negative_and_ks_at_most_one(night: list[float], reference: list[float]) -> None:
    assert population_stability_index(sketch_of(night), sketch_of(reference)) >= -1e-12
    assert 0 <= kolmogorov_smirnov(sketch_of(night), sketch_of(reference)) <= 1 + 1e-12


# What is said of a night


def history_row(
    values: Sequence[float], slices: dict[tuple[str, str], Sequence[float]] | None = None
) -> dict[str, Any]:
    every = sketch_of(values)
    return {
        "num_scored": every.num_values,
        "loss_quantiles": list(every.quantiles),
        "slices": [
            {"column": column, "value": value, "num_scored": len(own), "loss_quantiles": list(sketch_of(own).quantiles)}
            for (column, value), own in (slices or {}).items()
        ],
    }


def draw(seed: int, *, mean: float = 0.0, num_rows: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, num_rows)


def judged(values: Sequence[float], before: list[dict[str, Any]], **options: Any) -> Drift:
    (finding,) = judge({ALL: sketch_of(values)}, before, DriftOptions(**options))
    return finding


def test_a_shift_is_drift_and_chance_is_not() -> None:
    before = [history_row(draw(seed)) for seed in range(3)]
    assert not judged(draw(10), before).is_drifted
    found = judged(draw(10, mean=1.0), before)
    assert found.is_drifted
    assert str(found).startswith("all rows: PSI ")


def test_one_odd_night_before_makes_no_ordinary_night_odd_and_hides_no_drift() -> None:
    before = [history_row(draw(seed, mean=3.0 if seed == 2 else 0.0)) for seed in range(4)]
    assert not judged(draw(10), before).is_drifted
    assert judged(draw(10, mean=1.0), before).is_drifted


def test_a_change_that_stays_is_the_new_normal_once_half_of_the_nights_have_it() -> None:
    means = [0, 0, 0, 0, 2, 2, 2, 2]
    before = [history_row(draw(seed, mean=mean)) for seed, mean in enumerate(means)]
    is_drifted = [judged(draw(20 + last, mean=2.0), before[last - 4 : last]).is_drifted for last in (4, 5, 6, 7, 8)]
    assert is_drifted == [True, True, False, False, False]


@pytest.mark.parametrize("num_nights", [0, 1, 2])
def test_with_fewer_than_three_nights_nothing_is_said(num_nights: int) -> None:
    found = judged(draw(1, mean=9.0), [history_row(draw(seed)) for seed in range(num_nights)])
    assert (found.psi, found.ks, found.is_drifted, str(found)) == (None, None, False, "all rows: not judged")


def test_with_too_few_rows_on_either_side_nothing_is_said() -> None:
    few, many = draw(1, mean=9.0, num_rows=199), draw(1, mean=9.0, num_rows=200)
    assert judged(few, [history_row(draw(seed)) for seed in range(3)]).psi is None
    assert judged(many, [history_row(draw(seed, num_rows=199)) for seed in range(3)]).psi is None
    assert judged(many, [history_row(draw(seed, num_rows=200)) for seed in range(3)]).is_drifted


def test_chance_alone_is_rarely_drift_however_small_the_nights() -> None:
    """Of 500 nights of 30 rows: at limits that chance exceeds nearly always, if its bound did not hold."""
    options = {"drift_min_rows": 2, "max_psi": 0.01, "max_ks": 0.01}
    alarms = sum(
        judged(
            draw(4 * number, num_rows=30),
            [history_row(draw(4 * number + k, num_rows=30)) for k in (1, 2, 3)],
            **options,
        ).is_drifted
        for number in range(500)
    )
    assert alarms <= 5


def test_each_value_is_compared_with_itself_where_it_was_before() -> None:
    """The rear camera is always different from the front one; today the front one has gone dark."""
    front, rear, new = ("camera", "front"), ("camera", "rear"), ("camera", "new")
    before = [history_row(draw(seed), {front: draw(seed), rear: draw(seed, mean=5)}) for seed in range(3)]
    slices = {
        ALL: sketch_of(draw(7)),
        front: sketch_of(draw(8, mean=2)),
        rear: sketch_of(draw(9, mean=5)),
        new: sketch_of(draw(9)),
    }
    found = judge(slices, before, DriftOptions())
    assert [each.is_drifted for each in found] == [False, True, False, False]
    assert [str(each).partition(":")[0] for each in found] == ["all rows", "camera=front", "camera=rear", "camera=new"]
    assert found[3].num_nights == 0


# The losses of each value


def write_scores(out: Location, losses: list[float | None], *, start: int = 0, **columns: pa.Array) -> str:
    """A part of these rows; its path."""
    count = len(losses)
    rows = scores_table(losses, pool_file=[f"{start}.parquet"] * count, pool_row=list(range(count)))
    for name, values in columns.items():
        rows = rows.append_column(name, values)
    return write_part(out, with_file_ids(rows)).path


def test_losses_by_value_over_several_parts(tmp_path: Path) -> None:
    out, rng = locate(str(tmp_path)), np.random.default_rng(0)
    losses = [rng.normal(size=30).astype(np.float32) for _ in range(2)]
    cameras = [rng.choice(["front", "rear", "ü"], size=30) for _ in range(2)]
    paths = [
        write_scores(out, own.tolist(), start=part, camera=pa.array(names), gain=pa.array(range(30)))
        for part, (own, names) in enumerate(zip(losses, cameras, strict=True))
    ]
    found = sketch_slices(out, paths, ["camera"])
    every, names = np.concatenate(losses), np.concatenate(cameras)
    assert found == {("camera", name): sketch(every[names == name]) for name in ("front", "rear", "ü")}
    assert sketch_slices(out, paths, []) == {}
    assert sketch_slices(out, paths, ["gain"])["gain", "7"].num_values == 2


def test_rows_without_a_value_or_a_loss_are_none(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    path = write_scores(out, [1.0, 2.0, None, 4.0], camera=pa.array(["front", None, "front", "rear"]))
    found = sketch_slices(out, [path], ["camera"])
    assert {key: each.quantiles for key, each in found.items()} == {("camera", "front"): (1,), ("camera", "rear"): (4,)}


def test_a_column_of_too_many_values_is_named_and_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = locate(str(tmp_path))
    names = [f"v{number:03d}" for number in range(MOST_VALUES + 1)]
    path = write_scores(out, [0.5] * len(names), id=pa.array(names), camera=pa.array(["front"] * len(names)))
    assert [*sketch_slices(out, [path], ["id", "camera"])] == [("camera", "front")]
    assert "--drift-columns id: more than 200 values: not compared" in caplog.text


def test_a_row_with_a_list_counts_for_each_of_its_values(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    path = write_scores(out, [1.0, 2.0], tags=pa.array([["rain", "blur"], ["rain"]]))
    found = sketch_slices(out, [path], ["tags"])
    assert {key: each.quantiles for key, each in found.items()} == {("tags", "blur"): (1,), ("tags", "rain"): (1, 2)}


def test_a_column_that_makes_no_slices_is_named(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    path = write_scores(out, [1.0], speed=pa.array([2.5]))
    with pytest.raises(InputError, match=r"--drift-columns speed: expected text, .*, found double"):
        sketch_slices(out, [path], ["speed"])
