"""Analysis of the ranking objectives, KL over pairs against a margin: the numbers and plots of docs/analysis.md.

Gradients come by autograd out of model/objective.py; true losses are independent draws from a Gamma distribution of
shape k and scale theta. With a labelled table and a bundle, the bundle's own losses stand beside it.
Source: Shukla & Ahmed, "A Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPRW 2021.
Their parameters are not printed: k = 4 with theta = 0.0666 gives all 13 printed values (1/15: 12, and .0935 for .094).

python benchmarks/analysis.py [--labelled LABELLED --model MODEL] [--out docs]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from scipy.integrate import quad
from scipy.special import gammainc, gammaincinv

from distributed.evaluation.rows import Observed, evaluate_rows, observed
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from model.loss_head import HIDDEN_WIDTHS
from model.metrics import spearman, top_means, top_size
from model.objective import kl_ranking_loss, margin_ranking_loss

PAPER = {"k": 4, "theta": 0.0666}
CLOSE_PRINTED = {0.02: 0.094, 0.04: 0.185, 0.06: 0.274, 0.08: 0.358, 0.1: 0.437, 0.125: 0.527, 0.15: 0.607}
TARGETS_PRINTED = {0.0: 0.5, 0.1: 0.39, 0.2: 0.30, 0.3: 0.25, 0.4: 0.21, 0.5: 0.18}
A, B, C = (0.45, 1.48), (0.47, 1.51), (2.87, 1.63)  # the paper's worked example: true and predicted loss
OBJECTIVES = {"LL": margin_ranking_loss, "LL++": kl_ranking_loss}
WORST_SHARE = 0.1  # of the images: what a labelling budget might take
BLUE, ORANGE, GREEN, GREY = "#0969da", "#e36209", "#2da44e", "#57606a"

Numbers = np.ndarray


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, and writes the plots where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labelled", help="labelled rows that the bundle was not trained on")
    parser.add_argument("--model", help="the model bundle whose losses are looked at")
    parser.add_argument("--out", type=Path, help="folder for the plots, SVG; none are drawn if not given")
    options = parser.parse_args(arguments)
    if bool(options.labelled) != bool(options.model):
        parser.error("expected both --labelled and --model or neither, found one")
    show_gradients()
    show_gamma()
    rows = read_rows(options.labelled, options.model) if options.labelled else None
    if rows is not None:
        show_losses(rows.true_loss)
        show_targets(rows)
    if options.out:
        draw_all(options.out, rows)


# Gradients


class Gradients(NamedTuple):
    """Gradients of one pair's objective: by the prediction of i (scalar), the last weight (F,), the features of i (F,).

    `difference` is theta_i - theta_j (F,), `weight` the last weight (F,).
    """

    prediction: float
    last_weight: Numbers
    features: Numbers
    difference: Numbers
    weight: Numbers


def gradients(objective: Any, first: tuple[float, float], second: tuple[float, float]) -> Gradients:
    """The objective's gradients by autograd, for one pair of images with (true, predicted) losses.

    The last layer is s = w . theta. Of w and theta only their product is given: w is drawn, and theta is drawn and then
    moved along w to where the product is right.
    """
    true, predicted = torch.tensor([first, second], dtype=torch.float64).unbind(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(HIDDEN_WIDTHS[-1], dtype=torch.float64, generator=generator)
    theta = torch.randn(2, len(weight), dtype=torch.float64, generator=generator)
    theta += (predicted - theta @ weight)[:, None] * weight / weight.square().sum()
    weight.requires_grad_()
    theta.requires_grad_()
    scores = theta @ weight
    by_score, by_weight, by_theta = torch.autograd.grad(objective(scores, true, pairs="half"), [scores, weight, theta])
    return Gradients(
        prediction=by_score[0].item(),
        last_weight=by_weight.numpy(),
        features=by_theta[0].numpy(),
        difference=(theta[0] - theta[1]).detach().numpy(),
        weight=weight.detach().numpy(),
    )


def closed_form(name: str, first: tuple[float, float], second: tuple[float, float]) -> float:
    """The factor of (theta_i - theta_j) and of w in the gradient: q_i - p_i for LL++; 0, 1 or -1 for LL at margin 1."""
    (true_i, score_i), (true_j, score_j) = first, second
    if name == "LL++":
        return 1 / (1 + math.exp(score_j - score_i)) - true_i / (true_i + true_j)
    order = math.copysign(1.0, true_i - true_j)
    return -order if order * (score_i - score_j) < 1 else 0.0


def show_gradients() -> None:
    """The worked example: the factor by autograd and in closed form, and the norm by the last weight."""
    print("\n| pair | objective | value | ∂/∂ŝ_i by autograd | closed form | ‖∇_w‖ ÷ ‖θ_i - θ_j‖ | ‖∇_θ_i‖ ÷ ‖w‖ |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    norm = np.linalg.norm
    for pair, second in {"(a, b)": B, "(a, c)": C}.items():
        for name, objective in OBJECTIVES.items():
            found = gradients(objective, A, second)
            true, predicted = torch.tensor([A, second], dtype=torch.float64).unbind(1)
            cells = [
                f"{objective(predicted, true, pairs='half').item():.3g}",
                f"{found.prediction:.4f}",
                f"{closed_form(name, A, second):.4f}",
                f"{norm(found.last_weight) / norm(found.difference):.4f}",
                f"{norm(found.features) / norm(found.weight):.4f}",
            ]
            print(f"| {pair} | {name} | " + " | ".join(cells) + " |")


# The Gamma model


def probability_close(delta: float, *, k: float, theta: float) -> float:
    """P(|X - Y| <= delta): the share of pairs whose losses differ by no more.

    Twice the integral of F(x + delta) - F(x) over the distribution F of X: over u = F(x), from 0 to 1.

    Raises:
        ValueError: delta < 0, k < 1 or theta <= 0.
    """
    _check(delta, k, theta)
    if delta == 0:
        return 0.0
    excess, _ = quad(lambda u: gammainc(k, gammaincinv(k, u) + delta / theta) - u, 0, 1)
    return float(2 * excess)


def expected_target(delta: float, *, k: float, theta: float) -> float:
    """E[x / (2x + delta) | y - x = delta]: what LL++ expects of the lower-loss image of a pair that far apart.

    Quadrature over x, whose density given delta is proportional to (x (x + delta))^(k-1) exp(-2x / theta). There is a
    closed form for integer k, but it is an alternating sum with an exponential integral, and cancels for large delta.

    Raises:
        ValueError: delta < 0, k < 1 or theta <= 0.
    """
    _check(delta, k, theta)
    if delta == 0:
        return 0.5
    gap = delta / theta  # x and delta in units of theta
    mode = (k - 1 - gap + math.hypot(k - 1, gap)) / 2
    # x in units of the density's mode, where quad looks; relative to its height, against overflow.
    unit = max(mode, 1.0)

    def log_density(x: float) -> float:
        return (k - 1) * (math.log(x) + math.log1p(x / gap)) - 2 * x

    def density(u: float) -> float:
        return math.exp(log_density(unit * u) - log_density(unit))

    total, _ = quad(density, 0, math.inf)
    mean, _ = quad(lambda u: density(u) * u / (2 * u + gap / unit), 0, math.inf)
    return float(mean / total)


def _check(delta: float, k: float, theta: float) -> None:
    if not (delta >= 0 and k >= 1 and theta > 0):
        raise ValueError(f"expected delta >= 0, k >= 1 and theta > 0, found {delta=}, {k=}, {theta=}")


def show_gamma() -> None:
    """Both rows of the paper, printed and computed."""
    close = [probability_close(delta, **PAPER) for delta in CLOSE_PRINTED]
    targets = [expected_target(delta, **PAPER) for delta in TARGETS_PRINTED]
    _table("δ", CLOSE_PRINTED, {"P(\\|X - Y\\| ≤ δ), printed": CLOSE_PRINTED.values(), "computed": close}, digits=3)
    rows = {"E[x / (2x + δ) \\| y - x = δ], printed": TARGETS_PRINTED.values(), "computed": targets}
    _table("δ", TARGETS_PRINTED, rows, digits=2)


def _table(corner: str, columns: Any, rows: dict[str, Any], *, digits: int) -> None:
    print(f"\n| {corner} | " + " | ".join(f"{column:g}" for column in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |")


# Measured losses


def read_rows(labelled: str, model: str) -> Observed:
    """The rows with a true loss: an image without labelled keypoints has none."""
    bundle = read_bundle(locate(model))
    manifest = freeze_labelled(locate(labelled), skeleton=bundle.spec.skeleton)
    rows = observed(evaluate_rows(bundle, manifest))
    print(f"{len(rows.true_loss)} rows, {rows.is_evaluated.sum()} with a true loss, {rows.is_judged.sum()} with a PCK")
    known = rows.take(rows.is_evaluated & (rows.true_loss > 0))
    blank = math.pi * bundle.spec.sigma**2 / bundle.spec.heatmap_size**2  # mean square of a target of peak 1
    near = np.mean(np.abs(known.true_loss / blank - 1) <= 0.2)
    print(f"loss of blank heatmaps {blank:.5f}; {near:.0%} of the true losses within 20 % of it")
    return known


class Fit(NamedTuple):
    """A Gamma distribution fitted to losses by maximum likelihood; `distance` is Kolmogorov and Smirnov's."""

    k: float
    theta: float
    distance: float


