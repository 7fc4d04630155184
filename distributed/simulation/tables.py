"""Results of a simulation: the paper's tables, means and deviations over seeds, paired differences, plots."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import t as student

from distributed.simulation.arm import ROW, judge_file
from distributed.simulation.options import SimulateOptions
from distributed.storage.location import Location, open_atomic, write_bytes
from distributed.tables.parquet import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT_FILE, ROWS_FILE = "report.md", "rows.parquet"
_AGAINST = ("random", "confidence")  # what each strategy is compared with, seed by seed
_NONE = "-"

Row = dict[str, Any]
Value = Callable[[Row], float | None]
Looks = Callable[[Sequence[float]], float]  # which of some means is the best


def write_report(out: Location, rows: Sequence[Row], options: SimulateOptions) -> None:
    """Writes rows.parquet, report.md and its plots from the rows that are there; the numbers depend on these alone."""
    rows = _judged_by_one(out, sorted(rows, key=lambda row: (row["strategy"], row["seed"], row["stage"])))
    with open_atomic(out.join(ROWS_FILE)) as stream:
        pq.write_table(pa.Table.from_pylist(rows, _WITH_JUDGE), stream, compression="zstd", write_page_checksum=True)
    write_bytes(out.join(REPORT_FILE), markdown(rows, options).encode())
    for name, column, title in _PLOTS:
        write_bytes(out.join(f"{name}.svg"), _plot(rows, options, column, title))


_WITH_JUDGE = ROW.append(pa.field("picks_pck_common", pa.float64()))
_PLOTS = (
    (
        "picks",
        "picks_pck_common",
        "PCK of the picks before labelling, by one common model (lower: more failures)",
    ),
    ("retrained", "test_pck", "PCK of the retrained model on the test rows"),
)


def markdown(rows: Sequence[Row], options: SimulateOptions) -> str:
    """The report: a table a question."""
    names = [name for name in (*options.strategies, *options.single_seed) if any(r["strategy"] == name for r in rows)]
    picking, all_stages = range(options.stages), range(options.stages + 1)

    def table(value: Value, stages: Sequence[int], *, best: Looks | None) -> list[str]:
        return _by_stage(rows, names, value, stages, best=best)

    parts = [
        [f"{len(rows)} stages are done; mean ± deviation over the seeds {list(options.seeds)}; best bold."],
        ["## PCK of the picks, before they are labelled: by the arm's own model (lower: more failures found)"],
        table(lambda row: row["picks_pck"], picking, best=min),
        ["## The same, by one common model a stage (the random arm's)"],
        table(lambda row: row["picks_pck_common"], picking, best=min),
        ["## PCK of the retrained model on the test rows"],
        table(lambda row: row["test_pck"], all_stages, best=max),
        *_slice_tables(rows, names, all_stages),
        ["## Differences of the retrained PCK at the last stage, seed by seed (95 % interval by Student's t)"],
        _differences(rows, names, options),
        ["## How well the ranking agrees, and what a stage costs (means over seeds and stages)"],
        _rankings(rows, names),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _judged_by_one(out: Location, rows: Sequence[Row]) -> list[Row]:
    """The rows with the PCK of their picks by the random arm's model of the same seed and stage; None without one."""
    judges: dict[tuple[int, int], pa.Table | None] = {}
    found = []
    for row in rows:
        key = (row["seed"], row["stage"])
        if key not in judges:
            place = judge_file(out, seed=key[0], stage=key[1])
            judges[key] = read_table(place) if place.exists else None
        found.append({**row, "picks_pck_common": _pck_by(judges[key], row["picks"] or [])})
    return found


def _pck_by(judge: pa.Table | None, picks: Sequence[str]) -> float | None:
    """PCK of picked rows by a judge, who has not seen those that it was trained on."""
    if judge is None or not picks:
        return None
    known = judge.filter(pc.is_in(judge["sample_id"], value_set=pa.array(picks, pa.string())))
    judged = pc.sum(known["num_judged"]).as_py()
    return pc.sum(known["num_right"]).as_py() / judged if judged else None


def _values(rows: Sequence[Row], name: str, stage: int, value: Value) -> dict[int, float]:
    """Values by seed; without those that have none."""
    found = {r["seed"]: value(r) for r in rows if r["strategy"] == name and r["stage"] == stage}
    return {seed: each for seed, each in found.items() if each is not None and math.isfinite(each)}


