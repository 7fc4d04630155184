"""The page of the analysis and its script, against the paper's printed numbers, its example and a Monte Carlo."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import gammainc

from benchmarks.analysis import (
    OBJECTIVES,
    A,
    B,
    C,
    closed_form,
    expected_target,
    fit_gamma,
    gradients,
    lower_shares,
    main,
    pairs_within,
    probability_close,
    usual_distance,
)
from distributed.ingest.fleet import row_of
from distributed.schema import labelled
from model.synthetic import Sample

PAGE = Path(__file__).parent.parent / "docs" / "analysis.md"
# Both rows of the paper, rounded as printed. It does not print its parameters; these give all 13 numbers.
PRINTED = {"k": 4, "theta": 0.0666}
P_CLOSE = [(0.02, 0.094), (0.04, 0.185), (0.06, 0.274), (0.08, 0.358), (0.1, 0.437), (0.125, 0.527), (0.15, 0.607)]
TARGETS = [(0.0, 0.5), (0.1, 0.39), (0.2, 0.30), (0.3, 0.25), (0.4, 0.21), (0.5, 0.18)]


@pytest.mark.parametrize(("delta", "printed"), P_CLOSE)
def test_probability_of_a_close_pair_matches_the_paper(delta: float, printed: float) -> None:
    assert round(probability_close(delta, **PRINTED), 3) == printed
    # 1/15, the round number next to it, is 0.00003 short of the first one's last digit.
    assert probability_close(delta, k=4, theta=1 / 15) == pytest.approx(printed, abs=5.5e-4)


@pytest.mark.parametrize(("delta", "printed"), TARGETS)
def test_expected_target_matches_the_paper(delta: float, printed: float) -> None:
    assert round(expected_target(delta, **PRINTED), 2) == printed
    assert round(expected_target(delta, k=4, theta=1 / 15), 2) == printed


@pytest.mark.parametrize("k", [1, 2, 4, 9])
@pytest.mark.parametrize("delta", [0.0, 0.01, 0.3, 5.0])
def test_probability_of_a_close_pair_is_a_mixture_of_gammas_for_integer_shapes(k: int, delta: float) -> None:
    # Expand (x + delta)^(k-1) in the density of the difference, the integral of f(x) f(x + delta).
    weights = [math.comb(k - 1 + m, m) / 2 ** (k - 1 + m) for m in range(k)]
    expected = sum(weight * gammainc(k - m, delta / 0.25) for m, weight in enumerate(weights))
    assert probability_close(delta, k=k, theta=0.25) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("k", [1, 2, 4, 9, 2.5, 58.8])
def test_both_match_a_simulation(k: float) -> None:
    num_pairs, theta, delta = 400_000, 0.25, 0.3
    x, y = np.random.default_rng(int(k)).gamma(k, theta, (2, num_pairs))
    gap = np.abs(x - y)
    # Four standard errors, over the pairs near delta: across so short a range the target hardly varies.
    near = np.abs(gap - delta) < 0.01
    targets = (np.minimum(x, y) / (x + y))[near]
    assert probability_close(delta, k=k, theta=theta) == pytest.approx((gap <= delta).mean(), abs=2 / num_pairs**0.5)
    assert expected_target(delta, k=k, theta=theta) == pytest.approx(
        targets.mean(), abs=4 * targets.std() / len(targets) ** 0.5
    )


def test_exponential_losses_have_an_exponential_gap() -> None:
    assert probability_close(0.7, k=1, theta=2.0) == pytest.approx(1 - math.exp(-0.35))


def test_a_pair_without_a_gap_is_never_closer_and_has_the_target_one_half() -> None:
    assert probability_close(0.0, **PRINTED) == 0
    assert expected_target(0.0, **PRINTED) == 0.5
    assert expected_target(1e-9, **PRINTED) == pytest.approx(0.5, abs=1e-7)


def test_only_the_gap_in_units_of_the_scale_matters() -> None:
    assert probability_close(0.3, k=3, theta=0.1) == pytest.approx(probability_close(30, k=3, theta=10))
    assert expected_target(0.3, k=3, theta=0.1) == pytest.approx(expected_target(30, k=3, theta=10))


@pytest.mark.parametrize("k", [1, 4, 300])
def test_a_vast_gap_is_certain_to_cover_and_leaves_no_target(k: int) -> None:
    assert probability_close(1e6, k=k, theta=1.0) == pytest.approx(1)
    # X is then a Gamma of shape k and half the scale, beside which delta is everything.
    assert expected_target(1e6, k=k, theta=1.0) == pytest.approx(k / 2 / 1e6, rel=1e-3)


@pytest.mark.parametrize("function", [probability_close, expected_target])
@pytest.mark.parametrize(("delta", "k", "theta"), [(-0.1, 4, 1.0), (0.1, 0, 1.0), (0.1, 4, 0.0), (math.nan, 4, 1.0)])
def test_impossible_parameters_are_refused(function, delta: float, k: int, theta: float) -> None:
    with pytest.raises(ValueError, match="expected delta >= 0"):
        function(delta, k=k, theta=theta)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("first", [A, (0.45, 1.7), (0.45, 3.0), (0.45, -5.0)])
@pytest.mark.parametrize("second", [B, C, (0.1, 1.6)])
def test_gradients_are_the_closed_forms(name: str, first: tuple[float, float], second: tuple[float, float]) -> None:
    found = gradients(OBJECTIVES[name], first, second)
    factor = closed_form(name, first, second)
    assert found.prediction == pytest.approx(factor, abs=1e-12)
    np.testing.assert_allclose(found.last_weight, factor * found.difference, atol=1e-12)
    np.testing.assert_allclose(found.features, factor * found.weight, atol=1e-12)


def test_a_gamma_sample_is_fitted_and_a_uniform_one_is_not_a_gamma() -> None:
    rng = np.random.default_rng(0)
    fit = fit_gamma(rng.gamma(4, 0.05, 4000))
    # Four standard errors: that of k is about k sqrt(2 / N).
    assert fit.k == pytest.approx(4, abs=4 * 4 * (2 / 4000) ** 0.5)
    assert fit.k * fit.theta == pytest.approx(0.2, abs=4 * 0.1 / 4000**0.5)
    assert fit.distance < 0.02
    uniform = fit_gamma(rng.uniform(1, 2, 500))
    assert uniform.distance > usual_distance(uniform, 500)


def test_pairs_of_measured_losses_are_counted_as_in_a_plain_loop() -> None:
    losses = np.random.default_rng(1).integers(1, 20, 60) / 8  # with ties
    pairs = list(combinations(losses, 2))
    for delta in (0.0, 0.25, 1.0, 9.0):
        assert pairs_within(losses, delta) == np.mean([abs(x - y) <= delta for x, y in pairs])
    shares = [min(x, y) / (x + y) for x, y in pairs]
    np.testing.assert_allclose(lower_shares(losses, [0.0, 0.5, 1.0]), np.quantile(shares, [0.0, 0.5, 1.0]))


def test_the_page_has_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    lines = capsys.readouterr().out.split("\n")
    page = PAGE.read_text(encoding="utf-8").split("\n")
    assert set(lines) <= set(page)
    assert "| (a, c) | LL++ | 0.245 | 0.3270 | 0.3270 | 0.3270 | 0.3270 |" in lines


def test_a_bundles_losses_are_measured_and_drawn(
    model_uri: str, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labelled").mkdir()
    rows = pa.Table.from_pylist([row_of(sample) for sample in samples[:40]], pa.schema(labelled(14)))
    pq.write_table(rows, tmp_path / "labelled" / "a.parquet")
    main(["--labelled", str(tmp_path / "labelled"), "--model", model_uri, "--out", str(tmp_path / "docs")])
    text = capsys.readouterr().out
    assert f"{len(rows)} rows, {len(rows)} with a true loss" in text
    assert "| true loss | 1.000 |" in text
    drawn = {path.name for path in (tmp_path / "docs").iterdir()}
    assert drawn == {f"analysis_{name}.svg" for name in ("gradients", "gamma", "losses", "targets")}


def test_a_table_without_a_bundle_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--labelled", "somewhere"])
    assert "expected both --labelled and --model or neither" in capsys.readouterr().err
