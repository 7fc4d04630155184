"""Selection of rows to label: an exact, capped list out of scores tables of any size, published as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed.runs.record import begin_run, publish_run, read_run
from distributed.selection.candidates import Candidates
from distributed.selection.filters import FilterSpec, freeze_ids, parse_condition
from distributed.selection.options import SelectionOptions, SelectOptions
from distributed.selection.strategies import check_parts, choose, count_budget
from distributed.storage.location import Location, locate, open_atomic
from distributed.tables.parquet import read_table
from distributed.tables.scores import list_parts
from distributed.tables.scores_reader import read_parts
from model.calibration import FAILURE_PCK, Calibration, read_calibration
from model.errors import DamagedError, InputError

SELECTION_FILE = "selection.parquet"


def _nothing() -> None:
    pass


def select_samples(
    scores: str | Sequence[str],
    *,
    out: str,
    options: SelectionOptions,
    allow_mixed: bool = False,
    config: dict[str, Any],
    night: dict[str, str] | None = None,
    workers: int = 0,
    check: Callable[[], None] = _nothing,
) -> dict[str, Any]:
    """Selects from published scores tables and publishes the selection; returns its record (run.json).

    Where fewer rows may be selected than the budget asks for, all of them are; `num_selected` says so.

    Args:
        scores: location of a scores table, or of several; a sample that is in more than one counts once.
        out: location of the selection.
        options: which rows, and how many.
        allow_mixed: scores of different bundles are ranked together.
        config: the resolved configuration, kept beside the output; bundle, pool and excluded tables are added to it.
        night: of a triage, the `night` (date) and the `triage` (absolute URI) that the record names.
        workers: tasks that read, on the cluster that is connected; 0: this process reads. It changes nothing else.
        check: called before the table, and again before its record is written; what it raises ends the call.

    Raises:
        InputError: scores are not published, of several bundles, damaged or hold no scored row; or an
            excluded table has no sample_id or a file that can't be read.
    """
    started = time.monotonic()
    tables = _read_tables([scores] if isinstance(scores, str) else scores, allow_mixed=allow_mixed)
    target = locate(out)
    spec = FilterSpec(
        min_loss=options.min_loss,
        max_loss=options.max_loss,
        where=options.where,
        excluded=tuple(freeze_ids(locate(uri)) for uri in options.exclude),
    )
    parts = read_parts([(table.location, table.record) for table in tables])
    check_parts(parts, options)
    if options.where is not None:
        for schema in {str(part.schema): part.schema for part in parts}.values():
            parse_condition(options.where, schema)  # a bad one ends the run before anything is written
    identity = {
        "kind": "selection",
        "bundle_id": _joined(table.record["bundle_id"] for table in tables),
        "pool_fingerprint": _joined(table.record["pool_fingerprint"] for table in tables),
        "excluded_fingerprints": [table.fingerprint for table in spec.excluded],
    }
    if not begin_run(target, config, inputs=identity, ignored=SelectOptions.undecisive()):
        return {**read_run(target, expected="selection"), "was_done": True}
    num_scored = sum(table.record["num_scored"] for table in tables)
    calibration = _calibration(tables)
    candidates = Candidates(parts, spec, num_scored=num_scored, workers=workers)
    try:
        budget, num_eligible = count_budget(candidates, options)
        selected = choose(candidates, budget=budget, options=options)
    except DamagedError as error:
        raise InputError(f"{error}; remove that file, and `lossight score` scores its rows again") from error
    check()
    with open_atomic(target.join(SELECTION_FILE)) as stream:
        pq.write_table(selected, stream, compression="zstd", write_page_checksum=True)
    seconds = time.monotonic() - started
    check()
    return publish_run(
        target,
        {
            **identity,
            **(night or {}),
            "scores": [table.location.absolute_uri for table in tables],
            "budget": budget,
            "num_eligible": num_eligible,
            "num_selected": len(selected),
            "num_by_reason": {each["values"]: each["counts"] for each in selected["reason"].value_counts().to_pylist()},
            "num_scored": num_scored,
            **_expectation(selected, tables, calibration),
            "num_excluded_ids": sum(table.num_rows for table in spec.excluded),
            "num_uncommitted_parts": sum(table.num_uncommitted for table in tables),
            "strategy": options.strategy,
            "seconds": round(seconds, 3),
            "images_per_second": round(sum(table.record["num_rows"] for table in tables) / seconds, 1),
        },
    )


def read_selection(location: Location) -> pa.Table:
    """The published selection at a location, by rank.

    Raises:
        InputError: there is none, or it is damaged.
    """
    read_run(location, expected="selection")
    return read_table(location.join(SELECTION_FILE))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A published scores table."""

    location: Location
    record: dict[str, Any]
    num_uncommitted: int  # files that lie beside the published ones, and are not read


def _read_tables(scores: Sequence[str], *, allow_mixed: bool) -> list[_Table]:
    tables = [_read_table(locate(uri)) for uri in scores]
    bundles = {table.record["bundle_id"]: table.location.uri for table in tables}
    if len(bundles) > 1 and not allow_mixed:
        found = ", ".join(f"{bundle_id} in {uri}" for bundle_id, uri in bundles.items())
        raise InputError(
            f"--scores: expected scores of one bundle, found {found}: losses that different bundles predict don't "
            "compare; score with one, or rank them together nevertheless with --allow-mixed"
        )
    if not any(table.record["num_scored"] for table in tables):
        num_rows = sum(table.record["num_rows"] for table in tables)
        raise InputError(f"{', '.join(scores)}: expected at least one scored row, found {num_rows} rows with errors")
    return tables


def _read_table(location: Location) -> _Table:
    record = read_run(location, expected="scores")
    known = {*record["parts"], *record.get("superseded", [])}
    return _Table(location=location, record=record, num_uncommitted=len(set(list_parts(location)) - known))


def _calibration(tables: Sequence[_Table]) -> Calibration | None:
    """The bundle's calibration, if one bundle made all scores."""
    if len({table.record["bundle_id"] for table in tables}) > 1:
        return None
    return read_calibration(tables[0].record.get("calibration"))


def _expectation(selected: pa.Table, tables: Sequence[_Table], calibration: Calibration | None) -> dict[str, Any]:
    """Expected number of failures in the selection, and in a random draw of as many from all scored rows."""
    if calibration is None:
        return {"expected_failures": None, "expected_failures_at_random": None}
    found = calibration.failure_probability(selected["predicted_loss"].to_numpy()).sum()
    weights = [table.record["num_scored"] for table in tables if table.record["loss_quantiles"]]
    shares = [
        calibration.failure_probability(np.array(table.record["loss_quantiles"])).mean()
        for table in tables
        if table.record["loss_quantiles"]
    ]
    at_random = float(np.average(shares, weights=weights)) * len(selected)
    return {
        "failure_pck": FAILURE_PCK,
        "expected_failures": round(float(found), 1),
        "expected_failures_at_random": round(at_random, 1),
    }


def _joined(names: Any) -> str:
    """The name that several tables have in common, or all their names."""
    return ",".join(sorted(set(names)))
