"""Drift: the distances of a night's predicted losses from those of the nights before, and their limits.

Each of the last nights is compared by itself, and the (lower) median of the distances counts: one odd night among
them neither hides a drift nor makes the ordinary night after it look odd, and a change that stays is the new normal
once half of the nights have it. Works on sketches: distances are right to about a hundredth.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.evaluation.slices import MOST_VALUES, SLICEABLE, is_sliceable, values_of
from distributed.storage.location import Location, read_again
from distributed.tables.parquet import open_table
from distributed.tables.sketch import Sketch, merge_sketches, sketch
from distributed.triage.options import DriftOptions
from model.errors import InputError

# Of the reference's rows an equal share in each, as is usual in credit scoring, where the index comes from: with more,
# the noise of small nights grows; with fewer, a change of the tail, which is what is selected, goes unseen.
NUM_BINS = 10
NUM_NIGHTS = 7  # before, of the same bundle, that a night is compared with
# The median of one or two nights says nothing.
MIN_NIGHTS = 3
# Each night many distances are looked at, over a year thousands: chance alone may exceed a bound once in a thousand.
# PSI of two samples of one distribution is about (1/n + 1/m) times chi-squared with NUM_BINS − 1 degrees of freedom
# (Yurdakul & Naranjo 2020); KS by Smirnov's asymptotic: sqrt(−ln(α/2)/2 · (1/n + 1/m)).
_PSI_NOISE = 27.877  # the 99.9th percentile of chi-squared with 9 degrees of freedom
_KS_NOISE = math.sqrt(-math.log(0.001 / 2) / 2)

_log = logging.getLogger("lossight")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The distances of one slice from itself in the nights before; column and value None: of all rows."""

    column: str | None
    value: str | None
    num_scored: int
    num_nights: int  # it was compared with
    psi: float | None = None  # median over these nights; None: not judged
    ks: float | None = None
    is_drifted: bool = False

    def __str__(self) -> str:
        """Description of the drift in words."""
        where = "all rows" if self.column is None else f"{self.column}={self.value}"
        if self.psi is None or self.ks is None:
            return f"{where}: not judged"
        return f"{where}: PSI {self.psi:.2f}, KS {self.ks:.2f} against {self.num_nights} nights"


Key = tuple[str | None, str | None]  # column and value; (None, None): all rows
Slices = dict[Key, Sketch]  # the losses of the rows of each


def sketch_slices(scores: Location, parts: Sequence[str], columns: Sequence[str]) -> Slices:
    """The losses of the rows of each value of each column. Reads a part at a time.

    A column of more than `MOST_VALUES` values has no slices: the log names it.

    Args:
        scores: location of a scores table.
        parts: its published parts.
        columns: its columns.

    Raises:
        InputError: a part is damaged, or a column makes no slices.
    """
    found: dict[str, dict[str, list[Sketch]]] = {column: defaultdict(list) for column in columns}
    for path in parts if columns else ():
        rows = read_again(partial(_read_losses, columns=list(columns)), scores.join(*path.split("/")))
        for column, of_value in found.items():
            if len(of_value) <= MOST_VALUES:
                for value, losses in _by_value(rows, column).items():
                    of_value[value].append(sketch(losses))
    for column in [column for column, of_value in found.items() if len(of_value) > MOST_VALUES]:
        _log.warning("--drift-columns %s: more than %d values: not compared", column, MOST_VALUES)
        del found[column]
    return {
        (column, value): merge_sketches(sketches)
        for column, of_value in found.items()
        for value, sketches in sorted(of_value.items())
    }


def _read_losses(part: Location, *, columns: list[str]) -> pa.Table:
    with open_table(part) as reader:
        rows = reader.read(columns=["predicted_loss", *columns])
    return rows.filter(pc.is_valid(rows["predicted_loss"]))


