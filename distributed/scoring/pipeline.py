"""Pipeline from Parquet row to scores row: actors read, score and write bins of rows; or one process without Ray.

Bins travel through Ray as names and numbers of rows. The bytes do not: whoever scores a row reads it, and writes its
score. So the driver's work is a few thousand tasks, whatever the number of rows.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import pyarrow as pa

from distributed.cluster.address import has_cluster
from distributed.runs.logbook import Log, Logbook, State
from distributed.runs.progress import Progress
from distributed.schema import NO_METADATA, in_flight_schema
from distributed.scoring.ledger import remaining_segments
from distributed.scoring.options import ScoringOptions
from distributed.scoring.scorer import LossScorer
from distributed.storage.location import Location
from distributed.tables.manifest import Here, Manifest, Segment, Spread
from distributed.tables.reader import BIN_BYTES, Bin, plan_bins, rebatched, salvage_bin
from distributed.tables.references import pieces_to_fetch, with_images
from distributed.tables.scores import ScoresPart, write_part
from model.sizes import choose_batch_size, round_up, rows_worth_an_actor

_ROWS_PER_GPU_ACTOR = 1000  # for fewer, it does not pay to start a process
_BINS_PER_ACTOR = 4  # with fewer, the last bin leaves actors idle
_PIECES_PER_ACTOR = 2  # of a pool of few row groups: each costs another look into its row group
_MOST_BIN_BYTES = 16 * 2**30  # about 100,000 images: with larger ones, few actors would get the last of a large pool
# What a process holds of scores before it writes them: many small parts are slow to find again, and what a kill loses
# is scored once more.
_PART_ROWS, _PART_S = 100_000, 60.0
_READ_BYTES = 64 * 2**20  # that one thread reads at once: a row group
_REFERENCE_ROW_BYTES = 256  # of one that refers to an image, without it
_READERS = {"cpu": 2, "cuda": 8}  # threads of an actor that read ahead: a store gives each some 50 MB/s
# Device batches in one call of an actor: decoding overlaps with computing inside a call only, so a fast device wants
# long calls; but a run that is to stop waits for the end of a call.
_BATCHES_PER_CALL = {"cpu": 4, "cuda": 16}

# Without --ray or --debug a run begins in this process, and goes on there unless what is left after the trial would
# take it so many seconds x cores: less is done before Ray has paid off. An estimate, see docs/decisions/0009.
_TRIAL_S = 3.0
_WORTH_RAY_CORE_S = 240.0

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


class Scored(NamedTuple):
    """The outcome of scoring."""

    parts: list[ScoresPart]
    state: State
    options: ScoringOptions  # with the actors filled in, if there were any
    num_rows_here: int  # scored by this process, without having been told so


def settle(options: ScoringOptions, *, num_rows: int, input_size: int, is_after_death: bool = False) -> ScoringOptions:
    """The options without actors where this process shall begin to score; else the cluster is joined for them.

    After a death a run is Ray's: an image that kills the process that scores it is found there, and costs itself.

    Raises:
        InputError: as `join_cluster`.
    """
    is_open = not (options.debug or options.asks_for_ray or has_cluster() or is_after_death)
    if not is_open:
        return join_cluster(options, num_rows=num_rows, input_size=input_size)
    batch_size = options.batch_size or choose_batch_size(input_size, device=options.device)
    return options.model_copy(update={"batch_size": batch_size})


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


def spread_tasks(options: ScoringOptions) -> Spread:
    """The ways to look into the many files of a large pool: tasks on the cluster, which is joined, or this process."""
    if options.debug:
        return Here()
    from distributed.cluster.connection import connect
    from distributed.cluster.freezing import TasksOfFreezing

    connect(options.address)
    return TasksOfFreezing()


def score_work(
    work: Work, options: ScoringOptions, *, input_size: int, progress: Progress, should_stop: Callable[[], bool]
) -> Scored:
    """Scores the rows and writes them as it goes; returns the parts it wrote and what it learned on the way.

    With options as `settle` left them open, this process begins, and Ray goes on with what is left if that pays.
    When `should_stop` says yes, the batches in flight are finished and written, and no other is begun.

    Raises:
        InputError: the cluster lacks the CPUs or GPUs.
        RunFailedError: storage or compute failed.
    """
    num_done, before = work.manifest.num_rows - work.num_rows, State()

    def tell(state: State) -> None:
        known = before.plus(state)
        num_errors = sum(known.errors.values())
        progress("score", num_done + known.num_rows, work.manifest.num_rows, num_errors=num_errors, note=known.note)

    if not work.segments:
        return Scored([], State(), options, 0)
    tell(State())
    if options.debug:
        return Scored(*_score_in_process(work, options, tell, should_stop), options, 0)
    if options.actors:
        return Scored(*_score_on_ray(work, options, tell, should_stop), options, 0)
    here, trial = options.model_copy(update={"debug": True, "actors": "1"}), Trial(work.num_rows)
    parts, state = _score_in_process(work, here, tell, should_stop, is_enough=trial.is_lost)
    if should_stop() or not trial.has_lost:
        return Scored(parts, state, here, state.num_rows)
    rest = replace(work, segments=remaining_segments(work.segments, parts))
    options, before = join_cluster(options, num_rows=rest.num_rows, input_size=input_size), state
    more, state = _score_on_ray(rest, options, tell, should_stop)
    return Scored([*parts, *more], before.plus(state), options, before.num_rows)


class Trial:
    """The trial of this process: has it lost against Ray, which is worth its start where much is left?

    Args:
        num_rows: of the run.

    Attributes:
        has_lost: the answer so far.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self.has_lost = False

    def is_lost(self, num_done: int, seconds: float) -> bool:
        """The answer once this process has scored so many rows in so many seconds."""
        if num_done and seconds >= _TRIAL_S:
            left_s = (self._num_rows - num_done) * seconds / num_done
            self.has_lost |= left_s * (os.cpu_count() or 1) > _WORTH_RAY_CORE_S
        return self.has_lost


