"""The charts of a report as SVG: small, sharp, coloured by the page's style sheet. Numbers in, markup out.

# N values
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from model.calibration import Calibration

_WIDTH, _HEIGHT = 760, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 30  # margins
_FEWEST_BINS, _MOST_BINS = 8, 40
_VALUES_PER_BIN = 8
_TICKS = 6
_BAR = 110, 12  # width and height
_MOST_TIMES = 4.0  # at the end of a bar

Values = NDArray[np.float64]


class _Frame:
    """From values to places on the canvas."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x_range, self.y_range = x, y

    def x(self, value: float) -> float:
        low, high = self.x_range
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def line(self, xs: Sequence[float] | Values, ys: Sequence[float] | Values) -> str:
        """A path."""
        points = [f"{self.x(float(x))} {self.y(float(y))}" for x, y in zip(xs, ys, strict=True)]
        return f"M{'L'.join(points)}"

    def axes(self, y_ticks: Sequence[float], *, y_format: str, title: str) -> str:
        """Both axes with their numbers, and what the lower one is of."""
        bottom = self.y(self.y_range[0])
        parts = [f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>']
        for value in y_ticks:
            place = self.y(value)
            parts.append(f'<path class="rule" d="M{_LEFT} {place}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{place + 4}" text-anchor="end">{value:{y_format}}</text>')
        parts += [
            f'<text x="{self.x(value)}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>'
            for value in _round_numbers(*self.x_range)
        ]
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{bottom + 28}" text-anchor="end">{title}</text>')
        return "".join(parts)


def score_chart(scored: Values, selected: Values, nights: Sequence[Values]) -> Markup:
    """How the predicted losses are distributed: shares of all scored (N,), of the selected, and of earlier nights.

    All are samples or quantiles that stand for equal shares; what is not finite does not enter.
    """
    samples = [values[np.isfinite(values)] for values in (scored, selected, *nights)]
    if not any(map(len, samples)):
        return Markup("")
    joined = np.concatenate(samples)
    num_bins = int(np.clip(len(joined) // _VALUES_PER_BIN, _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(*_widened(float(joined.min()), float(joined.max())), num_bins + 1)
    shares = [np.histogram(values, edges)[0] / max(len(values), 1) for values in samples]
    top = max(float(share.max()) for share in shares) * 1.05
    frame = _Frame((edges[0], edges[-1]), (0.0, top))
    areas = [
        f'<path class="area-{name}" d="{_steps(frame, edges, share)}V{frame.y(0)}H{frame.x(edges[0])}Z"/>'
        for name, share in zip(("all", "picked"), shares[:2], strict=True)
    ]
    lines = [f'<path class="line-past" d="{_steps(frame, edges, share)}"/>' for share in shares[2:]]
    axes = frame.axes(_round_numbers(0.0, top, count=4), y_format=".0%", title="predicted loss")
    return _svg("Distribution of the predicted losses", [axes, *areas, *lines])


def calibration_chart(calibration: Calibration, selected: Values) -> Markup:
    """Share of failures and PCK against predicted loss, and where the middle 90 % of the selected losses lie."""
    xs = np.asarray(calibration.predicted_loss)
    finite = selected[np.isfinite(selected)]
    low, high = np.quantile(finite, [0.05, 0.95]) if len(finite) else (xs[0], xs[0])
    ends = _widened(min(xs[0], low), max(xs[-1], high))
    level = np.concatenate([[ends[0]], xs, [ends[1]]])  # beyond the knots the maps are level
    frame = _Frame(ends, (0.0, 1.0))
    left, right = frame.x(float(low)), frame.x(float(high))
    top, bottom = frame.y(1.0), frame.y(0.0)
    band = f'<path class="area-band" d="M{left} {top}H{max(right, left + 1)}V{bottom}H{left}Z"/>'
    lines = [
        f'<path class="line-{name}" d="{frame.line(level, np.concatenate([[ys[0]], ys, [ys[-1]]]))}"/>'
        for name, ys in (("failures", calibration.failure_share), ("pck", calibration.pck))
    ]
    axes = frame.axes((0.0, 0.25, 0.5, 0.75, 1.0), y_format=".0%", title="predicted loss")
    return _svg("Calibration of the predicted loss", [axes, band, *lines])


def times_bar(times: float) -> Markup:
    """A bar from 1, to the right for more and to the left for less; its ends are 4 times and nothing."""
    width, height = _BAR
    one = width / 3
    end = one + (min(times, _MOST_TIMES) - 1) / (_MOST_TIMES - 1) * (width - one) if times >= 1 else one * times
    left, right = sorted((one, end))
    side = "more" if times >= 1 else "less"
    bar = f'<rect class="bar-{side}" x="{left:.1f}" y="2" width="{right - left:.1f}" height="{height - 4}" rx="2"/>'
    mark = f'<path class="bar-one" d="M{one:.1f} 0V{height}"/>'
    return Markup(f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{bar}{mark}</svg>')  # noqa: S704


def _svg(title: str, parts: Sequence[str]) -> Markup:
    # All of it is numbers and words of ours.
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 6}" role="img" aria-label="{title}">{"".join(parts)}</svg>')  # noqa: S704


def _steps(frame: _Frame, edges: Values, shares: Values) -> str:
    return frame.line(np.repeat(edges, 2)[1:-1], np.repeat(shares, 2))


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, of a width that one can divide by."""
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high), 1e-30) else (low - 0.5, high + 0.5)


def _round_numbers(low: float, high: float, *, count: int = _TICKS) -> list[float]:
    """About so many round numbers within a range."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough))
    first = int(np.ceil(low / step - 1e-9))
    return [round(number * step, 10) for number in range(first, int(np.floor(high / step + 1e-9)) + 1)]
