"""Selection of rows to label: an exact, capped list out of scores tables of any size, published as a table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
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
from model.calibration import FAILURE_PCK, read_calibration
from model.errors import DamagedError, InputError

SELECTION_FILE = "selection.parquet"


def select_samples(
    scores: str | Sequence[str],
    *,
    out: str,
    options: SelectionOptions,
    allow_mixed: bool = False,
    config: dict[str, Any] | None = None,
    night: dict[str, str] | None = None,
    workers: int = 0,
    check: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Selects from published scores tables and publishes the selection; returns its record (run.json).

    Where fewer rows may be selected than the budget asks for, all of them are; `num_selected` says so.

    Args:
        scores: location of a scores table, or of several; a sample that is in more than one counts once.
        out: location of the selection.
        options: which rows, and how many.
        allow_mixed: scores of different bundles are ranked together.
        config: the resolved configuration, kept beside the output with bundle, pool and excluded tables; None: the
            options.
        night: of a triage, the `night` (date) and the `triage` (absolute URI) that the record names.
        workers: tasks that read, on the cluster that is connected; 0: this process reads. It changes nothing else.
        check: called before the table, and again before its record is written; what it raises ends the call.

    Raises:
        InputError: scores are not published, of several bundles, damaged or hold no scored row; or an
            excluded table has no sample_id or a file that can't be read.
    """
    started = time.monotonic()
    tables = _read_records([scores] if isinstance(scores, str) else scores, allow_mixed=allow_mixed)
    target = locate(out)
    spec = FilterSpec(
        min_loss=options.min_loss,
        max_loss=options.max_loss,
        where=options.where,
        excluded=tuple(freeze_ids(locate(uri)) for uri in options.exclude),
        min_gap=options.min_gap,
    )
    parts = read_parts(tables)
    check_parts(parts, options)
    if options.where is not None:
        for schema in {str(part.schema): part.schema for part in parts}.values():
            parse_condition(options.where, schema)  # a bad one ends the run before anything is written
    identity = {
        "kind": "selection",
        **{
            name: ",".join(sorted({record[name] for _, record in tables}))  # of several tables all, as one text
            for name in ("bundle_id", "pool_fingerprint")
        },
        "excluded_fingerprints": [table.fingerprint for table in spec.excluded],
    }
    config = options.resolved() if config is None else config
    if not begin_run(target, config, inputs=identity, ignored=SelectOptions.undecisive()):
        return {**read_run(target, expected="selection"), "was_done": True}
    num_scored = sum(record["num_scored"] for _, record in tables)
    candidates = Candidates(parts, spec, num_scored=num_scored, workers=workers)
    try:
        budget, num_eligible = count_budget(candidates, options)
        selected, num_passed_over = choose(candidates, budget=budget, options=options)
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
            "scores": [location.absolute_uri for location, _ in tables],
            "budget": budget,
            "num_eligible": num_eligible,
            "num_selected": len(selected),
            "num_passed_over": num_passed_over,
            "num_by_reason": {each["values"]: each["counts"] for each in selected["reason"].value_counts().to_pylist()},
            "num_scored": num_scored,
            **_expected_failures(selected, [record for _, record in tables]),
            "warnings": list(dict.fromkeys(line for _, record in tables for line in record.get("warnings", []))),
            "num_excluded_ids": sum(table.num_rows for table in spec.excluded),
            "num_uncommitted_parts": sum(_count_uncommitted(*table) for table in tables),
            "strategy": options.strategy,
            "seconds": round(seconds, 3),
            "images_per_second": round(sum(record["num_rows"] for _, record in tables) / seconds, 1),
        },
    )


def fingerprint(selected: pa.Table) -> str:
    """Hash of the selected ids, by rank."""
    return hashlib.sha256("\n".join(selected["sample_id"].to_pylist()).encode()).hexdigest()[:16]


def read_selection(location: Location) -> pa.Table:
    """The published selection at a location, by rank.

    Raises:
        InputError: there is none, or it is damaged.
    """
    read_run(location, expected="selection")
    return read_table(location.join(SELECTION_FILE))


def _read_records(scores: Sequence[str], *, allow_mixed: bool) -> list[tuple[Location, dict[str, Any]]]:
    """The location and the published record of each scores table."""
    tables = [(location, read_run(location, expected="scores")) for location in map(locate, scores)]
    bundles = {record["bundle_id"]: location.uri for location, record in tables}
    if len(bundles) > 1 and not allow_mixed:
        found = ", ".join(f"{bundle_id} in {uri}" for bundle_id, uri in bundles.items())
        raise InputError(
            f"--scores: expected scores of one bundle, found {found}: losses that different bundles predict don't "
            "compare; score with one, or rank them together nevertheless with --allow-mixed"
        )
    if not any(record["num_scored"] for _, record in tables):
        num_rows = sum(record["num_rows"] for _, record in tables)
        raise InputError(f"{', '.join(scores)}: expected at least one scored row, found {num_rows} rows with errors")
    return tables


def _count_uncommitted(location: Location, record: dict[str, Any]) -> int:
    """Number of files that lie beside the published parts, and are not read."""
    return len({*list_parts(location)} - {*record["parts"], *record.get("superseded", [])})


def _expected_failures(selected: pa.Table, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Expected failures in the selection, and in a random draw of as many; null unless one bundle made all scores."""
    is_one = len({record["bundle_id"] for record in records}) == 1
    calibration = read_calibration(records[0].get("calibration")) if is_one else None
    if calibration is None:
        return {"expected_failures": None, "expected_failures_at_random": None}
    found = calibration.failure_probability(selected["predicted_loss"].to_numpy()).sum()
    scored = [record for record in records if record["loss_quantiles"]]
    shares = [calibration.failure_probability(np.array(record["loss_quantiles"])).mean() for record in scored]
    at_random = float(np.average(shares, weights=[record["num_scored"] for record in scored])) * len(selected)
    return {
        "failure_pck": FAILURE_PCK,
        "expected_failures": round(float(found), 1),
        "expected_failures_at_random": round(at_random, 1),
    }