def _score_on_ray(
    work: Work, options: ScoringOptions, tell: Callable[[State], None], should_stop: Callable[[], bool]
) -> tuple[list[ScoresPart], State]:
    from distributed.cluster.work import on_actors, watched

    with watched(tell, should_stop=should_stop) as log:
        found = on_actors(
            partial(make_bin_scorer, work, options, log, LossScorer),
            bins_of(work.segments, options),
            min_size=options.min_actors,
            max_size=options.max_actors,
            cpus=options.cpus,
            gpus=options.gpus_per_actor,
        )
        return [part for parts in found for part in parts], log.read()


def _score_in_process(
    work: Work,
    options: ScoringOptions,
    tell: Callable[[State], None],
    should_stop: Callable[[], bool],
    *,
    is_enough: Callable[[int, float], bool] = lambda _, __: False,
) -> tuple[list[ScoresPart], State]:
    """`score_work` in this process; ends early once `is_enough`, given rows and seconds since the loading, says yes."""
    log = Logbook()
    scorer = make_bin_scorer(work, options, log, LossScorer)
    parts, started = list[ScoresPart](), time.monotonic()
    for bin_ in bins_of(work.segments, options):
        for written in scorer.steps(bin_):
            parts += written
            tell(state := log.read())
            if should_stop() or is_enough(state.num_rows, time.monotonic() - started):
                log.stop()
    return parts, log.read()


def make_bin_scorer(work: Work, options: ScoringOptions, log: Log, scorer: type[LossScorer]) -> BinScorer:
    """The scorer of bins of a process, its model loaded; only what decides the scores travels, not the manifest."""
    return BinScorer(
        scorer(work.model, options=options, log=log, metadata=work.manifest.metadata, bundle_id=work.bundle_id),
        pool=work.manifest.location,
        images=work.manifest.images,
        out=work.out,
        log=log,
        metadata=work.manifest.metadata,
        call_rows=_BATCHES_PER_CALL[options.device] * cast(int, options.batch_size),  # filled in by `join_cluster`
        num_readers=_READERS[options.device],
    )