def fit_gamma(losses: Numbers) -> Fit:
    """A Gamma distribution fitted to positive losses (N,), closer than one given beforehand: see `usual_distance`."""
    k, _, theta = stats.gamma.fit(losses, floc=0)
    return Fit(float(k), float(theta), float(stats.kstest(losses, stats.gamma(k, scale=theta).cdf).statistic))


def usual_distance(fit: Fit, num: int) -> float:
    """The distance that 95 of 100 samples of a true Gamma distribution stay below, each fitted in its turn.

    Source: Lilliefors, "On the Kolmogorov-Smirnov Test for Normality with Mean and Variance Unknown", JASA 1967.
    """
    samples = np.random.default_rng(0).gamma(fit.k, fit.theta, (200, num))
    return float(np.quantile([fit_gamma(sample).distance for sample in samples], 0.95))


def pairs_within(losses: Numbers, delta: float) -> float:
    """Share of the N(N - 1)/2 pairs of losses (N,) that differ by at most delta."""
    ordered = np.sort(losses)
    num_within = np.searchsorted(ordered, ordered + delta, side="right") - np.arange(1, len(ordered) + 1)
    return float(num_within.sum() / (len(ordered) * (len(ordered) - 1) / 2))


def lower_shares(losses: Numbers, levels: Sequence[float]) -> Numbers:
    """Quantiles, over all pairs of losses (N,), of the lower one's share of the sum: LL++'s target."""
    i, j = np.triu_indices(len(losses), 1)
    return np.quantile(np.minimum(losses[i], losses[j]) / (losses[i] + losses[j]), levels)


