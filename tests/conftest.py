"""Fixtures that several test files share: a tiny bundle, tiny tables, one S3 server and one Ray a process."""

from __future__ import annotations

import fcntl
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faulty
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from faultproxy import FaultProxy
from hypothesis import settings

from distributed.runs.record import begin_run, publish_run, read_run
from distributed.schema import POOL, labelled
from distributed.storage import s3
from distributed.storage.location import Location, locate
from distributed.tables.manifest import Manifest, freeze_pool
from distributed.tables.parquet import read_table, write_rows
from model.bundle import Bundle, dump_bundle, load_bundle
from model.errors import RunFailedError
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP
from model.synthetic import Sample, generate_fleet

# Two threads on a busy two-core machine were slower than one, by up to ten times.
torch.set_num_threads(1)

# `make test-nightly` says --hypothesis-profile=nightly.
settings.register_profile("ci", max_examples=25, deadline=None)
settings.register_profile("nightly", max_examples=500, deadline=None)
settings.load_profile("ci")

# No test pulls the plug: what is written need not reach the disk at once.
os.fsync = lambda _: None

# `tiny_poses:tiny`, the estimator of tests that train, also for processes and Ray's workers that tests start.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent / "site"), os.environ.get("PYTHONPATH")])
)

# Ray's patience is made for networks: here its processes ask each other more often, and miss a lost one sooner.
os.environ |= {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says which tests share a process of pytest-xdist, and puts those first that take longest.

    All that use the session's Ray share one, and all that use the S3 server; the others one with their file.
    """
    order = {"ray": 0, "s3": 2}

    def group(item: pytest.Item) -> str:
        fixtures = getattr(item, "fixturenames", ())
        if "local_ray" in fixtures:
            return "ray"
        return "s3" if item.get_closest_marker("s3") else item.path.stem

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    if os.environ.get("PYTEST_XDIST_WORKER"):  # alone, the order of the files is easier to follow
        slow = {item.path.stem for item in items if item.get_closest_marker("ray")}
        items.sort(key=lambda item: order.get(group(item), 1 if group(item) in slow else 3))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between repeated reads: tests damage much."""
    monkeypatch.setattr(s3, "_FIRST_PAUSE_S", 0.001)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder that does not exist yet, on the disk and in a store."""
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_uri")
    return locate(f"{root}/{uuid.uuid4().hex}")


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that soon give up: an outage is over after a second, not after ninety."""
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    monkeypatch.setattr(s3, "TIMEOUT_S", 0.7)
    monkeypatch.setattr(s3, "_clients", {})  # a port may come back


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    """48 frames of two drives, all readable."""
    return list(generate_fleet(seed=7, num_samples=48, unreadable_share=0.0))


@pytest.fixture(scope="session")
def bundle_files() -> dict[str, bytes]:
    """The files of an untrained small model: its scores are arbitrary, and always the same."""
    torch.manual_seed(0)
    return dump_bundle(
        PoseModel(make_spec("hourglass-small", method="ll++conv", skeleton=LSP)),
        training={"note": "untrained"},
        metrics={},
    )


@pytest.fixture
def bundle(bundle_files: dict[str, bytes]) -> Bundle:
    return load_bundle(bundle_files)


@pytest.fixture(scope="session")
def model_uri(bundle_files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The location of that bundle."""
    folder = tmp_path_factory.mktemp("model")
    for name, data in bundle_files.items():
        (folder / name).write_bytes(data)
    return str(folder)


def plain_rows(count: int, *, start: int = 0, image_bytes: int = 100) -> list[dict[str, object]]:
    """Pool rows p0000, p0001, … whose images are noise: for tests that decode none."""
    return [
        {
            "sample_id": f"p{i:04d}",
            "image": random.Random(i).randbytes(image_bytes),  # noqa: S311
            "box": [0, 0, i + 1, 10],
            "group": f"g{i // 5}",
        }
        for i in range(start, start + count)
    ]


WriteTable = Callable[..., str]


@pytest.fixture
def write_table(tmp_path: Path) -> WriteTable:
    """Writes rows as a pool or labelled table of small row groups below a folder, and returns the folder."""

    def write(
        name: str, rows: list[dict[str, object]], *, is_labelled: bool = False, row_group_bytes: int = 50_000
    ) -> str:
        schema = labelled(LSP.num_keypoints) if is_labelled else POOL
        columns = [{key: row.get(key) for key in schema.names} for row in rows]
        write_rows(locate(str(tmp_path / name)), columns, schema, row_group_bytes=row_group_bytes)
        return str(tmp_path / name)

    return write


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool to hurt."""
    return faulty.write_night(tmp_path / "pool")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores"


@pytest.fixture
def arguments(pool: Path, out: Path, model_uri: str) -> list[str]:
    """Arguments of `lossight score` for that pool."""
    return ["--pool", str(pool), "--model", model_uri, "--out", str(out)]


@pytest.fixture(scope="session")
def undisturbed(model_uri: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The scores of that pool by a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pool, out = faulty.write_night(folder / "pool"), folder / "scores"
    assert faulty.run(["--pool", str(pool), "--model", model_uri, "--out", str(out)], "--debug") == 0
    table = faulty.scores_by_id(out)
    assert sorted(table["error"].drop_null().to_pylist()) == ["empty", "undecodable"]
    return table


_S3_START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def s3_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a real S3 server (SeaweedFS) on this machine, which the environment points to; as a URI."""
    with s3_server(tmp_path_factory.mktemp("s3")) as uri:
        yield uri


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """URL of the S3 server while the block runs; its files lie in a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lock = Path(tempfile.gettempdir(), "lossight-s3-start.lock")
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log, lock.open("w") as starting:
        patch.setenv("AWS_ACCESS_KEY_ID", "testkey12345")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret1234567")
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        options = f"-dir={folder} -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3.port={port} -bucket=lossight"
        quiet = "-admin.ui=false -webdav=false -master.telemetry=false"
        weed = Path(sys.executable).with_name("weed")
        fcntl.flock(
            starting, fcntl.LOCK_EX
        )  # of two that start at once, both may take the same free ports for their parts
        server = subprocess.Popen([weed, "mini", *options.split(), *quiet.split()], cwd=folder, stdout=log, stderr=log)
        try:
            _await_bucket(server, port, log=folder / "log")
            fcntl.flock(starting, fcntl.LOCK_UN)
            yield "s3://lossight"
        finally:
            server.kill()  # SIGTERM drains for seconds
            server.wait()


@pytest.fixture
def s3_proxy(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy in front of that server, which the environment points to during the test; it fails when told to."""
    from botocore.retries.standard import ExponentialBackoff

    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.001)  # its pauses grow to seconds
    with FaultProxy(os.environ["AWS_ENDPOINT_URL_S3"], uri=s3_uri).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        yield proxy


def _await_bucket(server: subprocess.Popen[bytes], port: int, *, log: Path) -> None:
    deadline = time.monotonic() + _S3_START_TIMEOUT_S
    while not (_is_open(port) and _has_bucket()):  # the bucket comes after the port
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"weed did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def _has_bucket() -> bool:
    try:
        return locate("s3://lossight").exists
    except RunFailedError:
        return False


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Ray on this machine, for the whole session."""
    import ray

    from distributed.cluster.connection import connect

    connect()
    yield
    ray.shutdown()


# What `ray start` would else take at numbers of its own choice, and find taken by another Ray of this machine.
RAY_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)


def assert_one_line(capsys: pytest.CaptureFixture[str], message: str) -> str:
    """Passes if a command has said this (a pattern) in one line, and nothing else; returns the line."""
    error = capsys.readouterr().err
    assert error.startswith("lossight: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    return error


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def version_of(location: Location) -> str:
    """The version of a file that is there."""
    found = location.stat()
    assert found is not None
    return found.version


def read_scores(location: Location) -> Iterator[pa.Table]:
    """The published parts of a scores table, as README reads them."""
    for path in read_run(location, expected="scores")["parts"]:
        yield read_table(location.join(*path.split("/")))


def write_file(
    path: Path, rows: Sequence[dict[str, object]], *, schema: pa.Schema = POOL, row_group_size: int = 4, **options: Any
) -> Path:
    """A Parquet file of somebody else's writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema)
    pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True, **options)
    return path


def flipped(data: bytes, position: int, *, bit: int = 0) -> bytes:
    """The bytes with one bit flipped."""
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def freeze(folder: Path) -> Manifest:
    """The manifest of a pool."""
    return freeze_pool(locate(str(folder)))


@pytest.fixture
def three_files(tmp_path: Path) -> Path:
    """A pool of readable files of 10, 1 and 5 rows."""
    write_file(tmp_path / "pool" / "b.parquet", plain_rows(10))
    write_file(tmp_path / "pool" / "a b=1" / "é.parquet", plain_rows(1, start=10))
    write_file(tmp_path / "pool" / "c.parquet", plain_rows(5, start=11))
    return tmp_path / "pool"


def scores_table(losses: list[float | None], **columns: Sequence[object]) -> pa.Table:
    """A scores table of ids a0000, a0001, … with the given losses (None: failed)."""
    from distributed.schema import SCORES

    count = len(losses)
    values: dict[str, Sequence[object]] = {
        "sample_id": [f"a{i:04d}" for i in range(count)],
        "group": [None] * count,
        "captured_at": [None] * count,
        "predicted_loss": losses,
        "expected_pck": [None] * len(losses),
        "confidence": [0.5] * count,
        "error": [None if loss is not None and not np.isnan(loss) else "undecodable" for loss in losses],
        "pool_file": ["part.parquet"] * count,
        "pool_row": list(range(count)),
        **columns,
    }
    return pa.table([pa.array(values[field.name], field.type) for field in SCORES], schema=SCORES)


def with_file_ids(scores: pa.Table) -> pa.Table:
    """Scores rows as a scorer gives them: beside each the id of its pool file, here `id of PATH`."""
    from distributed.schema import FILE_ID

    ids = [f"id of {path}" for path in scores["pool_file"].to_pylist()]
    return scores.append_column(FILE_ID, pa.array(ids, pa.string()).dictionary_encode())


def publish_scores(folder: Path | str, rows: pa.Table, *, num_parts: int = 1, **record: Any) -> str:
    """Publishes rows as a scores table of so many parts; its place. `record`: what its run.json says otherwise."""
    from distributed.tables.scores import merge_quantiles, write_part

    out = locate(str(folder))
    begin_run(out, {"by": "hand"})
    rows, size = with_file_ids(rows), -(-len(rows) // num_parts)
    parts = [write_part(out, rows.slice(start, size)) for start in range(0, len(rows), size)]
    said = {
        "kind": "scores",
        "bundle_id": "bundle",
        "pool_fingerprint": "pool",
        "parts": [part.path for part in parts],
        "part_footers": [part.footer for part in parts],
        "num_rows": len(rows),
        "num_scored": rows["error"].null_count,
        "loss_quantiles": list(merge_quantiles(parts)),
    }
    publish_run(out, {**said, **record})
    return out.uri
