"""One stage of one arm: train on its labelled rows, evaluate on test and pool, select what to label next; one row.

OUT/models/KEY/             the bundle; KEY is the hash of method, seed, labelled ids and training options
OUT/rows/ARM-STAGE.parquet  what came out
OUT/judges/SEED-STAGE.parquet  the random arm's own PCK of each pool row that it has not labelled: the common judge
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distributed.evaluation.rows import Observed, evaluate_rows, observed
from distributed.runs.progress import silent
from distributed.runs.record import RUN_FILE, begin_run, publish_run
from distributed.schema import FILE_ID, scores_schema
from distributed.selection.options import SelectionOptions
from distributed.selection.select import read_selection, select_samples
from distributed.simulation.data import Data, hash_ids, near_duplicate_share
from distributed.simulation.options import STRATEGIES, SimulateOptions, StrategyName
from distributed.storage.bundles import read_bundle
from distributed.storage.location import Location, open_atomic
from distributed.tables.labelled import freeze_labelled
from distributed.tables.manifest import Manifest
from distributed.tables.reader import plan_bins, read_bin
from distributed.tables.scores import write_part
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.bundle import Bundle
from model.device import one_thread
from model.errors import InputError
from model.metrics import area_under_sparsification_error, spearman

_MEASURES = ("spearman_loss", "spearman_pck", "ause_loss", "ause_pck")  # of a ranking of the pool
_SLICE = pa.struct([("value", pa.string()), ("num_rows", pa.int64()), ("pck", pa.float64())])
ROW = pa.schema(
    [
        ("strategy", pa.string()),
        ("seed", pa.int64()),
        ("stage", pa.int64()),  # 0: the start
        ("method", pa.string()),
        ("model", pa.string()),
        ("num_labelled", pa.int64()),  # that the model was trained on
        ("test_pck", pa.float64()),
        ("test_loss", pa.float64()),
        ("slices", pa.list_(_SLICE)),  # of the test table
        *((name, pa.float64()) for name in _MEASURES),  # by what the strategy ranks by, over pool rows not labelled
        *((f"confidence_{name}", pa.float64()) for name in _MEASURES),  # the same model's confidence
        ("picks", pa.list_(pa.string())),  # by rank; none at the last stage
        ("picks_pck", pa.float64()),  # by this model, before they are labelled
        ("near_duplicates", pa.float64()),
        ("train_seconds", pa.float64()),
        ("evaluate_seconds", pa.float64()),
        ("select_seconds", pa.float64()),
    ]
)
JUDGED = pa.schema([("sample_id", pa.string()), ("num_right", pa.int64()), ("num_judged", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage that is to be done; travels to a task."""

    options: SimulateOptions
    data: Data
    out: Location
    strategy: StrategyName
    seed: int
    labelled: tuple[tuple[str, ...], ...]  # the start's ids, and the picks of each stage before

    @property
    def number(self) -> int:
        """0: the start."""
        return len(self.labelled) - 1

    @property
    def num_labelled(self) -> int:
        """Rows that the model is trained on."""
        return sum(map(len, self.labelled))

    @property
    def training_options(self) -> TrainingOptions:
        """Options of the stage's training."""
        return self.options.training(self.strategy, num_rows=self.num_labelled, seed=self.seed)

    @property
    def training(self) -> dict[str, Any]:
        """All that decides the model."""
        return {"labelled_ids": hash_ids(self.labelled), "options": self.training_options.decisive()}

    @property
    def model(self) -> str:
        """The name of the model: the same for all arms that train the same."""
        return hashlib.sha256(json.dumps(self.training, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Name of the stage's files."""
        return f"{self.strategy}-s{self.seed}-{self.number:02d}"


def row_file(stage: Stage) -> Location:
    """Location where the row of a stage is published."""
    return stage.out.join("rows", f"{stage.name}.parquet")


def judge_file(out: Location, *, seed: int, stage: int) -> Location:
    """Location of the random arm's view of the pool, as it was before that stage's picks were labelled."""
    return out.join("judges", f"s{seed}-{stage:02d}.parquet")


def run_stage(stage: Stage, *, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Does a stage, publishes its row (`ROW`), and returns it.

    Raises:
        InputError: the scores and caps leave too few rows to pick.
        StoppedError: `should_stop` said yes; a checkpoint is left.
    """
    data, options = stage.data, stage.options
    with one_thread():
        bundle, train_s = _timed(lambda: _train(stage, should_stop))
        (test, pool), evaluate_s = _timed(
            lambda: (_evaluate(stage, bundle, data.test), _evaluate(stage, bundle, data.pool, is_ranked=True))
        )
        known = pa.array([sample_id for ids in stage.labelled for sample_id in ids], pa.string())
        is_new = ~np.asarray(pc.is_in(pool["sample_id"], value_set=known))
        is_last = stage.number == options.stages
        picks, select_s = _timed(lambda: [] if is_last else _select(stage, bundle, pool))
    seen, of_test = observed(pool), observed(test)
    is_picked = np.asarray(pc.is_in(pool["sample_id"], value_set=pa.array(picks, pa.string())))
    if stage.strategy == "random" and not is_last:
        counts = [pool["sample_id"], seen.num_right, np.where(seen.is_evaluated, seen.num_judged, 0)]
        judged = pa.table(counts, schema=JUDGED).filter(pa.array(is_new & seen.is_judged))
        _write(judge_file(stage.out, seed=stage.seed, stage=stage.number), judged)
    row = {
        "strategy": stage.strategy,
        "seed": stage.seed,
        "stage": stage.number,
        "method": options.method_of(stage.strategy),
        "model": stage.model,
        "num_labelled": stage.num_labelled,
        "test_pck": pck_of(of_test, of_test.is_evaluated),
        "test_loss": float(of_test.true_loss[of_test.is_evaluated].mean()),
        "slices": _slices(stage, of_test),
        **_measures(_score(stage.strategy, pool), seen, is_new),
        **{f"confidence_{name}": value for name, value in _measures(-seen.confidence, seen, is_new).items()},
        "picks": picks,
        "picks_pck": None if is_last else pck_of(seen, is_picked & seen.is_evaluated),
        "near_duplicates": None if is_last else near_duplicate_share(data.pool_index, picks, known.to_pylist()),
        "train_seconds": train_s,
        "evaluate_seconds": evaluate_s,
        "select_seconds": select_s,
    }
    _write(row_file(stage), pa.Table.from_pylist([row], ROW))
    return row


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    result = call()
    return result, round(time.monotonic() - started, 3)


def _write(location: Location, table: pa.Table) -> None:
    with open_atomic(location) as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def _train(stage: Stage, should_stop: Callable[[], bool]) -> Bundle:
    place, labelled = stage.out.join("models", stage.model), stage.out.join("labelled", hash_ids(stage.labelled))
    if not place.join(RUN_FILE).exists:
        train_model(
            labelled.uri,
            out=place.uri,
            options=stage.training_options,
            skeleton=stage.options.skeleton,
            config=stage.training,
            progress=silent,
            should_stop=should_stop,
        )
    return read_bundle(place)


def _evaluate(stage: Stage, bundle: Bundle, manifest: Manifest, *, is_ranked: bool = False) -> pa.Table:
    device, threads = "cuda" if stage.options.gpus else "cpu", stage.options.decode_threads
    return evaluate_rows(bundle, manifest, device=device, decode_threads=threads, is_ranked=is_ranked)


def _score(strategy: StrategyName, evaluated: pa.Table) -> np.ndarray:
    """(N,) what a strategy ranks by, the highest first."""
    column = STRATEGIES[strategy].score
    values = np.asarray(evaluated[column], np.float64)
    return -values if column == "confidence" else values


def _select(stage: Stage, bundle: Bundle, pool: pa.Table) -> list[str]:
    """The ids that the strategy picks, by rank, through `select`."""
    options, work = stage.options, stage.out.join("work", stage.name)
    shutil.rmtree(work.path, ignore_errors=True)
    selection = STRATEGIES[stage.strategy].selection
    scores = [_scores_rows(pool, "pool", stage.data.pool_index, _score(stage.strategy, pool))]
    if stage.data.start and selection in ("coreset", "hybrid"):  # their embeddings are centres
        table = stage.data.start
        start = freeze_labelled(table.location, skeleton=stage.data.skeleton, image_root=table.image_root)
        found = _evaluate(stage, bundle, start, is_ranked=True)
        scores.append(_scores_rows(found, "start", None, _score(stage.strategy, found)))
    _publish_scores(work.join("scores"), pa.concat_tables(scores, promote_options="default"), bundle)
    select_samples(
        work.join("scores").uri,
        out=work.join("selection").uri,
        options=SelectionOptions(
            budget=options.budget,
            strategy=selection,
            max_per_group=options.max_per_group,
            min_gap=options.min_gap,
            exclude=(stage.out.join("labelled", hash_ids(stage.labelled)).uri,),
            diversity=options.diversity,
            seed=stage.seed * 1_000 + stage.number,
        ),
        config={},
    )
    picks: list[str] = read_selection(work.join("selection"))["sample_id"].to_pylist()
    shutil.rmtree(work.path)
    if len(picks) < options.budget:
        raise InputError(
            f"--budget: expected {options.budget} rows at stage {stage.number + 1} of {stage.strategy}, "
            f"found {len(picks)}: caps and scores leave no more of the pool"
        )
    return picks


def _scores_rows(evaluated: pa.Table, name: str, index: pa.Table | None, score: np.ndarray) -> pa.Table:
    """Evaluated rows as scores rows, whose predicted loss is what the strategy ranks by; the index has their groups."""
    count = len(evaluated)
    is_failed = ~np.isfinite(score)
    reasons = pa.array(["unscored" if failed else None for failed in is_failed], pa.string())
    schema = scores_schema(embedding_dim=evaluated.schema.field("embedding").type.list_size)
    columns = {
        "sample_id": evaluated["sample_id"],
        "group": pa.nulls(count) if index is None else index["group"],
        "captured_at": pa.nulls(count) if index is None else index["captured_at"],
        "predicted_loss": pa.array(score.astype(np.float32), mask=is_failed),
        "expected_pck": pa.nulls(count, pa.float32()),
        "confidence": pa.array(np.asarray(evaluated["confidence"]), mask=is_failed),
        "error": reasons,
        "pool_file": pa.array([name] * count).dictionary_encode(),
        "pool_row": np.arange(count),
        "embedding": evaluated["embedding"],
        FILE_ID: pa.array([name] * count).dictionary_encode(),
    }
    whole = schema.append(pa.field(FILE_ID, pa.dictionary(pa.int32(), pa.string())))
    return pa.table({field.name: columns[field.name] for field in whole}).cast(whole)


def _publish_scores(out: Location, rows: pa.Table, bundle: Bundle) -> None:
    begin_run(out, {})
    part = write_part(out, rows.unify_dictionaries())
    num_scored = rows["error"].null_count
    publish_run(
        out,
        {
            "kind": "scores",
            "bundle_id": bundle.bundle_id,
            "pool_fingerprint": "",
            "parts": [part.path],
            "part_footers": [part.footer],
            "num_rows": len(rows),
            "num_scored": num_scored,
            "loss_quantiles": [],
        },
    )


def _measures(score: np.ndarray, seen: Observed, is_new: np.ndarray) -> dict[str, float]:
    """Agreement of a ranking of the rows that are not labelled with their true loss, and with 1 - PCK."""
    rows = is_new & seen.is_judged & np.isfinite(score)
    ranked, loss, miss = score[rows], seen.true_loss[rows], 1 - seen.image_pck[rows]
    found = (
        spearman(ranked, loss),
        spearman(ranked, miss),
        area_under_sparsification_error(ranked, loss),
        area_under_sparsification_error(ranked, miss),
    )
    return dict(zip(_MEASURES, found, strict=True))


def pck_of(rows: Observed, keep: np.ndarray) -> float:
    """PCK of all keypoints of the kept rows together; NaN without any."""
    judged = int(rows.num_judged[keep].sum())
    return float(rows.num_right[keep].sum()) / judged if judged else float("nan")


def _slices(stage: Stage, rows: Observed) -> list[dict[str, Any]]:
    """PCK of each value of the column that tells slices, in the test table; a row of several values counts in each."""
    column, test = stage.options.slices, stage.data.test
    if column is None:
        return []
    members: dict[str, list[int]] = {}
    place = 0
    for bin_ in plan_bins(test.segments):
        for table in read_bin(test.location, bin_, columns=[column]):
            for value in table[column].to_pylist():
                for name in value if isinstance(value, list) else [value]:
                    members.setdefault(str(name), []).append(place)
                place += 1
    found = []
    for name in sorted(members):
        keep = np.zeros(len(rows.is_error), np.bool_)
        keep[members[name]] = True
        found.append({"value": name, "num_rows": int(keep.sum()), "pck": pck_of(rows, keep & rows.is_evaluated)})
    return found
