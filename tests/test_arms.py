"""Arms of a selection against each other: shares of failures, the lift and its interval."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from distributed.evaluation.review import compare_arms
from distributed.schema import SELECTION
from jobs.evaluate import show_arms
from model.calibration import Calibration
from model.errors import InputError

NAN, INF = float("nan"), float("inf")


def evaluated(distances: dict[str, list[float]], errors: dict[str, str] | None = None) -> pa.Table:
    ids = list(distances)
    return pa.table(
        {
            "sample_id": ids,
            "predicted_loss": pa.array(np.zeros(len(ids), np.float32)),
            "error": pa.array([(errors or {}).get(name) for name in ids], pa.string()),
            "distances": pa.array(list(distances.values()), pa.list_(pa.float32(), len(distances[ids[0]]))),
        }
    )


def selection(reasons: dict[str, str | None]) -> pa.Table:
    rows = [{"rank": i, "sample_id": name, "reason": why} for i, (name, why) in enumerate(reasons.items(), 1)]
    return pa.Table.from_pylist(rows, SELECTION)


# Right, wrong, and not judged keypoints at the threshold of 0.2.
ROWS = evaluated(
    {
        "a": [0.1, 0.9, 0.9, NAN],  # 1 of 3: a failure
        "b": [0.1, 0.9, NAN, NAN],  # 1 of 2: none, half is right
        "c": [INF, 0.9, 0.9, 0.9],  # 0 of 4: a failure
        "d": [0.15, 0.0, 0.1, 0.1],
        "e": [0.0, 0.0, 0.3, 0.3],
        "f": [NAN, NAN, NAN, NAN],  # nothing judged
        "g": [0.9, 0.9, 0.9, 0.9],  # a failure
        "h": [INF, INF, INF, INF],  # unreadable
    },
    errors={"h": "undecodable"},
)


def test_the_control_arm_is_what_the_model_is_compared_with() -> None:
    arms = compare_arms(
        ROWS, selection({"a": "loss", "b": "diverse", "c": "loss", "d": "control", "e": "control", "g": "control"})
    )
    assert (arms["num_selected"], arms["num_random"], arms["random_arm"]) == (3, 3, "control")
    assert arms["pck_selected"] == pytest.approx(2 / 9, abs=1e-6)
    assert arms["pck_random"] == pytest.approx(6 / 12, abs=1e-6)
    assert arms["pck_all"] == pytest.approx(8 / 21, abs=1e-6)
    assert arms["failures_selected"] == pytest.approx(2 / 3, abs=1e-6)
    assert arms["failures_random"] == pytest.approx(1 / 3, abs=1e-6)
    assert arms["lift"] == pytest.approx(2, abs=1e-6)
    assert arms["pck_difference"] == pytest.approx(2 / 9 - 1 / 2, abs=1e-6)


def test_rows_without_a_judgement_or_with_an_error_count_in_no_arm() -> None:
    arms = compare_arms(ROWS, selection({"a": "loss", "f": "loss", "h": "loss", "g": "control"}))
    assert arms["num_selected"] == 3
    assert arms["failures_selected"] == 1.0
    assert arms["pck_selected"] == pytest.approx(1 / 3, abs=1e-6)


def test_without_a_control_arm_a_random_draw_stands_in_and_is_said_to() -> None:
    arms = compare_arms(ROWS, selection({"a": "loss", "b": None}))
    assert (arms["num_selected"], arms["num_random"], arms["random_arm"]) == (2, 2, "drawn")


@pytest.mark.parametrize(
    "reasons", [{"a": "control"}, {"f": "loss", "a": "control"}, {"a": "loss", "f": "control"}, {}]
)
def test_an_arm_with_nothing_in_it_has_no_numbers(reasons: dict[str, str | None]) -> None:
    arms = compare_arms(ROWS, selection(reasons))
    assert arms["lift"] is None
    assert arms["pck_difference"] is None
    assert arms["pck_difference_interval"] == [None, None]
    json.dumps(arms, allow_nan=False)


def test_no_failure_in_the_control_arm_leaves_the_lift_open() -> None:
    assert compare_arms(ROWS, selection({"a": "loss", "d": "control"}))["lift"] is None


def fleet(num_rows: int, *, seed: int, right: float) -> dict[str, list[float]]:
    rng = np.random.default_rng(seed)
    return {f"r{seed}-{i}": np.where(rng.random(10) < right, 0.1, 0.9).tolist() for i in range(num_rows)}


def arms_of(num_model: int, num_control: int) -> dict[str, object]:
    model, control = fleet(num_model, seed=1, right=0.5), fleet(num_control, seed=2, right=0.8)
    reasons = {**dict.fromkeys(model, "loss"), **dict.fromkeys(control, "control")}
    return compare_arms(evaluated({**model, **control}), selection(reasons))


def width(arms: dict[str, object]) -> float:
    low, high = arms["pck_difference_interval"]
    return high - low


def test_the_interval_is_that_of_the_normal_approximation_where_that_holds() -> None:
    arms = arms_of(400, 400)
    # 4,000 independent keypoints an arm: 2 × 1.96 standard errors of the difference.
    expected = 2 * 1.96 * np.sqrt(0.5 * 0.5 / 4000 + 0.8 * 0.2 / 4000)
    assert width(arms) == pytest.approx(expected, rel=0.1)
    low, high = arms["pck_difference_interval"]
    assert low < -0.3 < high


def test_few_control_rows_make_a_wide_interval() -> None:
    assert width(arms_of(400, 4)) > 3 * width(arms_of(400, 400))
    assert width(arms_of(400, 1)) > 0  # only the model's rows vary then


def test_the_same_arms_give_the_same_interval() -> None:
    assert arms_of(30, 10) == arms_of(30, 10)


def test_a_selection_from_elsewhere_is_refused_and_rows_without_labels_are_counted() -> None:
    with pytest.raises(InputError, match="--selection: expected some of its 2 ids in the labelled table, found none"):
        compare_arms(ROWS, selection({"elsewhere": "loss", "nowhere": "control"}))
    arms = compare_arms(ROWS, selection({"a": "loss", "rejected": "loss", "d": "control", "skipped": "control"}))
    assert (arms["num_selected"], arms["num_random"], arms["num_not_labelled"]) == (1, 1, 2)


def test_where_all_labelled_rows_were_selected_no_draw_is_random(capsys: pytest.CaptureFixture[str]) -> None:
    arms = compare_arms(ROWS, selection(dict.fromkeys("abcdefgh", "loss")))
    assert (arms["random_arm"], arms["num_random"], arms["lift"]) == ("none", 0, None)
    show_arms(arms)
    assert "no lift: all labelled rows were selected" in capsys.readouterr().out


def test_the_interval_of_the_lift_holds_it_and_is_open_where_the_control_arm_may_have_no_failure() -> None:
    model, control = fleet(200, seed=1, right=0.45), fleet(200, seed=2, right=0.55)
    reasons = {**dict.fromkeys(model, "loss"), **dict.fromkeys(control, "control")}
    arms = compare_arms(evaluated({**model, **control}), selection(reasons))
    low, high = arms["lift_interval"]
    # The usual interval of a ratio of shares, by the logarithm's normal approximation.
    p, q = arms["failures_selected"], arms["failures_random"]
    width = 1.96 * np.sqrt((1 - p) / (200 * p) + (1 - q) / (200 * q))
    assert [low, high] == pytest.approx([p / q * np.exp(-width), p / q * np.exp(width)], rel=0.1)
    low, high = compare_arms(ROWS, selection({"a": "loss", "c": "loss", "d": "control", "g": "control"}))[
        "lift_interval"
    ]
    assert (low, high) == (1, None)


@pytest.mark.parametrize(("failure_share", "holds"), [(0.5, True), (0.05, False)])
def test_a_calibration_holds_where_chance_explains_its_distance(failure_share: float, holds: bool) -> None:
    """Half of 200 images fail, of which every other has a right keypoint only."""
    rows = evaluated({f"r{i}": [0.1 if i % 2 else 0.9] for i in range(200)})
    calibration = Calibration(
        predicted_loss=(-1.0, 1.0), true_loss=(0, 0), pck=(1, 1), failure_share=(failure_share,) * 2, num_images=9
    )
    arms = compare_arms(rows, selection({f"r{i}": "loss" for i in range(100)}), calibration=calibration)
    assert arms["expected_failures_selected"] == failure_share
    assert arms["calibration_holds_selected"] is holds


def test_the_arms_are_shown_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_arms(compare_arms(ROWS, selection({"a": "loss", "c": "loss", "d": "control"})))
    shown = capsys.readouterr().out
    assert "control arm" in shown
    assert "100.0%" in shown
    assert "lift -, 95 % between - and -; difference of PCK -0.857, 95 % between -1.000 and -0.667" in shown
    show_arms(compare_arms(ROWS, selection({"a": "loss"})))
    assert "random draw" in capsys.readouterr().out
