"""An evaluation as one picture: failures found, risk and coverage, predicted against true loss, and reliability.

Draws into memory without a window or global state; matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distributed.evaluation.rows import Observed
from distributed.evaluation.summary import rankings
from model.calibration import Calibration
from model.metrics import coverage_risks, top_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _CALIBRATION = "#24292f", "#d0d7de", "#8250df"
_LOOKS = {  # label, colour, line style; drawn in this order
    "random": ("random", "#8c959f", (0, (4, 3))),
    "oracle": ("true loss (oracle)", "#2da44e", "-"),
    "confidence": ("heatmap confidence", "#e36209", "-"),
    "predicted_loss": ("predicted loss", "#0969da", "-"),
}
_INCHES, _DPI = (12.0, 9.0), 130
_MOST_POINTS = 600  # of a line: more are not seen
_HEXAGONS = 42  # across
_SMALLEST_SHARE = 0.005  # of the images: the mean of a few is noise

Numbers = NDArray[np.float64]


def draw_evaluation(metrics: dict[str, Any], rows: Observed, calibration: Calibration | None) -> bytes:
    """A PNG of an evaluation in which some image is judged.

    Args:
        metrics: the record of `evaluate`.
        rows: what it was made of.
        calibration: the bundle's; without one, the fourth panel has the PCK of each keypoint.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    judged = rows.take(rows.is_judged)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, hspace=0.04, wspace=0.04)
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout=layout, facecolor="white")
    axes = figure.subplots(2, 2).ravel()
    figure.suptitle(_headline(metrics), fontsize=12, color=_INK)
    _draw_failures(axes[0], judged, metrics)
    evaluated = rows.take(rows.is_evaluated)
    _draw_risks(axes[1], evaluated, metrics)
    _draw_losses(axes[2], evaluated, metrics, calibration)
    if calibration is None:
        _draw_keypoints(axes[3], metrics)
    else:
        _draw_reliability(axes[3], metrics)
    for each in axes:
        _tidy(each)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _headline(metrics: dict[str, Any]) -> str:
    rows = f"{metrics['num_judged']:,} judged images of {metrics['num_rows']:,} rows"
    return f"bundle {metrics['bundle_id']}  ·  {rows}  ·  PCK@{metrics['pck_threshold']} {_short(metrics['pck'])}"


def _draw_failures(axes: Axes, rows: Observed, metrics: dict[str, Any]) -> None:
    num = len(rows.num_judged)
    curves = {name: top_means(score, rows.image_pck) for name, score in rankings(rows).items()}
    curves["random"] = np.full(num, rows.image_pck.mean())
    first = min(num, max(1, round(_SMALLEST_SHARE * num)))
    sizes = np.unique(np.geomspace(first, num, _MOST_POINTS).round().astype(int))
    for name, (label, colour, style) in _LOOKS.items():
        axes.plot(100 * sizes / num, curves[name][sizes - 1], color=colour, ls=style, lw=_width(name), label=label)
    axes.axvline(100 * metrics["worst_share"], color=_FAINT, lw=1, zorder=0)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100) if tick >= 99 * first / num]
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(title="Do the worst-ranked images fail?", xlabel="share of images taken, worst first")
    axes.set_ylabel(f"mean PCK@{metrics['pck_threshold']} of them (lower: failures found)")
    _legend(axes, reverse=True)


def _draw_risks(axes: Axes, rows: Observed, metrics: dict[str, Any]) -> None:
    num = len(rows.num_judged)
    risks = {name: coverage_risks(score, rows.true_loss) for name, score in rankings(rows).items()}
    risks["random"] = np.full(num, rows.true_loss.mean())
    sizes = np.unique(np.linspace(1, num, _MOST_POINTS).round().astype(int))
    for name, (label, colour, style) in _LOOKS.items():
        area = _short(metrics["aurc"]["true_loss"][name])
        axes.plot(
            100 * sizes / num,
            risks[name][sizes - 1],
            color=colour,
            ls=style,
            lw=_width(name),
            label=f"{label}: area {area}",
        )
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:.0f} %")
    axes.set(title="Are the best-ranked images safe?", xlabel="coverage: share of images kept, best first")
    axes.set_ylabel("mean true loss of them (risk)")
    _legend(axes, reverse=True)


def _draw_losses(axes: Axes, rows: Observed, metrics: dict[str, Any], calibration: Calibration | None) -> None:
    from matplotlib.ticker import LogLocator

    is_positive = bool((rows.true_loss > 0).all())
    axes.hexbin(
        rows.predicted_loss,
        rows.true_loss,
        gridsize=_HEXAGONS,
        yscale="log" if is_positive else "linear",
        bins="log",
        mincnt=1,
        vmin=0.3,  # so that a cell of one image is seen on white
        cmap="Blues",
        edgecolors="face",
        linewidths=0.3,
    )
    if is_positive:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 8)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    if calibration is not None:
        line = np.linspace(rows.predicted_loss.min(), rows.predicted_loss.max(), _MOST_POINTS)
        expected = calibration.expected_true_loss(line)
        axes.plot(line, expected, color=_CALIBRATION, lw=2, label="expected by the calibration")
        _legend(axes)
    rho = _short(metrics["spearman"]["predicted_loss"])
    rival = _short(metrics["spearman"]["confidence"])
    axes.set(title=f"Spearman {rho} (heatmap confidence {rival})", xlabel="predicted loss", ylabel="true loss")


def _draw_reliability(axes: Axes, metrics: dict[str, Any]) -> None:
    reliability = metrics["reliability"]
    errors = reliability["expected_calibration_error"]
    axes.plot([0, 1], [0, 1], color=_FAINT, lw=1.5, zorder=0)
    for name, label, marker in (("pck", "PCK", "o-"), ("failure_share", "share of failures", "s:")):
        pairs = [each[name] for each in reliability["bins"]]
        axes.plot(
            [pair["expected"] for pair in pairs],
            [pair["observed"] for pair in pairs],
            marker,
            ms=6,
            lw=1.2,
            color=_CALIBRATION,
            label=f"{label}: mean distance {_short(errors[name])}",
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set(title="Does the calibration hold? Tenths by predicted loss", xlabel="expected", ylabel="observed")
    _legend(axes)


def _draw_keypoints(axes: Axes, metrics: dict[str, Any]) -> None:
    shares = metrics["pck_per_keypoint"]
    axes.barh(list(shares), [value or 0.0 for value in shares.values()], color=_LOOKS["predicted_loss"][1], height=0.65)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set(title="PCK of each keypoint (the bundle is not calibrated)", xlabel=f"PCK@{metrics['pck_threshold']}")


def _legend(axes: Axes, *, reverse: bool = False) -> None:
    axes.legend(loc="best", reverse=reverse, edgecolor="none", facecolor="white", framealpha=0.8)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.grid(color=_FAINT, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_INK, length=0, labelsize=9)
    axes.title.set(fontsize=11, fontweight="bold", color=_INK)


def _width(name: str) -> float:
    return 2.4 if name == "predicted_loss" else 1.6


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
