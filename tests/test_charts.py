"""Charts against hand-worked places; odd numbers do not break them."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from picked import CALIBRATION

from distributed.reporting.charts import calibration_chart, score_chart, times_bar

NAN, INF = float("nan"), float("inf")


def paths(svg: str, name: str) -> list[list[tuple[float, float]]]:
    found = [path.get("d", "") for path in ET.fromstring(svg).iter("path") if path.get("class") == name]  # noqa: S314
    pairs = re.compile(r"([\d.]+) ([\d.]+)")
    return [[(float(x), float(y)) for x, y in pairs.findall(d)] for d in found]


def test_shares_are_drawn_to_scale() -> None:
    chart = score_chart(np.array([0.0, 0.0, 0.0, 1.0]), np.array([1.0]), [np.array([0.0, 1.0])])
    (everything,), (picked,), (past,) = (paths(chart, name) for name in ("area-all", "area-picked", "line-past"))
    bottom, top = 190.0, 12.0  # of the plot
    height = (bottom - top) / 1.05  # of a share of 1
    assert everything[0][1] == pytest.approx(bottom - 0.75 * height, abs=0.1)
    assert everything[-1][1] == pytest.approx(bottom - 0.25 * height, abs=0.1)
    assert (picked[0][1], picked[-1][1]) == (pytest.approx(bottom), pytest.approx(bottom - height, abs=0.1))
    assert past[0][1] == past[-1][1] == pytest.approx(bottom - 0.5 * height, abs=0.1)


@pytest.mark.parametrize(
    ("scored", "selected"),
    [([], [1.0]), ([1.0], []), ([2.0, 2.0], [2.0]), ([NAN, INF, -INF, 0.5], [INF]), ([0.0], [0.0]), ([1e-30], [2e-30])],
)
def test_odd_numbers_make_a_chart_all_the_same(scored: list[float], selected: list[float]) -> None:
    ET.fromstring(score_chart(np.array(scored), np.array(selected), []))  # noqa: S314
    ET.fromstring(calibration_chart(CALIBRATION, np.array(selected)))  # noqa: S314


def test_without_a_number_there_is_no_chart() -> None:
    assert score_chart(np.array([NAN]), np.array([]), []) == ""


def test_the_curves_pass_through_the_knots() -> None:
    chart = calibration_chart(CALIBRATION, np.array([0.0]))
    (failures,), (pck,) = paths(chart, "line-failures"), paths(chart, "line-pck")

    def shares(line: list[tuple[float, float]]) -> list[float]:
        return [(190 - y) / (190 - 12) for _, y in line[1:-1]]

    assert shares(failures) == pytest.approx(CALIBRATION.failure_share, abs=1e-3)
    assert shares(pck) == pytest.approx(CALIBRATION.pck, abs=1e-3)


@pytest.mark.parametrize(
    ("times", "left", "width"), [(1, 36.7, 0), (4, 36.7, 73.3), (9, 36.7, 73.3), (0, 0, 36.7), (0.5, 18.3, 18.3)]
)
def test_a_bar_begins_at_one(times: float, left: float, width: float) -> None:
    (bar,) = ET.fromstring(times_bar(times)).iter("rect")  # noqa: S314
    assert (float(bar.get("x", "")), float(bar.get("width", ""))) == (left, width)
