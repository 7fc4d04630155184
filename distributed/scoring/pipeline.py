"""From Parquet row to scores row: one chained expression under Ray, the same functions in one process without.

Imports neither Ray nor torch, so that the workers that read and write start fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import pyarrow as pa

from distributed.runs.logbook import Log, Logbook, State
from distributed.runs.progress import Progress
from distributed.schema import in_flight_schema
from distributed.scoring.options import ScoringOptions
from distributed.scoring.scorer import LossScorer
from distributed.storage.location import Location
from distributed.tables.manifest import Manifest, Segment
from distributed.tables.reader import BIN_BYTES, Bin, plan_bins, salvage_bin
from distributed.tables.scores import ScoresPart, write_part
from model.sizes import choose_batch_size, rows_worth_an_actor

if TYPE_CHECKING:
    import ray.data

_ROWS_PER_GPU_ACTOR = 1000  # for fewer, it does not pay to start a process
_BINS_PER_ACTOR = 4  # with fewer, the last bin leaves actors idle
# Device batches in one call of an actor: decoding overlaps with computing inside a call only, so a fast device wants
# long calls; but a run that is to stop waits for the end of a call.
_BATCHES_PER_CALL = {"cpu": 4, "cuda": 16}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Work:
    """The rows to score, the bundle to score them with, and the place for the scores."""

    manifest: Manifest
    segments: list[Segment]  # of the manifest: rows without scores
    model: Location
    bundle_id: str
    out: Location

    @property
    def num_rows(self) -> int:
        """Rows to score."""
        return sum(segment.stop - segment.start for segment in self.segments)


def join_cluster(options: ScoringOptions, *, num_rows: int, input_size: int) -> ScoringOptions:
    """Joins the cluster; returns the options with batch size and number of actors filled in.

    Args:
        options: as they were given.
        num_rows: rows of the pool.
        input_size: side of the model's images (px).

    Raises:
        InputError: there is no such cluster, or it is too small; or this machine lacks the device.
    """
    batch_size = options.batch_size or choose_batch_size(input_size, device=options.device)
    options = options.model_copy(update={"batch_size": batch_size})
    if options.debug:
        from model.predictor import check_device

        check_device(options.device)
        return options.model_copy(update={"actors": "1"})
    from distributed.cluster.connection import connect
    from distributed.cluster.resources import check_resources, room_for

    connect(options.address)
    if not options.min_actors:
        room = room_for(cpus=options.cpus, gpus=options.gpus_per_actor)
        worth = rows_worth_an_actor(input_size) if options.device == "cpu" else _ROWS_PER_GPU_ACTOR
        count = min(room, -(-num_rows // worth))
        options = options.model_copy(update={"actors": str(count)})
    check_resources(workers=options.min_actors, cpus=options.cpus, gpus=options.gpus_per_actor)
    return options


def score_work(
    work: Work, options: ScoringOptions, *, progress: Progress, should_stop: Callable[[], bool]
) -> tuple[list[ScoresPart], State]:
    """Scores the rows and writes them as it goes; returns the parts it wrote and what it learned on the way.

    When `should_stop` says yes, the batches in flight are finished and written, and no other is begun.

    Raises:
        InputError: the cluster lacks the CPUs or GPUs.
        RunFailedError: storage or compute failed.
    """
    num_done = work.manifest.num_rows - work.num_rows

    def tell(state: State) -> None:
        num_errors = sum(state.errors.values())
        progress("score", num_done + state.num_rows, work.manifest.num_rows, num_errors=num_errors, note=state.note)

    if not work.segments:
        return [], State()
    tell(State())
    return (_score_in_process if options.debug else _score_on_ray)(work, options, tell, should_stop)


def _score_on_ray(
    work: Work, options: ScoringOptions, tell: Callable[[State], None], should_stop: Callable[[], bool]
) -> tuple[list[ScoresPart], State]:
    from distributed.cluster.tables import PartSink
    from distributed.cluster.work import watched

    with watched(tell, should_stop=should_stop) as log:
        sink = PartSink[ScoresPart](partial(_write, work.out, log))
        scored(work, options, log=log).write_datasink(sink)
        return sink.written, log.read()


def scored(work: Work, options: ScoringOptions, *, log: Log) -> ray.data.Dataset:
    """The scores rows of the work, lazily: nothing runs before they are written."""
    from distributed.cluster.tables import read_bins
    from distributed.cluster.work import actor_pool

    read = partial(_read, work.manifest.location, work.manifest.metadata, log)
    return read_bins(bins_of(work.segments, options), read).map_batches(
        LossScorer,
        fn_constructor_args=(work.model,),
        fn_constructor_kwargs={
            "options": options,
            "log": log,
            "metadata": work.manifest.metadata,
            "bundle_id": work.bundle_id,
        },
        batch_size=_BATCHES_PER_CALL[options.device] * cast(int, options.batch_size),  # filled in by `join_cluster`
        batch_format="pyarrow",
        zero_copy_batch=True,
        **actor_pool(
            min_size=options.min_actors,
            max_size=options.max_actors,
            cpus=options.cpus,
            gpus=options.gpus_per_actor,
        ),
    )


def _score_in_process(
    work: Work, options: ScoringOptions, tell: Callable[[State], None], should_stop: Callable[[], bool]
) -> tuple[list[ScoresPart], State]:
    log = Logbook()
    scorer = LossScorer(work.model, options=options, log=log, metadata=work.manifest.metadata, bundle_id=work.bundle_id)
    parts = []
    for bin_ in bins_of(work.segments, options):
        scores = []
        for rows in _read(work.manifest.location, work.manifest.metadata, log, bin_):
            scores.append(scorer(rows))
            tell(log.read())
            if should_stop():
                log.stop()
        table = pa.concat_tables(scores)
        if len(table):
            parts.append(_write(work.out, log, table))
    return parts, log.read()


def _read(location: Location, metadata: pa.Schema, log: Log, bin_: Bin) -> Iterator[pa.Table]:
    """The rows of a bin; one table without rows where there is none to score: Ray needs its schema."""
    tables = iter(()) if log.must_stop() else salvage_bin(location, bin_, on_bad_file=log.fail_file, metadata=metadata)
    seconds, num_tables, started = 0.0, 0, time.perf_counter()
    for rows in tables:
        seconds, num_tables = seconds + time.perf_counter() - started, num_tables + 1
        yield rows
        started = time.perf_counter()
    if not num_tables:
        yield in_flight_schema(metadata).empty_table()
    log.add_seconds("read", seconds)


def _write(out: Location, log: Log, rows: pa.Table) -> ScoresPart:
    started = time.perf_counter()
    part = write_part(out, rows)
    log.add_seconds("write", time.perf_counter() - started)
    return part


def bins_of(segments: Sequence[Segment], options: ScoringOptions) -> list[Bin]:
    """The rows in bins, one a read task: enough of them for all actors."""
    num_bytes = sum(bin_.num_bytes for bin_ in plan_bins(segments))
    return plan_bins(segments, max_bytes=min(BIN_BYTES, num_bytes // (_BINS_PER_ACTOR * options.max_actors)))


def run_all(options: ScoringOptions, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function's results for all items: computed on the cluster, or here."""
    if options.debug or not items:
        return [function(item) for item in items]
    from distributed.cluster.work import run_tasks

    return run_tasks(function, items)
