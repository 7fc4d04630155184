"""Active-learning cycles on labelled rows: the stages of all arms, side by side, each published as a row.

OUT/config.json  OUT/fleet/…  OUT/labelled/…  OUT/models/…  OUT/judges/…
OUT/rows/*.parquet    a row an arm and stage: all that a run goes on from
OUT/rows.parquet, report.md, *.svg, run.json    once all rows are there (the first three after each call)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from distributed.ingest.fleet import write_fleet_cycle
from distributed.runs.lease import hold
from distributed.runs.progress import Progress
from distributed.runs.record import RUN_FILE, begin_run, check_run, publish_run, read_run
from distributed.simulation.arm import ROW, Stage, run_stage
from distributed.simulation.data import Data, check_stages, open_data, write_labelled
from distributed.simulation.options import SimulateOptions, StrategyName
from distributed.simulation.tables import write_report
from distributed.storage.location import Location, locate
from distributed.tables.parquet import read_table
from model.errors import InputError, StoppedError
from model.pose_model import PoseModel, make_spec
from model.predictor import check_device
from model.skeleton import LSP, Skeleton

Row = dict[str, Any]
Arm = tuple[StrategyName, int]


def simulate(
    options: SimulateOptions,
    *,
    progress: Progress,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Runs what is left of a simulation and publishes its tables; returns the run's record.

    Args:
        options: what is simulated.
        progress: told of every stage.
        should_stop: asked between stages.

    Raises:
        InputError: options, tables or output can't be used, or a strategy finds too few rows.
        StoppedError: time is over, or `should_stop` said yes; the same call goes on.
    """
    config, ignored, out, workers = options.resolved(), options.undecisive(), options.out, options.workers
    options = options.with_fleet()
    target, ends_at = locate(out), time.monotonic() + 60 * (options.max_minutes or 1e9)
    if not target.is_local:
        raise InputError(
            f"--out {out}: expected a folder on a disk, found a store, which has no links to labelled rows"
        )
    if options.gpus and not workers:
        check_device("cuda")
    if options.fleet:
        check_stages(options, num_pool=options.fleet.num_pool)
    given = None if options.fleet else open_data(options)
    _check_models(options, given.skeleton if given else LSP)
    inputs = given.fingerprints if given else None  # a fleet is what the options say
    check_run(target, config, inputs=inputs, ignored=ignored)
    if target.join(RUN_FILE).exists:  # before a cluster is asked for
        return {**read_run(target, expected="simulation"), "was_done": True}
    run = _on_ray(workers, options.address, gpus=options.gpus) if workers else _in_process(should_stop)
    with hold(target) as lease:
        if not begin_run(target, config, inputs=inputs, ignored=ignored):
            return {**read_run(target, expected="simulation"), "was_done": True}
        data = given or _open_fleet(options, target, progress)
        rows = read_rows(target, options)
        total = len(options.arms) * (options.stages + 1)
        waiting = _Waiting(options, data, target, rows)
        for done, row in enumerate(run(waiting, lambda: should_stop() or time.monotonic() > ends_at), start=len(rows)):
            rows.append(row)
            progress("simulate", done + 1, total, note=f"{row['strategy']}, seed {row['seed']}, stage {row['stage']}")
        if rows:
            write_report(target, rows, options)
        if len(rows) < total:
            raise StoppedError(f"{out}: stopped with {len(rows)} of {total} stages done; the same command goes on")
        lease.check()
        return publish_run(target, {"kind": "simulation", "num_stages": total, "report": "report.md"})


def _check_models(options: SimulateOptions, skeleton: Skeleton) -> None:
    """Builds a model of each method: a method may read what the estimator or the skeleton lacks."""
    for method in sorted({options.method_of(strategy) for strategy, _ in options.arms}):
        PoseModel(make_spec(options.estimator, method=method, skeleton=skeleton))


def _open_fleet(options: SimulateOptions, out: Location, progress: Progress) -> Data:
    """The tables of the synthetic fleet, made if they are not there."""
    if options.fleet is not None:
        write_fleet_cycle(out.join("fleet").uri, **options.fleet.model_dump(), progress=progress)
    return open_data(options)


def read_rows(out: Location, options: SimulateOptions) -> list[Row]:
    """The rows that are published, by arm and stage."""
    files = [
        out.join("rows", f"{name}-s{seed}-{stage:02d}.parquet")
        for name, seed in options.arms
        for stage in range(options.stages + 1)
    ]
    tables = [read_table(file) for file in files if file.exists]
    return pa.concat_tables([ROW.empty_table(), *tables]).to_pylist()


class _Waiting:
    """The stages that can be begun: the next of each arm, but none whose model another one trains at the moment."""

    def __init__(self, options: SimulateOptions, data: Data, out: Location, rows: list[Row]) -> None:
        self._options, self._data, self._out = options, data, out
        self._picks: dict[Arm, list[tuple[str, ...]]] = {arm: [data.start_ids[arm[1]]] for arm in options.arms}
        self._left = {arm: list(range(options.stages + 1)) for arm in options.arms}
        self._running: dict[Arm, str] = {}
        for row in sorted(rows, key=lambda row: row["stage"]):
            self.finish(row)

    def finish(self, row: Mapping[str, Any]) -> None:
        """The row of a stage is there: its arm may go on."""
        arm = (row["strategy"], row["seed"])
        self._left[arm].remove(row["stage"])
        self._picks[arm].append(tuple(row["picks"] or ()))
        self._running.pop(arm, None)

    def begin(self) -> Stage | None:
        """The next stage, its labelled rows written; None if all wait for others, or none is left."""
        for arm, left in self._left.items():
            if not left or arm in self._running:
                continue
            stage = Stage(
                options=self._options,
                data=self._data,
                out=self._out,
                strategy=arm[0],
                seed=arm[1],
                labelled=tuple(self._picks[arm][: left[0] + 1]),
            )
            if stage.model in self._running.values():
                continue
            self._running[arm] = stage.model
            write_labelled(self._data, self._out, stage.labelled)
            return stage
        return None


Run = Callable[[_Waiting, Callable[[], bool]], Iterator[Row]]  # does what waits until it is over; rows as they come


def _in_process(should_stop: Callable[[], bool]) -> Run:
    def run(waiting: _Waiting, is_over: Callable[[], bool]) -> Iterator[Row]:
        while not is_over() and (stage := waiting.begin()):
            row = run_stage(stage, should_stop=should_stop)
            waiting.finish(row)
            yield row

    return run


def _on_ray(workers: int, address: str | None, *, gpus: float) -> Run:
    from distributed.cluster.connection import connect
    from distributed.cluster.resources import check_resources
    from distributed.cluster.work import run_as_they_end

    connect(address)
    check_resources(workers=1, cpus=1, gpus=gpus)

    def run(waiting: _Waiting, is_over: Callable[[], bool]) -> Iterator[Row]:
        upcoming = iter(lambda: None if is_over() else waiting.begin(), object())
        for row in run_as_they_end(run_stage, upcoming, at_once=workers, gpus=gpus):
            waiting.finish(row)
            yield row

    return run