def show_losses(losses: Numbers) -> None:
    """The fit; how close pairs are, at the paper's shares of the mean loss; and LL++'s targets."""
    fit, mean, paper_mean = fit_gamma(losses), losses.mean(), PAPER["k"] * PAPER["theta"]
    print(f"\n{len(losses)} true losses: mean {mean:.5f}, standard deviation {losses.std():.5f}")
    print(f"fitted: k = {fit.k:.2f}, theta = {fit.theta:.6f}; KS distance {fit.distance:.4f}, ", end="")
    print(f"below {usual_distance(fit, len(losses)):.4f} in 95 % of true Gamma samples")
    named = {"paper's Γ": (PAPER, paper_mean), "fitted Γ": ({"k": fit.k, "theta": fit.theta}, mean)}
    shares = [delta / paper_mean for delta in CLOSE_PRINTED]
    rows = {name: [probability_close(share * unit, **law) for share in shares] for name, (law, unit) in named.items()}
    rows["measured losses"] = [pairs_within(losses, share * mean) for share in shares]
    _table("δ ÷ mean loss: P(\\|X - Y\\| ≤ δ)", [round(share, 3) for share in shares], rows, digits=3)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    # X / (X + Y) of two draws is distributed as Beta(k, k), whatever theta is; the lower share is its lower half.
    rows = {name: stats.beta(law["k"], law["k"]).ppf(np.divide(levels, 2)) for name, (law, _) in named.items()}
    rows["measured losses"] = lower_shares(losses, levels)
    _table("quantile of the lower loss's share p", levels, rows, digits=3)


