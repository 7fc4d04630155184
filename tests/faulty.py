"""Faults on purpose: a pool to hurt, scorers that die or hold still, and `lossight score` as a process with one.

    python tests/faulty.py FAULT ARGUMENTS…

FAULT is JSON: the name of a function below and its arguments. What is nested in a function travels to Ray's workers by
value; they can't import this file.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed.ingest.fleet import row_of
from distributed.schema import POOL, labelled
from distributed.scoring.scorer import LossScorer
from distributed.storage import location
from distributed.storage.location import locate
from distributed.tables.parquet import Row, write_rows
from distributed.tables.scores import find_parts
from model.skeleton import LSP
from model.synthetic import generate_fleet

NUM_FILES, FILE_ROWS = 6, 20
NUM_ROWS = NUM_FILES * FILE_ROWS
DEADLINE_S = 120
_GROUP_ROWS = 4
# Calls of 8 rows: some 15 in a run, so that there is a middle to fail in.
QUICK = ["--batch-size", "2", "--cpus-per-actor", "1", "--decode-threads", "1"]


# The pool, and what came of it


@cache
def night() -> pa.Table:
    """120 rows, all but two of them readable."""
    rows = [row_of(sample) for sample in generate_fleet(seed=11, num_samples=NUM_ROWS, unreadable_share=0.0)]
    rows[5]["image"], rows[70]["image"] = None, b"no image"
    return pa.Table.from_pylist([{name: row[name] for name in POOL.names} for row in rows], POOL)


def new_night() -> pa.Table:
    """20 rows that `night` has not."""
    rows = [row_of(sample) for sample in generate_fleet(seed=12, num_samples=FILE_ROWS, unreadable_share=0.0)]
    return pa.Table.from_pylist([{**row, "sample_id": f"new-{row['sample_id']}"} for row in rows], POOL)


def write_file(path: Path, rows: pa.Table) -> None:
    """A Parquet file of many small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, row_group_size=_GROUP_ROWS, write_page_checksum=True)


def write_labelled(folder: Path, rows: Sequence[Row], *, row_group_bytes: int = 50_000) -> str:
    """Rows of the synthetic fleet as a labelled table; the folder."""
    schema = labelled(LSP.num_keypoints)
    columns = [{name: row.get(name) for name in schema.names} for row in rows]
    write_rows(locate(str(folder)), columns, schema, row_group_bytes=row_group_bytes)
    return str(folder)


def write_night(folder: Path) -> Path:
    """The rows of `night` in six files: a.parquet … f.parquet."""
    for number in range(NUM_FILES):
        write_file(folder / f"{'abcdef'[number]}.parquet", night().slice(number * FILE_ROWS, FILE_ROWS))
    return folder


def rows_of(name: str) -> list[str]:
    """The ids in one of these files, in order."""
    ids: list[str] = night().slice("abcdef".index(name[0]) * FILE_ROWS, FILE_ROWS)["sample_id"].to_pylist()
    return ids


