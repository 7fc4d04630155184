"""Submitting: what is shipped, which submission a command is, and what is said of job servers that are none."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_one_line

from distributed.cluster import connection
from distributed.imports import CHECKOUT
from distributed.submission import client, shipping
from distributed.submission.client import ClusterJob, JobServer, UnknownJobError
from distributed.submission.shipping import CONFIG_NAME, stage_checkout
from distributed.submission.submit import find_attempts, follow, start_or_find
from jobs.cli import COMMANDS, main
from jobs.submit import read_command
from model.errors import InputError, RunFailedError

pytestmark = pytest.mark.slow

SCORE = ["--pool", "s3://b/pool", "--model", "s3://b/model", "--out", "s3://b/scores"]


def write(folder: Path, *paths: str, num_bytes: int = 1) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * num_bytes)


def staged(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_code_is_shipped_and_nothing_else(tmp_path: Path) -> None:
    code = {
        *(f"{package}/__init__.py" for package in ("model", "jobs", "distributed", "mine")),
        "model/fit.py",
        "jobs/cli.py",
        "distributed/deep/er.py",
        "distributed/deep/page.html",
        "mine/estimator.py",
        "mine.py",
        "pyproject.toml",
        "requirements.lock",
    }
    left_out = (
        ".git/config",
        ".venv/bin/python",
        ".env",
        ".secret.py",
        "keys.json",
        "nightly.yaml",
        "work/fit.py",
        "mine/key.pem",
        "mine/scores/part.parquet",
        "tests/__init__.py",
        "mine/.secret",
        "tests/test_a.py",
        "benchmarks/results/a.md",
        "demo/pool/part.parquet",
        "runs/a",
        "docs/a.md",
        "model/__pycache__/fit.pyc",
        "lossight.egg-info/PKG-INFO",
    )
    write(tmp_path / "checkout", *code, *left_out)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", "pool.parquet")
    (tmp_path / "checkout" / "pool").symlink_to(tmp_path / "data")
    (tmp_path / "checkout" / "gone").symlink_to(tmp_path / "nowhere")
    stage_checkout(str(tmp_path / "checkout"), str(tmp_path / "staged"))
    assert staged(tmp_path / "staged") == code


def test_a_folder_of_ours_that_is_called_tests_is_shipped(tmp_path: Path) -> None:
    write(tmp_path / "checkout", "model/__init__.py", "model/tests/a.py", "tests/__init__.py", "tests/a.py")
    stage_checkout(str(tmp_path / "checkout"), str(tmp_path / "staged"))
    assert staged(tmp_path / "staged") == {"model/__init__.py", "model/tests/a.py"}


def test_this_checkout_can_be_shipped_and_is_what_a_job_needs(tmp_path: Path) -> None:
    stage_checkout(CHECKOUT, str(tmp_path))
    found = staged(tmp_path)
    assert {"jobs/cli.py", "distributed/cluster/connection.py", "model/fit.py", "requirements.lock"} <= found
    assert not any(path.startswith(("tests", "benchmarks", ".")) for path in found)
    listed = subprocess.run(
        ["git", "ls-files", "model", "distributed", "jobs"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert set(listed.stdout.split()) <= found  # nothing, where this is no clone


def test_a_checkout_with_more_than_code_in_it_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "_MAX_BYTES", 4 * 2**20)
    write(tmp_path / "checkout", "model/__init__.py", "tables/__init__.py")
    write(tmp_path / "checkout", "tables/a.py", "tables/b.py", num_bytes=3 * 2**20)
    with pytest.raises(InputError, match=r"at most 4 MiB of code to ship, found 6 MiB \(tables 6 MiB, model 0 MiB\)"):
        stage_checkout(str(tmp_path / "checkout"), str(tmp_path / "staged"))
    assert not (tmp_path / "staged").exists()


def test_the_configuration_goes_along_and_counts_by_its_content(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("pool: s3://b/pool\nmodel: s3://b/model\nout: s3://b/scores\n", encoding="utf-8")
    for arguments in (["--config", str(config)], [f"--config={config}"]):
        command = read_command("score", arguments)
        assert CONFIG_NAME in command.entrypoint
        assert str(config) not in command.entrypoint
        assert command.config == str(config)
        assert command.base_id == read_command("score", SCORE).base_id
    stage_checkout(CHECKOUT, str(tmp_path / "staged"), config=str(config))
    assert (tmp_path / "staged" / CONFIG_NAME).read_bytes() == config.read_bytes()
    config.write_text("pool: s3://b/other\nmodel: s3://b/model\nout: s3://b/scores\n", encoding="utf-8")
    assert read_command("score", ["--config", str(config)]).base_id != command.base_id


def test_a_submission_is_known_by_its_options_however_they_are_given() -> None:
    command = read_command("score", SCORE)
    again = read_command("score", ["--out=s3://b/scores", *SCORE[:4], "--views", "1"])  # the default
    assert command.base_id == again.base_id
    assert command.base_id.startswith("lossight-score-")
    others = [
        read_command("score", [*SCORE, "--actors", "2"]),
        read_command("train", ["--labelled", "/a", "--out", "/b"]),
    ]
    assert len({command.base_id, *(other.base_id for other in others)}) == 3


def test_arguments_reach_the_shell_as_they_are() -> None:
    where = "group != 'x' and $(touch /tmp/y) < 1; rm -rf \"z\""
    command = read_command("select", ["--scores", "/s", "--out", "/o", "--budget", "5", "--where", where])
    words = ["exec", "python", "-m", "jobs.cli", "select", *command.arguments]
    assert shlex.split(command.entrypoint) == words


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in {"submit", "status"}])
def test_the_options_of_every_command_are_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        read_command(name, ["--help"])
    assert f"lossight {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scroe", "--", *SCORE], r"expected a command \(demo, ingest, .*, found 'scroe'"),
        (["status", "--"], r"expected a command \(.*, found 'status'"),
        (["score", "--", *SCORE[:4]], r"--out: expected a value, found none"),
        (["score", "--", *SCORE, "--pol", "x"], r"see lossight score --help"),
        (["score", "--", *SCORE[:5], "work/scores"], r"--out work/scores: expected an s3:// URI or an absolute path"),
        (["demo", "--"], r"--out demo: expected an s3:// URI or an absolute path"),
        (["score", "--", "--config", "nowhere.yaml"], r"--config nowhere.yaml: expected a YAML file, found none"),
        (["score"], r"--pool: expected a value, found none"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_here(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--address", "http://127.0.0.1:1", *arguments]) == 2
    assert_one_line(capsys, message)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_with_credentials_does_not_travel(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "http://key:hunter2@store:9000")
    assert main(["submit", "score", "--address", "http://127.0.0.1:1", "--", *SCORE]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lossight: {name}: expected an endpoint without credentials")
    assert "hunter2" not in error


@pytest.mark.parametrize("address", ["auto", "head:8265", "ray://head:10001", "http://", "http://me:secret@head:8265"])
def test_an_address_that_is_none_of_a_job_server(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--address", address]) == 2
    error = capsys.readouterr().err
    assert "expected the cluster's job server, such as http://HEAD:8265" in error
    assert "secret" not in error


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aiohttp" else found(name))
    assert main(["status", "--address", "http://127.0.0.1:1"]) == 2
    expected = "lossight: expected the extra 'cluster' (pip install --editable '.[cluster]'), found no aiohttp\n"
    assert capsys.readouterr().err == expected


def test_stop_wants_to_know_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--address", "http://127.0.0.1:1", "--stop"]) == 2
    assert "--stop: expected the ID of one job, found none" in capsys.readouterr().err


def test_a_head_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening: refuses
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["submit", "score", "--address", address, "--", *SCORE]) == 3
    assert_one_line(capsys, f"^lossight: --address {address}: expected a Ray job server, found none: ")


def test_a_head_that_takes_the_call_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert main(["status", "--address", f"http://127.0.0.1:{silent.getsockname()[1]}"]) == 3
    assert "Read timed out" in capsys.readouterr().err


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A web server that always answers the same; its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "exit_code", "message"),
    [
        (401, "Unauthorized", 2, "expected the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, found none"),
        (403, "Forbidden", 2, "expected the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, found another"),
        (200, "<html>Welcome to nginx</html>", 3, "expected a Ray job server, found none"),
        (404, "no such page", 3, "the job server fails: Version check returned 404"),
        (502, "bad gateway", 3, "expected a Ray job server, found none: 502 Server Error"),
    ],
)
def test_what_answers_is_no_job_server_of_ours(
    status: int, body: str, exit_code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body) as address:
        assert main(["status", "--address", address]) == exit_code
    assert_one_line(capsys, re.escape(f"lossight: --address {address}: {message}"))


def test_the_flag_wins_over_rays_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with answering(404, "") as address:
        assert main(["status", "--address", address]) == 3
    assert "Version check returned 404" in capsys.readouterr().err
    assert os.environ["RAY_ADDRESS"] == os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("job_config", "is_shipped"),
    [
        (None, False),  # no submitted job
        ('{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {}}}', True),
        (
            '{"runtime_env": {"env_vars": {"PYTHONPATH": "/opt/lossight"}}, "metadata": {}}',
            True,
        ),  # Ray refuses a second
        (
            '{"runtime_env": {"env_vars": {"AWS_REGION": "x"}}}',
            False,
        ),  # the image has the code, where the driver has it
        ('{"metadata": {}}', False),
    ],
)
def test_workers_are_told_where_the_code_is_unless_it_was_shipped(
    job_config: str | None, is_shipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if job_config is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job_config)
    assert connection._is_code_shipped() == is_shipped


def test_a_cluster_that_the_environment_names_and_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)  # this process may be connected
    with pytest.raises(InputError, match=r"^RAY_ADDRESS 127\.0\.0\.1:1: expected a Ray cluster, found none"):
        connection.connect()


@pytest.mark.parametrize(
    ("given", "told", "seen"),
    [
        ("10.0.0.1:6379", "10.0.0.1:6379", None),  # Ray would take what it sees
        ("auto", "auto", "10.0.0.9:6379"),
        (None, "10.0.0.9:6379", None),
    ],
)
def test_the_flag_wins_over_the_environment(
    given: str | None, told: str, seen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str | None]] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    for name in ("_reach", "_check_worker_imports", "_configure_data"):
        monkeypatch.setattr(connection, name, lambda *_, **__: None)
    monkeypatch.setattr(connection.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        connection.ray, "init", lambda address, **_: calls.append((address, os.environ.get("RAY_ADDRESS")))
    )
    connection.connect(given)
    assert calls == [(told, seen)]
    assert os.environ["RAY_ADDRESS"] == "10.0.0.9:6379"


def job(job_id: str, state: str = "RUNNING", exit_code: int | None = None) -> ClusterJob:
    return ClusterJob(id=job_id, state=state, command="", failure="", exit_code=exit_code, started_s=0.0, ended_s=None)


def test_attempts_are_in_the_order_of_their_numbers() -> None:
    others = [job("lossight-score-1234-a1"), job("lossight-score-123-b-a1"), job("raysubmit_1")]
    attempts = [job(f"lossight-score-123-a{number}") for number in (10, 2, 1)]
    assert find_attempts([*others, *attempts], "lossight-score-123") == attempts[::-1]


class Scripted(JobServer):
    """A job server whose jobs and failures are a list; submissions are kept."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers
        self.submitted: list[str] = []

    def _next(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def jobs(self) -> list[ClusterJob]:
        return list(self._next())

    def job(self, job_id: str) -> ClusterJob:
        return job(job_id) if self.submitted else self._next()

    def log(self, *_: str) -> str:
        return str(self._next())

    def submit(self, *_: str, job_id: str, **__: Any) -> bool:
        self.submitted.append(job_id)
        return bool(self._next())


def test_what_runs_is_followed_and_what_ended_is_tried_again() -> None:
    command = read_command("score", SCORE)
    name = command.base_id
    running = Scripted([[job(f"{name}-a1", "FAILED", 3), job(f"{name}-a2")]])
    assert start_or_find(running, command, env_vars={}) == (job(f"{name}-a2"), True)
    assert not running.submitted
    for state, exit_code in (("FAILED", 3), ("SUCCEEDED", 0), ("STOPPED", 143)):
        ended = Scripted([[job(f"{name}-a2", state, exit_code), job(f"{name}-a1", "FAILED", 3)], True])
        assert start_or_find(ended, command, env_vars={}) == (job(f"{name}-a3"), False)


def test_who_comes_second_follows_the_first() -> None:
    command = read_command("score", SCORE)
    theirs = job(f"{command.base_id}-a1")
    server = Scripted([[], False, [theirs]])
    assert start_or_find(server, command, env_vars={}) == (theirs, True)
    assert server.submitted == [theirs.id]


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.submission.submit._LOOK_S", 0.0)
    monkeypatch.setattr("distributed.submission.submit._MAX_LOOK_S", 0.0)


@pytest.mark.usefixtures("no_wait")
def test_a_log_is_told_once_though_the_head_is_away_for_a_while() -> None:
    away = RunFailedError("nobody answers")
    over = job("a", "FAILED", 1)
    server = Scripted([job("a"), "one\n", away, away, job("a"), "one\ntw", job("a"), away, over, "one\ntwo\n"])
    told: list[str] = []
    assert follow(server, "a", tell=told.append, should_leave=threading.Event()) == over
    assert told == ["one\n", "tw", "o\n"]


@pytest.mark.usefixtures("no_wait")
def test_a_head_that_stays_away_is_said() -> None:
    server = Scripted([RunFailedError("nobody answers")] * 100)
    with pytest.raises(RunFailedError, match="nobody answers"):
        follow(server, "a", tell=print, should_leave=threading.Event())
    assert len(server.answers) == 100 - 24


@pytest.mark.usefixtures("no_wait")
def test_a_job_that_a_new_head_does_not_know_may_be_tried_again() -> None:
    unknown = UnknownJobError("expected the id of a job")
    for answers in ([unknown], [job("a"), "one\n", unknown], [job("a"), unknown]):
        with pytest.raises(RunFailedError, match="a: the cluster no longer knows the job; the same command goes on"):
            follow(Scripted(answers), "a", tell=lambda _: None, should_leave=threading.Event())


def detail(status: str, code: int | None, message: str = "") -> Any:
    from ray.job_submission import JobDetails

    return JobDetails(
        type="SUBMISSION",
        submission_id="a",
        status=status,
        entrypoint="x",
        driver_exit_code=code,
        message=message,
        start_time=1_500,
        end_time=2_500,
    )


@pytest.mark.parametrize(
    ("status", "told", "exit_code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 4, 4),
        ("FAILED", -9, 137),  # as a shell says of what the kernel killed
        ("FAILED", None, 3),  # never ran: the machine's fault, so worth another try
        ("STOPPED", None, 143),
        ("RUNNING", None, None),
        ("PENDING", None, None),
    ],
)
def test_exit_codes(status: str, told: int | None, exit_code: int | None) -> None:
    found = client._job_of(detail(status, told))
    assert (found.exit_code, found.started_s) == (exit_code, 1.5)
    assert found.is_over == (exit_code is not None)


def test_why_a_job_could_not_be_run_is_one_line() -> None:
    message = "Failed to set up runtime environment.\nTraceback …\nOSError: no space left on device\n"
    assert client._job_of(detail("FAILED", None, message)).failure == "OSError: no space left on device"
    assert client._job_of(detail("FAILED", 2, message)).failure == ""