# Targets


def show_targets(rows: Observed) -> None:
    """A table of each ranking's agreement with both targets, and the PCK of its worst tenth."""
    judged = rows.take(rows.is_judged)
    misses = 1 - judged.image_pck
    scores = {
        "1 - PCK": misses,
        "true loss": judged.true_loss,
        "predicted loss": judged.predicted_loss,
        "heatmap confidence": -judged.confidence,
    }
    worst = top_size(len(misses), WORST_SHARE) - 1
    print(f"\n{len(misses)} images with a PCK; mean of their PCK {judged.image_pck.mean():.3f}")
    print("| ranked by | Spearman with the true loss | Spearman with 1 - PCK | PCK@0.2 of the worst tenth |")
    print("| --- | --- | --- | --- |")
    for name, score in scores.items():
        cells = spearman(score, judged.true_loss), spearman(score, misses), top_means(score, judged.image_pck)[worst]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")


# Plots


def draw_all(folder: Path, rows: Observed | None) -> None:
    """The plots, as SVG files of the folder; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"gradients": draw_gradients(), "gamma": draw_gamma()}
    if rows is not None:
        figures |= {"losses": draw_losses(rows.true_loss), "targets": draw_targets(rows.take(rows.is_judged))}
    with mpl.rc_context({"svg.hashsalt": "lossight", "svg.fonttype": "none"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"analysis_{name}.svg", metadata={"Date": None})


def _panels(num: int, *, width: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 3.6), layout="constrained", facecolor="white")
    axes = list(figure.subplots(1, num, squeeze=False)[0])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(color="#d0d7de", lw=0.6)
        each.set_axisbelow(True)
    return figure, axes


def draw_gradients() -> Figure:
    """The gradient by the lower-loss image's prediction, over how far the predictions are apart."""
    figure, axes = _panels(2, width=9)
    gaps = np.linspace(-4, 4, 321)
    for panel, second, name in zip(axes, (B, C), ("b: nearly equal losses", "c: losses far apart"), strict=True):
        for (label, objective), colour in zip(OBJECTIVES.items(), (ORANGE, BLUE), strict=True):
            slopes = [gradients(objective, (A[0], gap), (second[0], 0.0)).prediction for gap in gaps]
            panel.plot(gaps, slopes, color=colour, lw=2, label=label)
            here = gradients(objective, A, second).prediction
            panel.plot(A[1] - second[1], here, "o", color=colour, ms=7)
            panel.annotate(f"{here:.3f}", (A[1] - second[1], here), (6, -13), textcoords="offset points", color=colour)
        panel.axhline(0, color=GREY, lw=0.8)
        panel.set(title=f"a against {name}", xlabel="gap of the predictions, ŝ_a - ŝ_j", ylim=(-0.6, 1.3))
        panel.legend(frameon=False, loc="upper left")
    axes[0].set_ylabel("gradient by ŝ_a")
    return figure


