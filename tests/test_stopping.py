"""Runs that are asked to stop, disputed, or read while they work: what is kept, who publishes, what a reader sees."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faulty
import pyarrow as pa
import pytest
from conftest import read_scores
from faulty import (
    FILE_ROWS,
    NUM_ROWS,
    assert_no_leftovers,
    assert_same,
    new_night,
    num_rows_kept,
    only,
    record_of,
    rows_of,
    run,
    score_process,
    scores_by_id,
    until,
    without,
    write_file,
)

from distributed.runs.lease import LEASE_FILE
from distributed.runs.record import read_run
from distributed.scoring import score as scoring
from distributed.storage.location import locate
from model.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


def call_at(sample_id: str, function: Callable[[], None]) -> type:
    """A scorer that calls a function when it meets a row."""

    def call(scorer: Any, rows: pa.Table) -> None:
        if sample_id in rows["sample_id"].to_pylist():
            function()

    return faulty.scorer_that(call)


# Signals


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_in_this_process_a_signal_ends_the_run_after_the_batch_and_the_next_call_goes_on(
    arguments: list[str],
    out: Path,
    undisturbed: pa.Table,
    signum: int,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)]
    with monkeypatch.context() as patch:
        scorer = call_at(rows_of("c")[10], lambda: os.kill(os.getpid(), signum))
        patch.setattr("distributed.scoring.pipeline.LossScorer", scorer)
        assert run(arguments, "--debug") == exit_code
    num_kept = num_rows_kept(out)
    assert 0 < num_kept < NUM_ROWS
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"lossight: {out}: stopped; {num_kept} of {NUM_ROWS} rows are scored and kept"
    assert len(said) == 2
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers[:2]
    with pytest.raises(InputError, match="unfinished"):
        list(read_scores(locate(str(out))))
    assert run(arguments, "--debug") == 0
    assert record_of(out)["num_new_rows"] == NUM_ROWS - num_kept
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)


@pytest.mark.parametrize("is_patient", [False, True])
def test_a_batch_that_never_ends_is_left_at_the_second_signal_or_after_the_grace(
    arguments: list[str], out: Path, undisturbed: pa.Table, is_patient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_and_hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        if not is_patient:
            os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(faulty.DEADLINE_S)

    with monkeypatch.context() as patch:
        patch.setattr("jobs.run.GRACE_S", 0.1 if is_patient else faulty.DEADLINE_S)
        patch.setattr("distributed.scoring.pipeline.LossScorer", call_at(rows_of("d")[3], stop_and_hang))
        with pytest.raises(SystemExit) as caught:
            run(arguments, "--debug")
    assert caught.value.code == 143  # of the first signal
    num_kept = num_rows_kept(out)
    assert 0 < num_kept < NUM_ROWS
    assert run(arguments, "--debug") == 0  # the lease was released
    assert record_of(out)["num_new_rows"] == NUM_ROWS - num_kept
    assert_same(scores_by_id(out), undisturbed)


@pytest.mark.ray
def test_sigterm_and_then_ctrl_c_keep_what_is_scored_on_ray(
    arguments: list[str], out: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    """SIGTERM goes to the driver, as from a scheduler; SIGINT to all of its process group, as from a terminal."""
    kept = [0]
    for signum, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        marker = tmp_path / f"held-{exit_code}"
        fault = ["use", "held_after", (NUM_ROWS - kept[-1]) // 3, str(marker)]
        with score_process(*arguments, "--ray", fault=fault) as process:
            until(marker.exists, process=process)
            if signum == signal.SIGTERM:
                process.send_signal(signum)
            else:
                os.killpg(process.pid, signum)
            _, said = process.communicate(timeout=faulty.DEADLINE_S)
        kept.append(num_rows_kept(out))
        assert process.returncode == exit_code, said
        assert said.splitlines()[-1] == f"lossight: {out}: stopped; {kept[-1]} of {NUM_ROWS} rows are scored and kept"
        assert "again to leave at once" in said
    assert 0 < kept[1] < kept[2] < NUM_ROWS
    assert run(arguments, "--debug") == 0
    assert record_of(out)["num_new_rows"] == NUM_ROWS - kept[-1]
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)


# Two runs of one output


def test_a_second_run_exits_4_and_names_the_holder_and_goes_on_at_once_when_that_is_killed(
    arguments: list[str],
    out: Path,
    undisturbed: pa.Table,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    marker = tmp_path / "held"
    fault = ["use", "held_after", NUM_ROWS // 2, str(marker)]
    with score_process(*arguments, "--debug", fault=fault) as holder:
        until(marker.exists, process=holder)
        before = {path.name: path.read_bytes() for path in (out / "parts").iterdir()}
        capsys.readouterr()
        assert run(arguments, "--debug") == 4
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert f"another run holds the lease: {json.loads((out / LEASE_FILE).read_bytes())['owner']} since" in said[0]
        assert f"pid {holder.pid} " in said[0]
        assert {path.name: path.read_bytes() for path in (out / "parts").iterdir()} == before
        holder.kill()
        holder.wait(faulty.DEADLINE_S)
        assert run(arguments, "--debug") == 0
    assert 0 < record_of(out)["num_new_rows"] < NUM_ROWS
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)


def test_a_run_that_was_taken_over_publishes_nothing_and_removes_nothing(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def take_over_and_merge(*given: Any, **named: Any) -> Any:
        merged = merge(*given, **named)
        held = json.loads((out / LEASE_FILE).read_bytes())
        (out / LEASE_FILE).write_text(json.dumps({**held, "holding": "x", "owner": "bob@there pid 9"}))
        return merged

    merge = scoring.merge_parts
    monkeypatch.setattr(scoring, "merge_parts", take_over_and_merge)
    assert run(arguments, "--debug") == 4
    assert "taken over by bob@there pid 9" in capsys.readouterr().err
    assert not (out / "run.json").exists()
    assert num_rows_kept(out) >= NUM_ROWS
    assert json.loads((out / LEASE_FILE).read_bytes())["holding"] == "x"


def test_a_run_that_loses_its_lease_computes_no_further(
    arguments: list[str], out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def take_over() -> None:
        held = json.loads((out / LEASE_FILE).read_bytes())
        (out / LEASE_FILE).write_text(json.dumps({**held, "holding": "x", "owner": "bob@there pid 9"}))
        until(lambda: all(thread.name != "lease" for thread in threading.enumerate()))

    monkeypatch.setattr("distributed.runs.lease._RENEWALS_PER_TTL", 1_000)
    monkeypatch.setattr("distributed.scoring.pipeline.LossScorer", call_at(rows_of("c")[10], take_over))
    assert run(arguments, "--debug") == 4
    assert "taken over by bob@there pid 9" in capsys.readouterr().err
    assert 0 < num_rows_kept(out) < NUM_ROWS
    assert not (out / "run.json").exists()


# Readers


def test_a_reader_during_runs_over_a_published_output_sees_whole_states_only(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    assert run(arguments, "--debug") == 0
    states: list[tuple[int, pa.Table]] = []
    problems: list[Exception] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                expected = read_run(locate(str(out)), expected="scores")["num_rows"]
                states.append((expected, scores_by_id(out)))
            except Exception as error:
                problems.append(error)
            time.sleep(0.002)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: len(states) > 1)
        write_file(pool / "g.parquet", new_night())
        assert run(arguments, "--debug") == 0
        count = len(states)
        until(lambda: len(states) > count + 1)
        (pool / "a.parquet").unlink()
        assert run(arguments, "--debug") == 0
    finally:
        is_over.set()
        reader.join()
    assert problems == []
    sizes = [len(table) for _, table in states]
    assert set(sizes) <= {NUM_ROWS, NUM_ROWS + FILE_ROWS}
    assert sizes[0] == NUM_ROWS
    assert NUM_ROWS + FILE_ROWS in sizes
    new = new_night()["sample_id"].to_pylist()
    for _, table in states:
        rest = without(table, new)
        assert_same(rest, undisturbed if len(rest) == NUM_ROWS else without(undisturbed, rows_of("a")))
    last = scores_by_id(out)
    assert_same(without(last, new), without(undisturbed, rows_of("a")))
    assert len(only(last, new)) == FILE_ROWS
