"""The one line from Parquet row to scores row: under Ray, or in the calling process with the same functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from distributed.runs.logbook import Log, Logbook, State
from distributed.runs.progress import Progress
from distributed.scoring.scorer import LossScorer, ScorerOptions
from distributed.scoring.steps import read_rows, write_scores
from distributed.storage.location import Location
from distributed.tables.manifest import Manifest, Segment
from distributed.tables.reader import BIN_BYTES, Bin, plan_bins
from model.predictor import check_device

if TYPE_CHECKING:
    import ray.data

_ROWS_PER_ACTOR = 1000  # an actor starts as long as it scores these
_BINS_PER_ACTOR = 4  # with fewer, the last bin leaves actors idle
# Device batches in one call of an actor: decoding overlaps with computing inside a call only, so a fast device wants
# long calls; but a run that is to stop waits for the end of a call.
_BATCHES_PER_CALL = {"cpu": 4, "cuda": 16}

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """How the work is spread, and what comes out."""

    min_actors: int = 1  # 0: as many as the cluster has room for, and no other number
    max_actors: int = 1
    cpus_per_actor: float = 1
    gpus_per_actor: float = 0
    scorer: ScorerOptions = field(default_factory=ScorerOptions)
    metadata: tuple[str, ...] = ()  # columns of the pool that the scores keep
    address: str | None = None  # of the Ray cluster; None: one is started on this machine
    in_process: bool = False  # without Ray, in the calling process: a breakpoint works


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be scored, by what, and where to."""

    manifest: Manifest
    segments: list[Segment]  # of the manifest: those that are not scored yet
    model: Location
    bundle_id: str
    out: Location

    @property
    def num_rows(self) -> int:
        """Rows that are to be scored."""
        return sum(segment.stop - segment.start for segment in self.segments)


def join_cluster(options: WorkOptions, *, num_rows: int) -> WorkOptions:
    """The options with numbers of actors, if there is what those need: here, or on the cluster, which is joined.

    Raises:
        InputError: the cluster is not there, or too small; or this machine lacks the device.
    """
    if options.in_process:
        check_device(options.scorer.device)
        return replace(options, min_actors=1, max_actors=1)
    from distributed.cluster.connection import connect
    from distributed.cluster.resources import check_resources, room_for

    connect(options.address)
    if not options.min_actors:
        room = room_for(cpus=options.cpus_per_actor, gpus=options.gpus_per_actor)
        count = min(room, -(-num_rows // _ROWS_PER_ACTOR))
        options = replace(options, min_actors=count, max_actors=count)
    check_resources(workers=options.min_actors, cpus=options.cpus_per_actor, gpus=options.gpus_per_actor)
    return options


def score_work(work: Work, options: WorkOptions, *, progress: Progress, should_stop: Callable[[], bool]) -> State:
    """Scores what is to be scored and writes it as it goes; returns what was learned on the way.

    When `should_stop` says yes, the batches in flight are finished and written, and no other is begun.

    Raises:
        InputError: the cluster lacks what was asked for.
        RunFailedError: storage or compute failed.
    """
    num_done = work.manifest.num_rows - work.num_rows

    def tell(state: State) -> None:
        num_errors = sum(state.errors.values())
        progress("score", num_done + state.num_rows, work.manifest.num_rows, num_errors=num_errors, note=state.note)

    if not work.segments:
        return State()
    tell(State())
    return (_score_in_process if options.in_process else _score_on_ray)(work, options, tell, should_stop)


def _score_on_ray(
    work: Work, options: WorkOptions, tell: Callable[[State], None], should_stop: Callable[[], bool]
) -> State:
    from distributed.cluster.work import watched
    from distributed.scoring.sink import ScoresSink

    with watched(tell, should_stop=should_stop) as log:
        scored(work, options, log=log).write_datasink(ScoresSink(partial(write_scores, work.out, log)))
        return log.read()


def scored(work: Work, options: WorkOptions, *, log: Log) -> ray.data.Dataset:
    """The scores rows of the work, lazily: nothing runs before they are written."""
    from distributed.cluster.work import actor_pool, read_source
    from distributed.tables.source import PoolSource

    return read_source(
        PoolSource(
            bins_of(work.segments, options),
            read=partial(read_rows, work.manifest.location, work.manifest.metadata, log),
        )
    ).map_batches(
        LossScorer,
        fn_constructor_args=(work.model,),
        fn_constructor_kwargs={
            "options": options.scorer,
            "log": log,
            "metadata": work.manifest.metadata,
            "bundle_id": work.bundle_id,
        },
        batch_size=_BATCHES_PER_CALL[options.scorer.device] * options.scorer.batch_size,
        batch_format="pyarrow",
        zero_copy_batch=True,
        **actor_pool(
            min_size=options.min_actors,
            max_size=options.max_actors,
            cpus=options.cpus_per_actor,
            gpus=options.gpus_per_actor,
        ),
    )


def _score_in_process(
    work: Work, options: WorkOptions, tell: Callable[[State], None], should_stop: Callable[[], bool]
) -> State:
    log = Logbook()
    scorer = LossScorer(
        work.model, options=options.scorer, log=log, metadata=work.manifest.metadata, bundle_id=work.bundle_id
    )
    for bin_ in bins_of(work.segments, options):
        scores = []
        for rows in read_rows(work.manifest.location, work.manifest.metadata, log, bin_):
            scores.append(scorer(rows))
            tell(log.read())
            if should_stop():
                log.stop()
        write_scores(work.out, log, pa.concat_tables(scores))
    return log.read()


def bins_of(segments: Sequence[Segment], options: WorkOptions) -> list[Bin]:
    """What is read at a time: enough pieces for all actors."""
    num_bytes = sum(bin_.num_bytes for bin_ in plan_bins(segments))
    return plan_bins(segments, max_bytes=min(BIN_BYTES, num_bytes // (_BINS_PER_ACTOR * options.max_actors)))


def run_all(options: WorkOptions, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function's results for all items: on the cluster, or here."""
    if options.in_process or not items:
        return [function(item) for item in items]
    from distributed.cluster.work import run_tasks

    return run_tasks(function, items)