def _by_value(rows: pa.Table, column: str) -> dict[str, NDArray[np.floating]]:
    if not is_sliceable(rows[column].type):
        raise InputError(f"--drift-columns {column}: expected {SLICEABLE}, found {rows[column].type}")
    found = values_of(rows[column])
    order = np.argsort(found.codes, kind="stable")
    losses = rows["predicted_loss"].to_numpy()[found.rows[order]]
    ends = np.cumsum(np.bincount(found.codes, minlength=len(found.names)))
    return dict(zip(found.names, np.split(losses, ends[:-1]), strict=True)) if found.names else {}


def population_stability_index(night: Sketch, reference: Sketch) -> float:
    """Σ (p − q) ln(p / q) over bins of equal shares of the reference; p, q: shares of the night and the reference.

    0 for equal distributions. An empty bin counts as half of the least that a sketch can tell (half a row, of few
    rows): a logarithm needs a share. Values that tie with a bin's edge are in the lower bin; where ties make edges one,
    so are the bins.

    Source: Siddiqi, Credit Risk Scorecards, 2006; 0.1 and 0.25 are his limits.
    """
    steps = np.arange(1, NUM_BINS) * len(reference.quantiles) / NUM_BINS
    edges = np.unique(np.asarray(reference.quantiles)[np.ceil(steps).astype(np.int64) - 1])
    q, p = (np.maximum(_shares(each, edges), 0.5 / len(each.quantiles)) for each in (reference, night))
    return float(((p - q) * np.log(p / q)).sum())


def kolmogorov_smirnov(night: Sketch, reference: Sketch) -> float:
    """The largest difference of the two cumulative distributions, 0 to 1."""
    every = np.concatenate([night.quantiles, reference.quantiles])
    difference = _cumulative(night, every) - _cumulative(reference, every)
    return float(np.abs(difference).max())


def judge(slices: Slices, before: Sequence[dict[str, Any]], options: DriftOptions) -> list[Drift]:
    """The drift of each slice of a night, in their order.

    Args:
        slices: of the night; all rows are one of them.
        before: rows of the history, of this bundle: the nights to compare with.
        options: limits.
    """
    reference = [slices_of(row) for row in before]
    return [
        _judge(key, found, [each[key] for each in reference if key in each], options) for key, found in slices.items()
    ]


def slices_of(row: dict[str, Any]) -> Slices:
    """The slices that a row of the history has; all rows first."""
    every: Slices = {(None, None): Sketch(row["num_scored"], tuple(row["loss_quantiles"]))}
    for each in row["slices"]:
        every[each["column"], each["value"]] = Sketch(each["num_scored"], tuple(each["loss_quantiles"]))
    return every


def _judge(key: Key, night: Sketch, before: Sequence[Sketch], options: DriftOptions) -> Drift:
    usable = [each for each in before if each.num_values >= options.drift_min_rows]
    drift = Drift(column=key[0], value=key[1], num_scored=night.num_values, num_nights=len(usable))
    if night.num_values < options.drift_min_rows or len(usable) < MIN_NIGHTS:
        return drift
    psi = _lower_median(population_stability_index(night, each) for each in usable)
    ks = _lower_median(kolmogorov_smirnov(night, each) for each in usable)
    noise = 1 / night.num_values + 1 / _lower_median(each.num_values for each in usable)
    max_psi = max(options.max_psi, _PSI_NOISE * noise)
    max_ks = max(options.max_ks, _KS_NOISE * math.sqrt(noise))
    return replace(drift, psi=psi, ks=ks, is_drifted=psi > max_psi or ks > max_ks)


def _lower_median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def _cumulative(sketch: Sketch, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the rows up to and at each value."""
    return np.searchsorted(np.asarray(sketch.quantiles), at, side="right") / len(sketch.quantiles)


def _shares(sketch: Sketch, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of the rows in each bin between the edges."""
    return np.diff(_cumulative(sketch, edges), prepend=0.0, append=1.0)
