"""What to label: an exact, capped list out of a scores table of any size, as a durable table of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed.pool import Manifest, freeze_pool, read_file
from distributed.runs import begin_run, publish_run, read_run
from distributed.schema import SCORES, SELECTION
from distributed.scores import read_scores
from distributed.storage import Location, locate, open_atomic
from distributed.tables import open_table
from distributed.topk import TopK, exclude_ids, random_k
from model.errors import InputError

Strategy = Literal["loss", "random"]
SELECTION_FILE = "selection.parquet"

_IDS = pa.schema([pa.field("sample_id", pa.string())])


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """Which rows, and how many."""

    budget: int
    strategy: Strategy = "loss"
    max_per_group: int | None = None
    exclude: tuple[str, ...] = ()  # locations of tables with a sample_id: labelled tables, earlier selections
    seed: int = 0  # of the random strategy


def select_samples(scores: str, *, out: str, options: SelectionOptions, config: dict[str, Any]) -> dict[str, Any]:
    """Selects from a published scores table and publishes the selection; returns its record (run.json).

    Where fewer rows may be selected than the budget asks for, all of them are; `num_selected` says so.

    Args:
        scores: location of a scores table.
        out: location of the selection.
        options: which rows, and how many.
        config: the resolved configuration, kept beside the output; bundle, pool and excluded tables are added to it.

    Raises:
        InputError: the scores are not published, hold no scored row, or an excluded table has no sample_id or a file
            that can't be read.
    """
    source = locate(scores)
    scored = read_run(source, expected="scores")
    if not scored["num_scored"]:
        raise InputError(f"{scores}: expected at least one scored row, found {scored['num_rows']} rows with errors")
    target = locate(out)
    tables = [_freeze_ids(locate(uri)) for uri in options.exclude]
    identity = {key: scored[key] for key in ("bundle_id", "pool_fingerprint")}
    identity["excluded_fingerprints"] = [table.fingerprint for table in tables]
    excluded = _read_ids(tables)
    if not begin_run(target, config, inputs=identity, ignored=frozenset({"scores", "out", "exclude"})):
        return {**read_run(target, expected="selection"), "was_done": True}
    started = time.monotonic()
    best = _best_rows(read_scores(source), excluded, options)
    with open_atomic(target.join(SELECTION_FILE)) as stream:
        pq.write_table(_as_selection(best, options.strategy), stream, compression="zstd", write_page_checksum=True)
    return publish_run(
        target,
        {
            "kind": "selection",
            **identity,
            "budget": options.budget,
            "num_selected": len(best),
            "num_scored": scored["num_scored"],
            "num_excluded_ids": len(excluded),
            "strategy": options.strategy,
            "seconds": round(time.monotonic() - started, 3),
            "images_per_second": round(scored["num_rows"] / (time.monotonic() - started), 1),
        },
    )


def read_selection(location: Location) -> pa.Table:
    """The published selection at a location, by rank.

    Raises:
        InputError: there is none, or it is damaged.
    """
    read_run(location, expected="selection")
    with open_table(location.join(SELECTION_FILE)) as reader:
        return reader.read()


def _best_rows(batches: Iterator[pa.Table], excluded: pa.Array, options: SelectionOptions) -> pa.Table:
    """The selected rows in selection order; memory for the budget and one batch, whatever the table's size."""
    k, max_per_group = options.budget, options.max_per_group
    remaining = (exclude_ids(batch, excluded) for batch in batches)
    if options.strategy == "loss":
        top = TopK(k=k, max_per_group=max_per_group)
        for rows in remaining:
            top.push(rows)
        return top.result()
    drawn = SCORES.empty_table()
    for rows in remaining:
        drawn = random_k(pa.concat_tables([drawn, rows]), k=k, seed=options.seed, max_per_group=max_per_group)
    return drawn


def _freeze_ids(location: Location) -> Manifest:
    manifest = freeze_pool(location, schema=_IDS, may_be_empty=True)
    for file in manifest.bad_files:  # its ids are unknown, and might be selected again
        raise InputError(f"{location.uri}: expected only readable files to exclude, found {file.path}: {file.reason}")
    return manifest


def _read_ids(tables: Sequence[Manifest]) -> pa.Array:
    """All ids of some tables, once each."""
    chunks = [
        rows["sample_id"].combine_chunks()
        for manifest in tables
        for file in manifest.files
        for rows in read_file(manifest, file, columns=["sample_id"])
    ]
    return pa.concat_arrays(chunks).unique() if chunks else pa.array([], pa.string())


def _as_selection(best: pa.Table, reason: str) -> pa.Table:
    return pa.table(
        [
            pa.array(np.arange(1, len(best) + 1, dtype=np.int32)),
            best["sample_id"],
            best["predicted_loss"],
            pa.nulls(len(best), pa.float32()),
            best["group"],
            pa.array([reason] * len(best), pa.string()),
            best["pool_file"].cast(pa.string()),
            best["pool_row"],
        ],
        schema=SELECTION,
    )
