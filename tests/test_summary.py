"""The summary of evaluated rows against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from distributed.evaluation.rows import observed
from distributed.evaluation.summary import calibrate, json_number, summarise
from model.pose_model import make_spec
from model.skeleton import LSP, Skeleton

NAN, INF = float("nan"), float("inf")
STICK = Skeleton(
    name="stick", keypoint_names=("top", "end"), flip_pairs=(), limbs=(), torso_diagonals=((0, 1),), head_segment=(0, 1)
)
SPEC = replace(make_spec("hourglass-small", method="ll++conv", skeleton=LSP), skeleton=STICK)

Row = tuple[str, float, float, float, str | None, list[float], list[float]]


def evaluated_table(rows: Sequence[Row]) -> pa.Table:
    names = ("sample_id", "predicted_loss", "confidence", "true_loss", "error", "distances", "head_distances")
    types = (pa.string(), *[pa.float32()] * 3, pa.string(), *[pa.list_(pa.float32(), 2)] * 2)
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(types)]
    unknown = pa.array([NAN] * len(rows), pa.float32())
    return pa.table({**dict(zip(names, columns, strict=True)), "expected_pck": unknown})


# id, predicted loss, confidence, true loss, error, distances, head distances
HAND_MADE = evaluated_table(
    [
        ("a", 10, 0.9, 1, None, [0.1, 0.3], [0.5, 0.6]),
        ("b", 20, 0.8, 2, None, [0.1, 0.1], [0.5, 0.1]),
        ("c", 30, 0.7, 3, None, [0.1, NAN], [NAN, NAN]),
        ("d", 50, 0.5, 4, None, [0.3, 0.3], [0.9, 0.9]),
        ("e", 40, 0.6, 5, None, [0.19, 0.5], [0.1, 0.1]),
        ("f", NAN, NAN, NAN, "undecodable", [INF, INF], [INF, INF]),
        ("g", 60, 0.1, NAN, None, [NAN, NAN], [NAN, NAN]),  # nothing labelled
    ]
)


def test_counts_and_means_by_hand() -> None:
    summary = summarise(HAND_MADE, spec=SPEC)
    counts = {key: summary[key] for key in ("num_rows", "num_errors", "num_evaluated", "num_judged")}
    assert counts == {"num_rows": 7, "num_errors": 1, "num_evaluated": 5, "num_judged": 5}
    assert summary["errors"] == {"undecodable": 1}
    assert summary["mean_true_loss"] == 3.0
    assert summary["mean_predicted_loss"] == 30.0


def test_pck_and_pckh_by_hand() -> None:
    summary = summarise(HAND_MADE, spec=SPEC)
    assert summary["pck"] == pytest.approx(5 / 9, abs=1e-6)
    assert summary["pck_per_image"] == pytest.approx((0.5 + 1 + 1 + 0 + 0.5) / 5)
    assert summary["pck_per_keypoint"] == {"top": 0.8, "end": 0.25}
    assert summary["pckh"] == 5 / 8
    assert summary["pckh_per_image"] == (0.5 + 1 + 0 + 1) / 4
    assert summary["pckh_per_keypoint"] == {"top": 0.75, "end": 0.5}


def test_correlations_by_hand() -> None:
    summary = summarise(HAND_MADE, spec=SPEC)
    # Ranks 1 2 3 5 4 against 1 2 3 4 5: 1 - 6 * (1 + 1) / (5 * 24); one pair of ten is the wrong way round.
    assert summary["spearman"] == {"predicted_loss": 0.9, "confidence": 0.9}
    assert summary["kendall"] == {"predicted_loss": 0.8, "confidence": 0.8}
    # Deviations -20 -10 0 20 10 and -2 -1 0 1 2: 90 / sqrt(1000 * 10).
    assert summary["pearson"]["predicted_loss"] == 0.9


def test_the_failure_curve_by_hand() -> None:
    summary = summarise(HAND_MADE, spec=SPEC)
    curve = summary["failure_curve"]
    assert curve["share"] == [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0]
    assert curve["num_images"] == [1, 1, 1, 1, 1, 2, 2, 5]
    assert curve["predicted_loss"] == [0, 0, 0, 0, 0, 0.25, 0.25, 0.6]  # d, e, …
    assert curve["oracle"] == [0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.6]  # e, d, …
    assert curve["random"] == [0.6] * 8
    assert summary["pck_of_worst"] == {"predicted_loss": 0.0, "confidence": 0.0, "oracle": 0.5}


def test_the_areas_by_hand() -> None:
    areas = summarise(HAND_MADE, spec=SPEC)["aurc"]
    # Kept a, b, c, e, d: true losses 1 2 3 5 4, of which the running means are 1, 1.5, 2, 2.75, 3.
    expected = {"predicted_loss": 2.05, "confidence": 2.05, "oracle": 2.0, "random": 3.0, "lowest": 2.0}
    assert areas["true_loss"] == pytest.approx(expected)
    # Risks 0.5 0 0 0.5 1, running means 1/2, 1/4, 1/6, 1/4, 2/5; the oracle keeps d before e: 3/8 for 1/4.
    assert areas["pck"]["predicted_loss"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 6 + 1 / 4 + 2 / 5) / 5, abs=1e-6)
    assert areas["pck"]["oracle"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 6 + 3 / 8 + 2 / 5) / 5, abs=1e-6)
    assert areas["pck"]["lowest"] == pytest.approx((0 + 0 + 1 / 6 + 1 / 4 + 2 / 5) / 5, abs=1e-6)
    assert areas["pck"]["random"] == pytest.approx(0.4)


def test_a_perfect_predictor_is_the_oracle() -> None:
    perfect = HAND_MADE.set_column(1, "predicted_loss", HAND_MADE["true_loss"])
    summary = summarise(perfect, spec=SPEC)
    assert summary["aurc"]["true_loss"]["predicted_loss"] == summary["aurc"]["true_loss"]["oracle"]
    assert summary["failure_curve"]["predicted_loss"] == summary["failure_curve"]["oracle"]
    assert summary["kendall"]["predicted_loss"] == 1.0


def test_the_order_of_rows_changes_nothing_not_even_with_ties() -> None:
    tied = HAND_MADE.set_column(1, "predicted_loss", pa.array([3, 1, 1, 3, 3, NAN, 3], pa.float32()))
    first = summarise(tied, spec=SPEC)
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(tied))
        assert summarise(tied.take(pa.array(order)), spec=SPEC) == first


def test_an_image_without_a_torso_has_a_loss_and_no_place_in_curves_of_pck() -> None:
    rows = HAND_MADE.to_pylist()
    rows[3]["distances"] = [NAN, NAN]
    summary = summarise(pa.Table.from_pylist(rows, HAND_MADE.schema), spec=SPEC)
    assert (summary["num_evaluated"], summary["num_judged"]) == (5, 4)
    assert summary["failure_curve"]["predicted_loss"][0] == 0.5  # e: d is not judged
    assert summary["aurc"]["true_loss"]["predicted_loss"] == pytest.approx(2.05)


@pytest.mark.parametrize("start", [5, 7], ids=["only unusable rows", "no rows"])
def test_a_summary_of_nothing_has_no_numbers(start: int) -> None:
    summary = summarise(HAND_MADE.slice(start), spec=SPEC)
    assert summary["num_evaluated"] == 0
    for name in ("pck", "pck_per_image", "pckh", "mean_true_loss", "mean_predicted_loss"):
        assert summary[name] is None
    for name in ("spearman", "pearson", "kendall", "pck_of_worst", "pck_per_keypoint"):
        assert set(summary[name].values()) == {None}
    assert summary["failure_curve"]["predicted_loss"] == [None] * 8
    assert set(summary["aurc"]["true_loss"].values()) == {None}
    json.dumps(summary, allow_nan=False)


def test_one_row_has_a_curve_and_no_correlation() -> None:
    summary = summarise(HAND_MADE.slice(1, 1), spec=SPEC)
    assert summary["failure_curve"]["predicted_loss"] == [1.0] * 8
    assert summary["aurc"]["true_loss"]["predicted_loss"] == 2.0
    assert summary["spearman"]["predicted_loss"] is None


def test_too_few_rows_calibrate_nothing_and_enough_do() -> None:
    assert calibrate(HAND_MADE) is None
    calibration = calibrate(pa.concat_tables([HAND_MADE] * 12))
    assert calibration is not None
    assert calibration.num_images == 60
    assert calibration.expected_true_loss(np.array([10.0])).tolist() == [1.0]


def test_rows_as_arrays() -> None:
    rows = observed(HAND_MADE)
    assert rows.num_right.tolist() == [1, 2, 1, 0, 1, 0, 0]
    assert rows.num_judged.tolist() == [2, 2, 1, 2, 2, 2, 0]
    np.testing.assert_array_equal(rows.image_pck, [0.5, 1, 1, 0, 0.5, 0, NAN])
    assert rows.is_error.tolist() == [False] * 5 + [True, False]
    assert rows.is_evaluated.tolist() == [True] * 5 + [False] * 2


def test_numbers_keep_six_digits_however_small() -> None:
    assert json_number(0.000123456789) == 0.000123457
    assert json_number(-123456.789) == -123457
    assert json_number(NAN) is None
    assert json_number(-INF) is None
