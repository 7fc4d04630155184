"""Strategies of selection, and the control arm beside them.

A strategy is one function from candidates, a budget and the options to the rows that it would select, by rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.options import parse_budget
from distributed.schema import SELECTION
from distributed.selection.best_rows import CANDIDATES
from distributed.selection.candidates import Candidates, Ranked
from distributed.selection.diversity import (
    diversify,
    drop_near,
    embeddings_of,
    load_shard,
    shards_in_actors,
    with_embedding,
)
from distributed.selection.k_centre import k_centre
from distributed.selection.options import SelectionOptions, Strategy
from distributed.storage.threads import in_threads
from distributed.tables.scores_reader import ReadablePart
from model.errors import InputError

# The hybrid chooses among this multiple of the budget, from the highest losses down. Measured on a synthetic fleet.
_BEST_FACTOR = 20
_BEST_GROWTH = 4

_log = logging.getLogger("lossight")


def check_parts(parts: Sequence[ReadablePart], options: SelectionOptions) -> None:
    """Passes if the scores have what the strategy looks at.

    Raises:
        InputError: they have no embeddings, or some of different sizes.
    """
    older = [part for part in parts if not part.has_captured_at]
    if options.min_gap and older:
        _log.warning(
            "%s: scores of an earlier version have no captured_at: --min-gap passes over none of their rows; "
            "score the pool into a new folder",
            older[0].location.uri,
        )
    if not options.reads_embeddings:
        return
    for part in parts:
        if "embedding" not in part.schema.names:
            raise InputError(
                f"{part.location.uri}: column 'embedding': expected one, found none: score the pool with --embeddings"
            )
        kind, first = part.schema.field("embedding").type, parts[0].schema.field("embedding").type
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != first.list_size:
            expected = f"{first}, as in {parts[0].location.uri}" if kind != first else "fixed_size_list<halffloat>[D]"
            raise InputError(f"{part.location.uri}: column 'embedding': expected {expected}, found {kind}")


def choose(candidates: Candidates, *, budget: int, options: SelectionOptions) -> Ranked:
    """The selection (`SELECTION`): the strategy's rows by its order, then the control arm's by that of the draw.

    The control arm has its share of the budget, to the nearest whole row and a half upwards, whatever the strategy
    finds; where limits and pool leave less than the budget, its share of what they leave. It never sees what is within
    the gap of the strategy's rows.

    Raises:
        InputError: scores tables contradict each other about the group or the time of a sample that would be selected.
    """
    num_control = _share(options.control_share, budget)
    rows, num_passed_over = STRATEGIES[options.strategy](candidates, budget - num_control, options)
    if num_control:
        control = _draw_control(candidates, rows, num_control, options)
        num_control = min(num_control, _share(options.control_share, len(rows) + len(control.rows)))
        if len(control.rows) < num_control:  # the strategy took what was its: the last rows by rank go back
            rows = rows.slice(0, len(rows) + len(control.rows) - num_control)
            control = _draw_control(candidates, rows, num_control, options)
        rows = pa.concat_tables([rows, control.rows])
        if num_passed_over is not None and control.num_passed_over is not None:
            num_passed_over += control.num_passed_over
    _check_samples(rows, options)
    return Ranked(_as_selection(rows), num_passed_over)


def _draw_control(candidates: Candidates, taken: pa.Table, k: int, options: SelectionOptions) -> Ranked:
    drawn = candidates.draw_besides(taken, k=k, seed=options.seed, **_caps(options))
    return _with_reason(drawn, "control")


def _share(share: float, count: int) -> int:
    """The share of a count, rounded to the nearest whole number, a half upwards; decimal as written, not as stored."""
    return int(Fraction(str(share)) * count + Fraction(1, 2))


def _by_loss(candidates: Candidates, budget: int, options: SelectionOptions) -> Ranked:
    if not options.min_distance:
        return _with_reason(candidates.best(k=budget, **_caps(options)), "loss")
    limits = _limits(candidates, options)
    num_rows = _BEST_FACTOR * budget
    while True:  # near-duplicates are passed over: so budget rows are looked for among more and more of the best
        best = _best_with_embeddings(candidates, num_rows, options)
        rows = drop_near(best.rows, k=budget, **limits)
        if len(rows) == budget or len(best.rows) < num_rows:
            return _with_reason(best._replace(rows=rows.select(CANDIDATES.names)), "loss")
        num_rows *= _BEST_GROWTH


def _at_random(candidates: Candidates, budget: int, options: SelectionOptions) -> Ranked:
    return _with_reason(candidates.draw(k=budget, seed=options.seed, **_caps(options)), "random")


def _by_both(candidates: Candidates, budget: int, options: SelectionOptions) -> Ranked:
    best = _best_with_embeddings(candidates, _BEST_FACTOR * budget, options)
    rows = diversify(best.rows, k=budget, diversity=options.diversity, **_limits(candidates, options))
    return best._replace(rows=rows.select([*CANDIDATES.names, "reason"]))


def _by_coverage(candidates: Candidates, budget: int, options: SelectionOptions) -> Ranked:
    """Coreset: all embeddings are in memory, here or in actors that have a share each."""
    loaders = candidates.loaders(columns=["sample_id", "group", "captured_at", "embedding"])
    if not loaders:
        return _with_reason(Ranked(CANDIDATES.empty_table(), None), "diverse")
    limits = {**_limits(candidates, options), "min_gap": options.min_gap}
    if candidates.workers:
        with shards_in_actors(loaders) as shards:
            picks = k_centre(shards, k=budget, **limits)
    else:
        picks = k_centre(in_threads(load_shard, loaders, num_threads=len(loaders)), k=budget, **limits)
    return _with_reason(Ranked(candidates.find(pa.array(picks.keys, pa.string())), None), "diverse")


def _best_with_embeddings(candidates: Candidates, num_rows: int, options: SelectionOptions) -> Ranked:
    """The rows of the highest losses with their embeddings, one of each moment: caps are for later, gaps are not."""
    best = candidates.best(k=num_rows, min_gap=options.min_gap)
    embeddings = candidates.fetch(best.rows, columns=["embedding"])["embedding"]
    return best._replace(rows=best.rows.append_column("embedding", embeddings))


def _caps(options: SelectionOptions) -> dict[str, Any]:
    """The limits of a walk."""
    return {"max_per_group": options.max_per_group, "min_gap": options.min_gap}


def _limits(candidates: Candidates, options: SelectionOptions) -> dict[str, Any]:
    """The limits of all strategies that look at embeddings; those of excluded rows are centres."""
    return {
        "centres": embeddings_of(with_embedding(candidates.excluded(columns=["embedding"]))),
        "max_per_group": options.max_per_group,
        "min_distance": options.min_distance,
    }


# Each gives at most so many candidates, by rank, with the `reason` of each.
STRATEGIES: dict[Strategy, Callable[[Candidates, int, SelectionOptions], Ranked]] = {
    "loss": _by_loss,
    "random": _at_random,
    "coreset": _by_coverage,
    "hybrid": _by_both,
}


def _with_reason(ranked: Ranked, reason: str) -> Ranked:
    reasons = pa.array([reason] * len(ranked.rows), pa.string())
    return ranked._replace(rows=ranked.rows.append_column("reason", reasons))


def count_budget(candidates: Candidates, options: SelectionOptions) -> tuple[int, int | None]:
    """The budget in rows, and the number of rows to choose from where it had to be counted.

    A share is rounded down, to 1 at least.
    """
    budget = parse_budget(str(options.budget))
    if isinstance(budget, int):
        return budget, None
    num_eligible = candidates.count()
    return max(1, int(budget * num_eligible)), num_eligible


def _check_samples(rows: pa.Table, options: SelectionOptions) -> None:
    if (options.max_per_group is None and not options.min_gap) or not len(rows):
        return
    if options.max_per_group is not None and rows["group"].null_count == len(rows):
        _log.warning("--max-per-group %d capped nothing: no selected row has a group", options.max_per_group)
    counts = rows["sample_id"].value_counts()
    repeated = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(repeated):
        raise InputError(
            "--scores: expected one group and one captured_at a sample, found several of "
            f"{repeated[0]['values'].as_py()!r}, which --max-per-group and --min-gap cannot count"
        )


def _as_selection(rows: pa.Table) -> pa.Table:
    columns = {
        **dict(zip(rows.column_names, rows.columns, strict=True)),
        "rank": pa.array(np.arange(1, len(rows) + 1, dtype=np.int32)),
        "predicted_loss": pc.add(rows["predicted_loss"], np.float32(0)),  # of two zeros that tie, the same
    }
    return pa.table([columns[name] for name in SELECTION.names], schema=SELECTION)