class BinScorer:
    """Reads the rows of bins, scores them and writes the scores; in an actor under Ray, a plain object without.

    Scores are held until there are `_PART_ROWS`, or the oldest is `_PART_S` old, or the bin is done. A process that
    comes after a dead one goes on behind the rows that it had written.

    Args:
        scorer: gives scores rows for pool rows.
        pool: the frozen pool's location.
        images: the folder that references are below.
        out: the scores' location.
        log: told of every batch and every part.
        metadata: columns of the pool that the scores keep.
        call_rows: rows of a call of the scorer.
        num_readers: threads that read ahead.
    """

    def __init__(
        self,
        scorer: Callable[[pa.Table], pa.Table],
        *,
        pool: Location,
        images: Location,
        out: Location,
        log: Log,
        metadata: pa.Schema = NO_METADATA,
        call_rows: int,
        num_readers: int,
    ) -> None:
        self._scorer, self._log = scorer, log
        self._pool, self._images, self._out, self._metadata = pool, images, out, metadata
        self._call_rows, self._num_readers = call_rows, num_readers

    def __call__(self, bin_: Bin) -> list[ScoresPart]:
        """The parts that hold the scores of a bin; fewer if the run is to stop."""
        return [part for written in self.steps(bin_) for part in written]

    def steps(self, bin_: Bin) -> Iterator[list[ScoresPart]]:
        """The same batch by batch: the parts that were written after each."""
        kept: list[ScoresPart] = self._log.kept(bin_.name)
        yield kept
        waiting: list[pa.Table] = []
        since = time.monotonic()
        for rows in self._read(remaining_segments(bin_.segments, kept)):
            scores = self._scorer(rows)
            if not len(scores):  # the run is to stop
                break
            waiting.append(scores)
            is_due = sum(map(len, waiting)) >= _PART_ROWS or time.monotonic() - since >= _PART_S
            yield [self._write(bin_, waiting)] if is_due else []
            if is_due:
                waiting, since = [], time.monotonic()
        if waiting:
            yield [self._write(bin_, waiting)]

    def _read(self, segments: Sequence[Segment]) -> Iterator[pa.Table]:
        """The rows of segments in order, some for each call of the scorer, read ahead."""
        if self._log.must_stop():
            return
        yield from rebatched(self._read_ahead(segments), num_rows=self._call_rows)

    def _read_ahead(self, segments: Sequence[Segment]) -> Iterator[pa.Table]:
        # Rows of references are read together, whatever their images, which are fetched a few rows at a time.
        small = plan_bins(segments, max_bytes=_READ_BYTES, reference_bytes=_REFERENCE_ROW_BYTES)
        stored = self._timed(_ahead(self._read_whole, small, num_threads=self._num_readers))
        return self._timed(_ahead(self._fetch, pieces_to_fetch(stored), num_threads=self._num_readers))

    def _timed(self, read: Iterable[tuple[list[pa.Table], float]]) -> Iterator[pa.Table]:
        for tables, seconds in read:
            self._log.add_seconds("read", seconds)
            yield from tables

    def _read_whole(self, bin_: Bin) -> tuple[list[pa.Table], float]:
        """The rows of a bin, and the seconds that they took."""
        started = time.perf_counter()
        tables = [*salvage_bin(self._pool, bin_, on_bad_file=self._log.fail_file, metadata=self._metadata)]
        return tables, time.perf_counter() - started

    def _fetch(self, rows: pa.Table) -> tuple[list[pa.Table], float]:
        """The rows with the images that they refer to, and the seconds that these took."""
        started = time.perf_counter()
        columns = in_flight_schema(self._metadata).names
        return [*with_images(rows, self._images, columns=columns)], time.perf_counter() - started

    def _write(self, bin_: Bin, waiting: Sequence[pa.Table]) -> ScoresPart:
        started = time.perf_counter()
        part = write_part(self._out, pa.concat_tables(waiting))
        self._log.add_seconds("write", time.perf_counter() - started)
        self._log.keep(bin_.name, part)
        return part


def _ahead(function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int) -> Iterator[Result]:
    """The function's results for all items, in order, so many of them computed ahead."""
    with ThreadPoolExecutor(num_threads, thread_name_prefix="read") as threads:
        waiting = deque[Any]()
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def bins_of(segments: Sequence[Segment], options: ScoringOptions) -> list[Bin]:
    """The rows in bins, one a task: enough of them for all actors.

    Of a large pool each bin is a share of what is left: the first ones are large, so that tasks are few, the last ones
    small, so that all actors end together. Of a small one, row groups are cut that would leave actors without work.
    """
    num_bytes = sum(segment.num_bytes for segment in segments)
    wanted = _BINS_PER_ACTOR * options.max_actors
    least = min(BIN_BYTES, num_bytes // wanted)

    def bytes_after(planned: int) -> int:
        return max(least, min((num_bytes - planned) // wanted, _MOST_BIN_BYTES))

    most_rows = None
    if options.max_actors > 1 and least < BIN_BYTES:
        num_rows = sum(segment.stop - segment.start for segment in segments)
        pieces = _PIECES_PER_ACTOR * options.max_actors
        most_rows = round_up(-(-num_rows // pieces), to=cast(int, options.batch_size))  # filled in by `join_cluster`
    return plan_bins(segments, max_bytes=bytes_after, most_rows=most_rows)


def run_all(options: ScoringOptions, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function's results for all items: computed on the cluster, or here, where a single one is done sooner."""
    if options.debug or not options.actors or len(items) < 2:
        return [function(item) for item in items]
    from distributed.cluster.work import run_tasks

    return run_tasks(function, items)