def draw_gamma() -> Figure:
    """Both quantities of the paper as lines, its printed values as points."""
    figure, axes = _panels(2, width=9)
    for panel, function, printed in zip(
        axes, (probability_close, expected_target), (CLOSE_PRINTED, TARGETS_PRINTED), strict=True
    ):
        deltas = np.linspace(0, 0.6, 61)
        panel.plot(deltas, [function(delta, **PAPER) for delta in deltas], color=BLUE, lw=2, label="computed")
        panel.plot(list(printed), list(printed.values()), "o", color=ORANGE, label="printed in the paper")
        panel.set(xlabel="gap δ of two true losses (mean loss 0.267)", ylim=(0, None))
        panel.legend(frameon=False)
    axes[0].set(title="share of pairs that are no further apart", ylabel="P(|X - Y| ≤ δ)")
    axes[1].set(title="LL++'s target of the lower-loss image", ylabel="E[x / (2x + δ) | y - x = δ]")
    return figure


def draw_losses(losses: Numbers) -> Figure:
    """Measured losses and the fitted Gamma: density, and share of pairs that are close."""
    figure, axes = _panels(2, width=9)
    fit, mean = fit_gamma(losses), losses.mean()
    law = stats.gamma(fit.k, scale=fit.theta / mean)  # of loss ÷ mean
    edges = np.linspace(0, np.quantile(losses / mean, 0.998), 51)
    density, _ = np.histogram(losses / mean, edges, density=True)
    axes[0].stairs(density, edges, fill=True, color=BLUE, alpha=0.35, label=f"{len(losses):,} measured losses")
    axes[0].plot(edges, law.pdf(edges), color=ORANGE, lw=2, label=f"fitted Γ, k = {fit.k:.1f}")
    axes[0].plot(edges, stats.gamma(4, scale=0.25).pdf(edges), color=GREY, ls="--", label="the paper's Γ, k = 4")
    axes[0].set(title="true losses", xlabel="true loss ÷ mean loss", ylabel="density")
    shares = np.linspace(0, 1.5, 61)
    axes[1].plot(shares, [pairs_within(losses, share * mean) for share in shares], color=BLUE, lw=2, label="measured")
    for label, k, colour, style in (("fitted Γ", fit.k, ORANGE, "-"), ("the paper's Γ", 4, GREY, "--")):
        close = [probability_close(share, k=k, theta=1 / k) for share in shares]
        axes[1].plot(shares, close, color=colour, ls=style, label=label)
    axes[1].set(
        title="share of pairs that are no further apart",
        xlabel="gap δ ÷ mean loss",
        ylabel="P(|X - Y| ≤ δ)",
        ylim=(0, 1),
    )
    for panel in axes:
        panel.legend(frameon=False)
    return figure


def draw_targets(judged: Observed) -> Figure:
    """A plot of the share of keypoints missed in each twentieth of the images by true loss."""
    figure, (panel,) = _panels(1, width=6)
    misses = (1 - judged.image_pck)[np.argsort(judged.true_loss, kind="stable")]
    parts = np.array_split(misses, 20)
    middles = (np.arange(20) + 0.5) * 5
    low, high = np.array([np.quantile(part, (0.1, 0.9)) for part in parts]).T
    panel.fill_between(middles, low, high, color=BLUE, alpha=0.2, lw=0, label="80 % of the images")
    panel.plot(middles, [part.mean() for part in parts], "o-", color=BLUE, ms=4, label="mean")
    panel.set(
        xlabel="images by true loss: lowest to highest, %",
        ylabel="1 - PCK@0.2: share of keypoints missed",
        xlim=(0, 100),
        ylim=(0, 1.02),
    )
    panel.legend(frameon=False, loc="lower right")
    return figure


if __name__ == "__main__":
    main()
