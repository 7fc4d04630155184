"""Why LL wastes its gradient: how close two random losses are, and what LL++ then aims for, under a Gamma model.

True losses are taken as independent draws from a Gamma distribution of shape k and scale theta.
Source: Shukla & Ahmed, "A Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPRW 2021.
Their parameters are not printed: k = 4 with theta = 0.0666 gives all 13 printed values (1/15: 12, and .0935 for .094).
"""

from __future__ import annotations

import math

from scipy.integrate import quad
from scipy.special import gammainc


def probability_close(delta: float, *, k: int, theta: float) -> float:
    """P(|X - Y| <= delta): the share of pairs whose losses differ by no more. Closed form, integer k.

    |X - Y| is a mixture of Gamma distributions of shapes k, k - 1, ..., 1 and the same scale: expand (x + delta)^(k-1)
    in the density of the difference, the integral of f(x) f(x + delta), to find delta^(k-1-m) exp(-delta / theta) with
    the weight C(k - 1 + m, m) / 2^(k - 1 + m), for m = 0, ..., k - 1.

    Raises:
        ValueError: delta < 0, k < 1 or theta <= 0.
    """
    _check(delta, k, theta)
    weights = (math.comb(k - 1 + m, m) / 2 ** (k - 1 + m) for m in range(k))
    return math.fsum(weight * gammainc(k - m, delta / theta) for m, weight in enumerate(weights))


def expected_target(delta: float, *, k: int, theta: float) -> float:
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
    unit = max(
        mode, 1.0
    )  # x in units of the density's mode, where quad looks; relative to its height, against overflow

    def log_density(x: float) -> float:
        return (k - 1) * (math.log(x) + math.log1p(x / gap)) - 2 * x

    def density(u: float) -> float:
        return math.exp(log_density(unit * u) - log_density(unit))

    total, _ = quad(density, 0, math.inf)
    mean, _ = quad(lambda u: density(u) * u / (2 * u + gap / unit), 0, math.inf)
    return float(mean / total)


def _check(delta: float, k: int, theta: float) -> None:
    if not (delta >= 0 and k >= 1 and theta > 0):
        raise ValueError(f"expected delta >= 0, k >= 1 and theta > 0, found {delta=}, {k=}, {theta=}")