def flip_bit_of_image(path: Path, *, row_group: int) -> None:
    """Flips one bit in the middle of the images of a row group; the file keeps its time."""
    image = pq.read_metadata(path).row_group(row_group).column(POOL.get_field_index("image"))
    data, status = bytearray(path.read_bytes()), path.stat()
    data[(image.dictionary_page_offset or image.data_page_offset) + image.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def scores_by_id(out: Path) -> pa.Table:
    """The published scores, in order of ids."""
    from conftest import read_scores  # which imports this file

    return pa.concat_tables(read_scores(locate(str(out)))).sort_by("sample_id")


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """The same rows: all columns equal, and the floats within 1e-6."""
    assert found.schema.equals(expected.schema)
    assert found["sample_id"].to_pylist() == expected["sample_id"].to_pylist()
    for name in found.column_names:
        if name in ("predicted_loss", "confidence"):
            values = [table[name].to_numpy() for table in (found, expected)]
            np.testing.assert_allclose(*values, rtol=0, atol=1e-6, err_msg=name)  # NaN where null, in both
        else:
            assert found[name].to_pylist() == expected[name].to_pylist(), name


def without(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    """The table but for these ids."""
    return table.filter(pa.compute.invert(pa.compute.is_in(table["sample_id"], pa.array(ids))))


def only(table: pa.Table, ids: Sequence[str]) -> pa.Table:
    """The rows of these ids."""
    return table.filter(pa.compute.is_in(table["sample_id"], pa.array(ids)))


def record_of(out: Path) -> dict[str, Any]:
    """The published record."""
    record: dict[str, Any] = json.loads((out / "run.json").read_bytes())
    return record


def num_rows_kept(out: Path) -> int:
    """Rows that lie in parts, published or not."""
    return sum(part.num_rows for part in find_parts(locate(str(out))))


def assert_no_leftovers(out: Path) -> None:
    """Below the output lies what its record names and nothing else of any run."""
    record = record_of(out)
    kept = {*record["parts"], *record["superseded"]}
    assert {f"parts/{path.name}" for path in (out / "parts").iterdir()} <= kept
    assert {path.name for path in out.iterdir()} == {
        ".lease.json",
        "config.json",
        "manifest.json",
        "parts",
        "parts.index",
        "run.json",
    }


def until(is_true: Callable[[], object], *, process: subprocess.Popen[Any] | None = None) -> None:
    """Waits for something, as long as the process is there that is to bring it about."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def run(arguments: Sequence[str], *more: str) -> int:
    """The exit code of `lossight score`, called in this process."""
    from jobs import score

    return score.main([*QUICK, *arguments, *more])


# Ends in this process


class KilledError(BaseException):
    """Stands for the end of a process: nothing of ours catches it."""


class Killer:
    """Counts what a process does to its store, on such paths; from the operation of that number on, each is its end."""

    def __init__(self, at: int | None, on: str) -> None:
        self.at, self.on, self.count = at, on, 0
        self._reported = location.reported

    @contextmanager
    def reported(self, uri: str) -> Iterator[None]:
        """Stands for `location.reported`, through which every operation goes."""
        is_over = self.at is not None and self.count >= self.at
        if not uri.endswith(".lease.json"):  # a dead holder is taken over; this one is not really dead
            self.count += self.on in uri
            if is_over or self.count == self.at:
                raise KilledError(f"operation {self.count}: {uri}")
        with self._reported(uri):
            yield


@contextmanager
def killed_at(operation: int | None, *, on: str = "") -> Iterator[Killer]:
    """In the block, the process ends at its operation of that number on such paths of the store; None: never."""
    killer = Killer(operation, on)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(location, "reported", killer.reported)
        yield killer


# Scorers that fail


def scorer_that(before: Callable[[Any, pa.Table], None]) -> type[LossScorer]:
    """A scorer that calls this with itself and the rows before it scores them."""

    class FaultyScorer(LossScorer):
        def _score(self, rows: pa.Table) -> pa.Table:
            before(self, rows)
            return super()._score(rows)

    return FaultyScorer


def killed_once_at(sample_id: str, marker: str) -> type[LossScorer]:
    """A scorer whose process is killed from outside when it meets a row for the first time."""

    def kill(scorer: Any, rows: pa.Table) -> None:
        if sample_id in rows["sample_id"].to_pylist() and not os.path.exists(marker):
            with open(marker, "x", encoding="utf-8"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)

    return scorer_that(kill)


def crashed_by(sample_id: str) -> type[LossScorer]:
    """A scorer whose process dies of a segmentation fault whenever it meets a row."""

    def crash(scorer: Any, rows: pa.Table) -> None:
        if sample_id in rows["sample_id"].to_pylist():
            ctypes.string_at(0)

    return scorer_that(crash)


def held_after(num_rows: int, marker: str) -> type[LossScorer]:
    """Once so many rows are scored it leaves a marker, and waits until the run is asked to stop."""

    def hold(scorer: Any, rows: pa.Table) -> None:
        if scorer._log.read().num_rows < num_rows:
            return
        with open(marker, "w", encoding="utf-8") as stream:
            stream.write("held")
        while not scorer._log.must_stop():
            time.sleep(0.02)

    return scorer_that(hold)


def first_one_held_after(num_rows: int, marker: str) -> type[LossScorer]:
    """Once so many rows are scored, the first scorer that takes note waits for ever; its node's id is the marker."""

    def hold(scorer: Any, rows: pa.Table) -> None:
        import ray

        if scorer._log.read().num_rows < num_rows or os.path.exists(marker):
            return
        draft = f"{marker}.{os.getpid()}"
        with open(draft, "w", encoding="utf-8") as stream:
            stream.write(ray.get_runtime_context().get_node_id())
        try:
            os.link(draft, marker)
        except FileExistsError:
            return
        while True:
            time.sleep(1)

    return scorer_that(hold)


# `lossight score` with a fault, as a process


@contextmanager
def score_process(*arguments: str, fault: Sequence[object] = ("none",)) -> Iterator[subprocess.Popen[str]]:
    """`lossight score` with a fault as a process group of its own; killed at the end of the block."""
    root = Path(__file__).parents[1]
    command = [sys.executable, str(Path(__file__)), json.dumps(fault), *QUICK, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def none() -> None:
    """No fault."""


def use(name: str, *arguments: object) -> None:
    """Scores with one of the scorers above."""
    import distributed.scoring.pipeline

    distributed.scoring.pipeline.LossScorer = globals()[name](*arguments)  # type: ignore[misc]


def killed_before(function: str, num_calls: int) -> None:
    """The process is killed at the start of the given call of a function of ours, named MODULE:FUNCTION."""
    import importlib

    module_name, _, name = function.partition(":")
    module = importlib.import_module(module_name)
    original, calls = getattr(module, name), iter(range(1, sys.maxsize))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == num_calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(module, name, call)


def ray_lost(name: str, out: str, when: str) -> None:
    """A process of Ray on this machine, raylet or gcs_server, is killed at a point of the run (see `_at`)."""
    os.environ |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "3"}  # rather than 60
    _at(when, Path(out), lambda: _kill_child(name))


def thread_fails(out: str, when: str) -> None:
    """The thread that tells of the progress meets an error of ours at a point of the run (see `_at`)."""
    import distributed.cluster.work

    reached, read = threading.Event(), distributed.cluster.work.RemoteLog.read

    def fail(log: Any) -> Any:
        if reached.is_set() and threading.current_thread().name == "progress":
            raise ValueError("a bug")
        return read(log)

    distributed.cluster.work.RemoteLog.read = fail  # type: ignore[method-assign]
    _at(when, Path(out), reached.set)


def _at(when: str, out: Path, act: Callable[[], None]) -> None:
    """Acts once the pool is frozen, once a part is written, before the record is, or once all is said.

    Before the record, the run waits for what comes.
    """
    if when == "leaving":
        import ray  # noqa: F401 - handlers are called in reverse: this one before Ray's

        atexit.register(act)
        return
    if when == "publishing":
        from distributed.scoring import score

        publish = score.publish_run

        def act_and_publish(*arguments: Any, **named: Any) -> Any:
            act()
            time.sleep(8)
            return publish(*arguments, **named)

        score.publish_run = act_and_publish
        return

    def is_there() -> bool:
        return (out / "manifest.json").exists() if when == "frozen" else any(out.glob("parts/*.parquet"))

    threading.Thread(target=lambda: (until(is_there), act()), daemon=True).start()


def _kill_child(name: str) -> None:
    """Kills the processes of a name that this one started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, _, rest = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if command == name and int(rest.split()[1]) == os.getpid():
                os.kill(int(folder.name), signal.SIGKILL)


def node_removed(num_rows: int, marker: str) -> int:
    """Scores on a cluster of three machines; the one is lost whose scorer is held."""
    from ray.cluster_utils import Cluster

    from jobs import score

    # A lost machine is missed after 3 s rather than 15, and no worker is started before it is needed.
    os.environ |= {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_prestart_worker_first_driver": "0",
    }
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    use("first_one_held_after", num_rows, marker)

    def remove() -> None:
        until(lambda: os.path.exists(marker))
        lost = Path(marker).read_text(encoding="utf-8")
        cluster.remove_node(next(n for n in cluster.list_all_nodes() if n.node_id == lost), allow_graceful=False)

    threading.Thread(target=remove, daemon=True).start()
    exit_code = score.main([*sys.argv[2:], "--address", cluster.address])
    import ray

    ray.shutdown()
    cluster.shutdown()
    return exit_code


def main() -> int:
    """Puts the fault in place and scores."""
    import torch

    from jobs import score

    torch.set_num_threads(1)
    name, *arguments = json.loads(sys.argv[1])
    exit_code = globals()[name](*arguments)
    return score.main(sys.argv[2:]) if exit_code is None else exit_code


if __name__ == "__main__":
    sys.exit(main())
