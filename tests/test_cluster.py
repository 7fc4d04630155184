"""Ray's moving interfaces: what the cluster must have, and how processes of a run speak to its driver."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from distributed.cluster import connection
from distributed.cluster.resources import check_resources, room_for
from distributed.cluster.work import run_tasks, watched
from distributed.imports import CHECKOUT
from distributed.runs import remote_log
from distributed.runs.logbook import State
from distributed.runs.remote_log import RemoteLog
from model.errors import InputError, RunFailedError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

_PATIENCE_S = 30


def test_actors_that_fit_on_no_machine_are_refused_although_the_sum_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [{"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}}] * 4
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 12.0, "GPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [*machines, {"Alive": False, "Resources": {"CPU": 64.0}}])
    check_resources(workers=4, cpus=2, gpus=1)
    check_resources(workers=8, cpus=1, gpus=0.5)
    with pytest.raises(
        InputError, match=r"room for 2 workers of 4 CPUs and 0 GPUs each, found room for 0 on 4 machines"
    ):
        check_resources(workers=2, cpus=4, gpus=0)
    with pytest.raises(InputError, match=r"expected room for 5 workers .* found room for 4"):
        check_resources(workers=5, cpus=2, gpus=0)


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.\nMore than anybody wants to know.")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RunFailedError, match=r"^Ray did not start: The current node timed out during startup\.$"):
        connection._start(None, option="--address")


@pytest.mark.parametrize(
    ("machines", "size", "room"),
    [
        ([(4, 0)], (1, 0), 2),  # this machine of two cores: Ray is told of more, and those read
        ([(4, 0)], (2, 0), 1),
        ([(4, 0)], (8, 0), 1),  # too large: refused elsewhere
        ([(16, 0), (16, 0)], (1, 0), 30),  # two read
        ([(0, 0), (16, 0)], (4, 0), 3),  # a head without work
        ([(32, 4), (32, 4)], (2, 1), 8),
        ([(32, 4), (32, 4)], (2, 0.5), 16),
        ([(3, 0), (3, 0), (3, 0)], (2, 0), 3),
    ],
)
def test_the_room_on_a_cluster_is_counted_by_machine_and_leaves_some_to_reading(
    machines: list[tuple[float, float]], size: tuple[float, float], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in machines]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert room_for(cpus=size[0], gpus=size[1]) == room


def test_what_processes_tell_reaches_the_driver() -> None:
    told: list[State] = []
    with watched(told.append) as log:

        @ray.remote(num_cpus=1)
        def work(log: RemoteLog) -> None:
            log.add(5, {"empty": 2}, "half")
            log.add_seconds("read", 0.5)
            log.fail_file("a.parquet", "changed")

        ray.get([work.remote(log), work.remote(log)])
        assert dict(log.read().bad_files) == {"a.parquet": "changed"}
    state = told[-1]
    assert (state.num_rows, dict(state.errors), state.note) == (10, {"empty": 4}, "half")
    assert dict(state.seconds) == {"read": 1.0}


def test_a_stop_reaches_the_processes() -> None:
    is_asked = False
    with watched(lambda _: None, should_stop=lambda: is_asked) as log:
        assert not log.must_stop()
        is_asked = True
        deadline = time.monotonic() + _PATIENCE_S
        while not log.must_stop():
            assert time.monotonic() < deadline

        @ray.remote(num_cpus=1)
        class Worker:
            def finish(self, log: RemoteLog) -> bool:
                deadline = time.monotonic() + _PATIENCE_S
                log.begin("batch")
                while not log.finish("batch"):  # says what the last answer said that has come
                    assert time.monotonic() < deadline
                    log.begin("batch")
                return True

        assert ray.get(Worker.remote().finish.remote(log))


def test_images_are_counted_by_outcome_for_whoever_collects_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[str, float, dict[str, str]]] = []
    monkeypatch.setattr(remote_log, "count", lambda name, amount, **tags: counted.append((name, amount, tags)))
    with watched(lambda _: None) as log:
        log.add(7, {"empty": 2})
        log.add_seconds("decode", 1.5)
    assert counted == [
        ("images", 5, {"outcome": "scored"}),
        ("images", 2, {"outcome": "empty"}),
        ("seconds", 1.5, {"stage": "decode"}),
    ]


def test_the_counters_are_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[str, float, dict[str, str]]] = []

    def inc(self: Any, amount: float, tags: dict[str, str]) -> None:
        added.append((self.info["name"], amount, tags))

    monkeypatch.setattr(ray.util.metrics.Counter, "inc", inc)
    remote_log.count("images", 3, outcome="scored")
    remote_log.count("images", 0, outcome="empty")
    remote_log.count("seconds", 0.5, stage="read")
    assert added == [
        ("lossight_images_total", 3, {"outcome": "scored"}),
        ("lossight_stage_seconds_total", 0.5, {"stage": "read"}),
    ]


def test_tasks_give_their_results_in_order_and_their_errors_as_ours() -> None:
    assert run_tasks(lambda item: item * 2, [3, 1, 2]) == [6, 2, 4]
    assert run_tasks(lambda item: item, []) == []

    def fail(item: int) -> None:
        raise RunFailedError(f"item {item} failed")

    with pytest.raises(RunFailedError, match=r"^item 1 failed$"):
        run_tasks(fail, [1])


def test_reading_and_writing_workers_need_no_torch() -> None:
    """It takes seconds and 200 MB, in each of them."""
    modules = "distributed.runs.remote_log, distributed.scoring.pipeline, distributed.scoring.ledger"
    code = f"import sys; import {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_no_process_of_local_ray_outlives_the_command() -> None:
    code = (
        "from distributed.cluster.connection import connect; connect(); import psutil; "
        "print(*(child.pid for child in psutil.Process().children(recursive=True)))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=CHECKOUT
    )
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 3  # the raylet, the control store, an agent
    deadline = time.monotonic() + 10  # an agent that is only left behind lives for a minute
    while left := [pid for pid in pids if _is_at_work(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _is_at_work(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