def _by_stage(
    rows: Sequence[Row], names: Sequence[str], value: Value, stages: Sequence[int], *, best: Looks | None
) -> list[str]:
    labelled = {stage: next((r["num_labelled"] for r in rows if r["stage"] == stage), "") for stage in stages}
    cells = {(name, stage): list(_values(rows, name, stage, value).values()) for name in names for stage in stages}
    lines = [_line("strategy", *(f"{labelled[stage]}" for stage in stages)), _line("---", *("---" for _ in stages))]
    bests = {stage: _best([cells[name, stage] for name in names if name != "oracle"], best) for stage in stages}
    for name in names:
        shown = []
        for stage in stages:
            text, mean = _spread(cells[name, stage]), _best([cells[name, stage]], best)
            is_best = mean is not None and mean == bests[stage] and name != "oracle"
            shown.append(f"**{text}**" if is_best else text)
        lines.append(_line(name, *shown))
    return lines


def _best(found: Sequence[Sequence[float]], best: Looks | None) -> float | None:
    """The best mean as it is shown; None without any, or where none is better."""
    means = [round(float(np.mean(values)), 3) for values in found if values]
    return best(means) if best and means else None


def _spread(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def _slice_tables(rows: Sequence[Row], names: Sequence[str], stages: Sequence[int]) -> list[list[str]]:
    found = sorted({each["value"] for row in rows for each in row["slices"] or []})
    parts: list[list[str]] = []
    for value in found:

        def of_slice(row: Row, value: str = value) -> float | None:
            return next((each["pck"] for each in row["slices"] or [] if each["value"] == value), None)

        count = next(each["num_rows"] for row in rows for each in row["slices"] or [] if each["value"] == value)
        parts += [
            [f"### the slice {value} of the test rows ({count} rows)"],
            _by_stage(rows, names, of_slice, stages, best=max),
        ]
    if found:
        parts += [["### all slices together, each as much"], _by_stage(rows, names, mean_of_slices, stages, best=max)]
    return parts


def mean_of_slices(row: Row) -> float | None:
    """Mean PCK of the slices of the test rows; None without slices."""
    values = [each["pck"] for each in row["slices"] or []]
    return float(np.mean(values)) if values else None


def _differences(rows: Sequence[Row], names: Sequence[str], options: SimulateOptions) -> list[str]:
    values: dict[str, Value] = {"test rows": lambda row: row["test_pck"]}
    if any(row["slices"] for row in rows):
        values["slices"] = mean_of_slices
    heads = [f"{where}: against {other}" for where in values for other in _AGAINST]
    lines = [_line("strategy", *heads), _line("---", *("---" for _ in heads))]
    for name in names:
        cells = [
            _paired(_values(rows, name, options.stages, value), _values(rows, other, options.stages, value))
            for value in values.values()
            for other in _AGAINST
        ]
        lines.append(_line(name, *cells))
    return lines


def _paired(ours: dict[int, float], theirs: dict[int, float]) -> str:
    gaps = np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
    if not len(gaps):
        return _NONE
    if len(gaps) == 1:
        return f"{gaps[0]:+.3f}"
    reach = float(student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps)))
    return f"{gaps.mean():+.3f} ({gaps.mean() - reach:+.3f} to {gaps.mean() + reach:+.3f})"


def _rankings(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    columns = {
        "rho(loss)": "spearman_loss",
        "rho(1-PCK)": "spearman_pck",
        "AUSE(loss)": "ause_loss",
        "AUSE(1-PCK)": "ause_pck",
        "near-duplicates": "near_duplicates",
        "train s": "train_seconds",
        "evaluate s": "evaluate_seconds",
        "select s": "select_seconds",
    }
    lines = [_line("strategy", *columns), _line("---", *("---" for _ in columns))]
    for name in names:
        own = [row for row in rows if row["strategy"] == name]
        means = [[row[column] for row in own if row[column] is not None] for column in columns.values()]
        lines.append(_line(name, *(f"{np.nanmean(each):.3f}" if each else _NONE for each in means)))
    return lines


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _plot(rows: Sequence[Row], options: SimulateOptions, column: str, title: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in (*options.strategies, *options.single_seed):
        _draw_arm(axes, [row for row in rows if row["strategy"] == name], name, column)
    axes.set(xlabel="labelled rows", ylabel="PCK@0.2")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _draw_arm(axes: Axes, rows: Sequence[Row], name: str, column: str) -> None:
    """Mean over seeds, and a band of one deviation either way."""
    by_size: dict[int, list[float]] = {}
    for row in rows:
        if row[column] is not None:
            by_size.setdefault(row["num_labelled"], []).append(row[column])
    sizes = sorted(by_size)
    mean = np.array([np.mean(by_size[size]) for size in sizes])
    deviation = np.array([np.std(by_size[size]) for size in sizes])
    (line,) = axes.plot(sizes, mean, marker="o", markersize=3, lw=1.5, label=name)
    axes.fill_between(sizes, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.12, lw=0)
