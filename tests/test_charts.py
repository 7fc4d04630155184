"""Charts against hand-worked numbers; odd numbers do not break them."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from picked import CALIBRATION

from distributed.reporting.charts import as_image, draw_calibration, draw_scores, times_bar

NAN, INF = float("nan"), float("inf")


def test_shares_of_scored_selected_and_earlier_rows() -> None:
    figure = draw_scores(np.array([0.0, 0.0, 0.0, 1.0]), np.array([1.0]), [np.array([0.0, 1.0])])
    assert figure is not None
    ends = [tuple(stairs.get_data().values[[0, -1]]) for stairs in figure.axes[0].patches]
    assert ends == [(0.75, 0.25), (0.0, 1.0), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("scored", "selected"),
    [([], [1.0]), ([1.0], []), ([2.0, 2.0], [2.0]), ([NAN, INF, -INF, 0.5], [INF]), ([0.0], [0.0]), ([1e-30], [2e-30])],
)
def test_odd_numbers_make_a_chart_all_the_same(scored: list[float], selected: list[float]) -> None:
    assert as_image(draw_scores(np.array(scored), np.array(selected), []), title="losses")
    assert as_image(draw_calibration(CALIBRATION, np.array(selected)), title="calibration")


def test_without_a_number_there_is_no_chart() -> None:
    assert as_image(draw_scores(np.array([NAN]), np.array([]), []), title="losses") == ""


def test_the_curves_pass_through_the_knots_and_are_level_beyond() -> None:
    failures, pck = draw_calibration(CALIBRATION, np.array([0.0])).axes[0].lines
    for line, values in ((failures, CALIBRATION.failure_share), (pck, CALIBRATION.pck)):
        assert list(line.get_ydata()) == [values[0], *values, values[-1]]
        assert list(line.get_xdata())[1:-1] == list(CALIBRATION.predicted_loss)


def test_an_image_is_svg_the_same_each_time_and_its_title_is_escaped() -> None:
    first, second = (as_image(draw_calibration(CALIBRATION, np.array([0.1])), title='a"b') for _ in range(2))
    assert first == second
    assert 'alt="a&#34;b"' in first
    found = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', first)
    assert found is not None
    assert ET.fromstring(base64.b64decode(found[1])).tag.endswith("svg")  # noqa: S314


@pytest.mark.parametrize(
    ("times", "left", "width"), [(1, 36.7, 0), (4, 36.7, 73.3), (9, 36.7, 73.3), (0, 0, 36.7), (0.5, 18.3, 18.3)]
)
def test_a_bar_begins_at_one(times: float, left: float, width: float) -> None:
    (bar,) = ET.fromstring(times_bar(times)).iter("rect")  # noqa: S314
    assert (float(bar.get("x", "")), float(bar.get("width", ""))) == (left, width)
