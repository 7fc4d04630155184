"""Submitting to a real Ray head with its job server: end to end, as a user does it, from processes of their own.

The head's Python has a stand-in for Dask in its site-packages, a package named `distributed` that raises.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import RAY_PORTS, WriteTable, free_ports

from distributed.ingest.fleet import row_of
from jobs.cli import main
from model.synthetic import Sample

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CHECKOUT = Path(__file__).parent.parent
PATIENCE_S = 240
TOKEN = "0" * 31 + "7"


@dataclass
class Head:
    """A Ray head of our own, and how its users reach it."""

    address: str
    environment: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        """`lossight COMMAND --address … ARGUMENTS`, begun."""
        command, *rest = map(str, arguments)
        words = [sys.executable, "-m", "jobs.cli", command, "--address", self.address, *rest]
        pipe = subprocess.PIPE
        environment = self.environment | variables
        process = subprocess.Popen(words, cwd=CHECKOUT, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.processes.append(process)
        return process

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        process = self.start(*arguments, **variables)
        output, error = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, error)


@pytest.fixture(scope="module")
def python_with_dask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has our packages and, before them in its site-packages, another `distributed`; not lossight."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True)
    site_packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # The folders' own .pth files are not read: what is installed editable here is not installed there.
    here = [folder for folder in sys.path if folder.endswith("site-packages")]
    (site_packages / "ours.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    (site_packages / "distributed").mkdir()
    (site_packages / "distributed" / "__init__.py").write_text("raise RuntimeError('this is Dask')", encoding="utf-8")
    python = folder / "bin" / "python"
    code = "import ray, torch, rich; import distributed"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert "this is Dask" in found.stderr
    return python


@pytest.fixture(scope="module")
def head(python_with_dask: Path) -> Iterator[Head]:
    """A head with four CPUs and a job server that wants a token, on ports and in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="head-")  # short: sockets lie below it, whose names have a limit
    names = ("port", "dashboard-port", *RAY_PORTS)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}  # at the end, idle workers are not waited for
    options = [f"--{name}={port}" for name, port in ports.items()]
    options += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=4"]
    options += ["--object-store-memory=200000000", f"--temp-dir={folder}", "--disable-usage-stats"]
    words = [python_with_dask, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
    path = f"{python_with_dask.parent}:{environment['PATH']}"
    with (Path(folder) / "log").open("wb") as log:
        process = subprocess.Popen(
            words, stdout=log, stderr=log, cwd=folder, env=environment | {"PATH": path}, start_new_session=True
        )
    head = Head(address=f"http://127.0.0.1:{ports['dashboard-port']}", environment=environment)
    try:
        await_true(lambda: head.run("status").returncode == 0, process)
        yield head
    finally:
        for user in head.processes:
            user.kill()
            user.communicate()
        process.terminate()  # it ends its processes in order
        try:
            process.wait(timeout=60)
        finally:
            kill_group(process.pid)
        shutil.rmtree(folder, ignore_errors=True)


def await_true(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # as it should be: all have ended
        os.killpg(group, signal.SIGKILL)


@pytest.fixture
def pool(samples: list[Sample], write_table: WriteTable) -> str:
    return write_table("pool", [row_of(sample) for sample in samples[:12]], is_labelled=True)


def read_scores(out: Path) -> dict[str, float]:
    parts = json.loads((out / "run.json").read_bytes())["parts"]
    rows = [row for part in parts for row in pq.read_table(out / part).to_pylist()]
    return {row["sample_id"]: row["predicted_loss"] for row in rows}


def test_a_pool_is_scored_on_the_cluster_though_dask_is_installed_there(
    head: Head, pool: str, model_uri: str, tmp_path: Path
) -> None:
    """The scores are those of this process; a second submission is a second attempt, which has nothing to do."""
    config = tmp_path / "score.yaml"
    config.write_text(f"pool: {pool}\nmodel: {model_uri}\ncpus-per-actor: 1\n", encoding="utf-8")
    arguments = ("score", "--", "--config", config, "--out", tmp_path / "scores")
    first = head.run("submit", *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "12 rows: 12 scored" in first.stdout  # the job's own words
    assert main(["score", "--pool", pool, "--model", model_uri, "--out", str(tmp_path / "here"), "--debug"]) == 0
    assert read_scores(tmp_path / "scores") == read_scores(tmp_path / "here")
    assert len(read_scores(tmp_path / "here")) == 12

    again = head.run("submit", *arguments)
    assert again.returncode == 0
    assert "already there" in again.stdout
    assert [re.search(r"submitted: (\S+)", run.stdout)[1][-3:] for run in (first, again)] == ["-a1", "-a2"]


def test_the_exit_code_of_a_job_that_fails_is_that_of_the_command(head: Head, tmp_path: Path) -> None:
    out = tmp_path / "selection"
    ended = head.run("submit", "select", "--", "--scores", tmp_path / "nowhere", "--out", out, "--budget", 3)
    assert ended.returncode == 2
    assert f"lossight: {tmp_path}/nowhere: expected scores with a run.json, found nothing" in ended.stdout
    assert re.search(r"lossight-select-\w+-a1: failed, exit code 2", ended.stdout)
    assert re.search(r"lossight-select-\w+-a1 .*failed, exit code 2", head.run("status", COLUMNS="120").stdout)


def test_a_running_job_is_followed_left_and_stopped(head: Head, pool: str, tmp_path: Path) -> None:
    out = tmp_path / "model"
    training = ("--labelled", pool, "--out", out, "--workers", 0, "--estimator", "hourglass-small", "--epochs", 99999)
    started = head.run("submit", "train", "--no-wait", "--", *training)
    assert started.returncode == 0
    job_id = re.search(r"submitted: (\S+)", started.stdout)[1]
    await_true((out / "config.json").exists)

    follower = head.start("submit", "train", "--", *training)
    assert follower.stdout.readline() == f"already running: {job_id}\n"
    assert "Running entrypoint" in follower.stdout.readline() + follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    output, error = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130, error
    assert f"detached: {job_id} goes on" in output
    shown = head.run("status", job_id)
    assert shown.stdout.startswith(f"{job_id}: running, ")
    assert "exec python -m jobs.cli train" in shown.stdout

    follower = head.start("submit", "train", "--", *training)
    assert follower.stdout.readline() == f"already running: {job_id}\n"
    stopped = head.run("status", job_id, "--stop")
    assert "asked to stop" in stopped.stdout
    output, _ = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 143
    assert "model: stopped; a checkpoint is kept, the same command goes on" in output  # it ended in order, and said so
    assert f"{job_id}: stopped, exit code 143" in output
    assert not (out / "run.json").exists()


def test_a_job_that_nobody_knows(head: Head) -> None:
    found = head.run("status", "lossight-score-0-a1")
    assert found.returncode == 2
    assert re.fullmatch(
        r"lossight: --address \S+: expected the id of a job, found 'lossight-score-0-a1'.*\n", found.stderr
    )


@pytest.mark.parametrize(
    ("variables", "found"), [({"RAY_AUTH_MODE": "disabled"}, "none"), ({"RAY_AUTH_TOKEN": "hunter2hunter2"}, "another")]
)
def test_a_cluster_that_wants_another_token(head: Head, variables: dict[str, str], found: str) -> None:
    refused = head.run("status", **variables)
    assert refused.returncode == 2
    expected = f"expected the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, found {found}"
    assert refused.stderr == f"lossight: --address {head.address}: {expected}\n"


def test_a_token_in_a_file_is_found(head: Head, tmp_path: Path) -> None:
    """Ray's client looks for it only where RAY_AUTH_MODE says so; `ray start` does without."""
    (tmp_path / "token").write_text(TOKEN, encoding="utf-8")
    plain = {key: value for key, value in head.environment.items() if not key.startswith("RAY_AUTH")}
    user = Head(address=head.address, environment=plain | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert user.run("status").returncode == 0
