"""The charts of a report: figures of matplotlib, as images of SVG that the page embeds.

# N values
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from model.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = (7.6, 2.3)
_ACCENT, _COOL, _PALE, _INK, _RULE = "#b4531a", "#2f6f9f", "#c9d3dc", "#5c6570", "#e3e6ea"  # as in page.css
_FEWEST_BINS, _MOST_BINS = 8, 40
_VALUES_PER_BIN = 8
_BAR = 110, 12  # width and height, px
_MOST_TIMES = 4.0  # at the end of a bar

Values = NDArray[np.float64]


def draw_scores(scored: Values, selected: Values, nights: Sequence[Values]) -> Figure | None:
    """Histograms of the predicted losses (N,): shares of all scored rows, of the selected ones, and of earlier nights.

    All are samples or quantiles that stand for equal shares; what is not finite does not enter. None without a number.
    """
    samples = [values[np.isfinite(values)] for values in (scored, selected, *nights)]
    joined = np.concatenate(samples)
    if not len(joined):
        return None
    num_bins = int(np.clip(len(joined) // _VALUES_PER_BIN, _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(*_widened(float(joined.min()), float(joined.max())), num_bins + 1)
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for values in samples]
    figure = _figure()
    axes = figure.axes[0]
    axes.stairs(shares[0], edges, fill=True, color=_PALE, alpha=0.75)
    axes.stairs(shares[1], edges, fill=True, color=_ACCENT, alpha=0.55)
    for share in shares[2:]:
        axes.stairs(share, edges, color=_COOL, alpha=0.45)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.05 * max(float(share.max()) for share in shares))
    return figure


def draw_calibration(calibration: Calibration, selected: Values) -> Figure:
    """Share of failures and PCK by predicted loss, and a band over the middle 90 % of the selected losses (N,)."""
    knots = np.asarray(calibration.predicted_loss)
    finite = selected[np.isfinite(selected)]
    low, high = np.quantile(finite, [0.05, 0.95]) if len(finite) else (knots[0], knots[0])
    ends = _widened(float(min(knots[0], low)), float(max(knots[-1], high)))
    figure = _figure()
    axes = figure.axes[0]
    axes.axvspan(low, high, color=_ACCENT, alpha=0.1, lw=0)
    for values, colour in ((calibration.failure_share, _ACCENT), (calibration.pck, _COOL)):
        axes.plot([ends[0], *knots, ends[1]], [values[0], *values, values[-1]], color=colour, lw=2)  # level beyond
    axes.set_xlim(*ends)
    axes.set_ylim(0, 1)
    return figure


def as_image(figure: Figure | None, *, title: str) -> Markup:
    """An `img` element with the figure as SVG; nothing without one. The same figure gives the same bytes."""
    if figure is None:
        return Markup("")
    from matplotlib import rc_context

    svg = io.BytesIO()
    with rc_context({"svg.hashsalt": "lossight", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    data = base64.b64encode(svg.getvalue()).decode()
    # Inside an image the SVG may have styles of its own, which the page's policy does not admit.
    return Markup('<img class="chart" alt="{}" src="data:image/svg+xml;base64,{}">').format(title, data)


def times_bar(times: float) -> Markup:
    """A bar from 1, to the right for more and to the left for less; its ends are 4 times and nothing."""
    width, height = _BAR
    one = width / 3
    end = one + (min(times, _MOST_TIMES) - 1) / (_MOST_TIMES - 1) * (width - one) if times >= 1 else one * times
    left, right = sorted((one, end))
    side = "more" if times >= 1 else "less"
    bar = f'<rect class="bar-{side}" x="{left:.1f}" y="2" width="{right - left:.1f}" height="{height - 4}" rx="2"/>'
    mark = f'<path class="bar-one" d="M{one:.1f} 0V{height}"/>'
    return Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{bar}{mark}</svg>')  # noqa: S704 - numbers


def _figure() -> Figure:
    """An empty chart over predicted losses, its other axis in percent."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_RULE)
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.spines["bottom"].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("predicted loss", loc="right", fontsize=9, color=_INK)
    return figure


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, of a width that one can divide by."""
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high), 1e-30) else (low - 0.5, high + 0.5)
