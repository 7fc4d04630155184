"""The doctor finds a healthy machine and store healthy, names each fault of a sick one, and leaves nothing behind."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from faultproxy import FaultProxy

from distributed.doctor import machine as doctor
from distributed.doctor import probe
from distributed.doctor.machine import Finding, check_cluster, check_machine
from distributed.doctor.probe import check_storage, compare_clocks
from distributed.doctor.trials import TRIALS
from distributed.storage import s3
from distributed.storage.location import Location, locate, write_bytes
from jobs.cli import main

SECRETS = ["testkey12345", "testsecret1234567"]
HEALTHY = [*TRIALS, "clean-up"]


def examine(uri: str) -> dict[str, Finding]:
    """All findings by name; each that needs it has something to do, in one line, without a secret."""
    findings = list(check_storage(uri, deadline_s=60))
    for finding in findings:
        assert bool(finding.fix) == (finding.state != "ok")
        assert not any(secret in finding.found for secret in SECRETS)
        assert "\n" not in finding.found + finding.fix
    return {finding.name: finding for finding in findings}


def failed(findings: dict[str, Finding]) -> list[str]:
    return [name for name, finding in findings.items() if finding.state == "failed"]


def test_a_healthy_disk_is_healthy_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    findings = examine(str(tmp_path))
    assert list(findings) == HEALTHY
    assert failed(findings) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_folder_that_is_not_there_is_not_left_behind(tmp_path: Path) -> None:
    assert failed(examine(str(tmp_path / "not" / "yet"))) == []
    assert not any(tmp_path.iterdir())


def test_what_was_begun_is_removed_when_nobody_waits_for_the_end(tmp_path: Path) -> None:
    findings = check_storage(str(tmp_path / "x"))
    assert next(findings).state == "ok"
    assert any(tmp_path.iterdir())
    findings.close()  # type: ignore[attr-defined]
    assert not any(tmp_path.iterdir())


def test_a_file_is_no_place_for_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    findings = examine(str(tmp_path / "file"))
    assert list(findings) == ["put and get", "clean-up"]
    assert failed(findings) == ["put and get"]
    assert findings["put and get"].fix == "give a folder, not a file"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_place_for_runs(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    findings = examine(str(tmp_path))
    tmp_path.chmod(0o700)
    assert failed(findings) == ["put and get"]
    assert findings["put and get"].fix == "give a folder that you may write"


@pytest.mark.s3
def test_a_healthy_store_is_healthy_and_stays_as_it_was(s3_uri: str) -> None:
    place = locate(f"{s3_uri}/doctor/healthy")
    write_bytes(place.join("mine"), b"mine")
    findings = examine(place.uri)
    assert list(findings) == ["endpoint", "access", "clock", *HEALTHY]
    assert {finding.state for finding in findings.values()} == {"ok"}
    found = s3.list_below(place.filesystem, place.path)
    assert found
    assert [path for path, _, _ in found] == [place.join("mine").path]


@pytest.mark.s3
def test_a_store_that_ignores_conditions_is_noticed(s3_proxy: FaultProxy) -> None:
    s3_proxy.fail("no_conditions")
    findings = examine(f"{s3_proxy.uri}/doctor/no-conditions")
    assert failed(findings) == ["conditional create", "conditional replace"]
    assert "expected a second put (If-None-Match: *) to be refused" in findings["conditional create"].found
    assert "use another store" in findings["conditional create"].fix


@pytest.mark.s3
@pytest.mark.parametrize(("path", "trial"), [("large.bin", "file of 12 MiB"), (".parquet", "Parquet")])
def test_a_store_that_changes_bytes_is_noticed(s3_proxy: FaultProxy, path: str, trial: str) -> None:
    s3_proxy.fail("flip_byte", on="GET", path=path)
    findings = examine(f"{s3_proxy.uri}/doctor/changed")
    assert trial in failed(findings)
    assert findings[trial].fix == "bytes change on their way or at rest: use another store"


@pytest.mark.s3
@pytest.mark.parametrize(
    ("kind", "on", "fix"),
    [
        ("length_required", "PUT", "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"),
        ("access_denied", "PUT POST", "grant the rights to list, get, put and delete there"),
    ],
)
def test_a_store_that_takes_no_files_has_a_remedy(s3_proxy: FaultProxy, kind: str, on: str, fix: str) -> None:
    s3_proxy.fail(kind, on=on)
    findings = examine(f"{s3_proxy.uri}/doctor/{kind}")
    assert failed(findings) == ["put and get"]
    assert fix in findings["put and get"].fix


@pytest.mark.s3
def test_who_may_not_list_is_told_at_once(s3_proxy: FaultProxy) -> None:
    s3_proxy.fail("access_denied", on="LIST")
    findings = examine(f"{s3_proxy.uri}/doctor/denied")
    assert list(findings) == ["endpoint", "access"]
    assert "AccessDenied" in findings["access"].found
    assert s3_proxy.counts["PUT"] == 0


@pytest.mark.s3
def test_what_can_not_be_removed_is_said(s3_proxy: FaultProxy) -> None:
    s3_proxy.fail("expired_token", on="POST", path="?delete")
    assert failed(examine(f"{s3_proxy.uri}/doctor/expired")) == ["delete", "clean-up"]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("secret", "found"), [("testsecret1234567-no-more", "SignatureDoesNotMatch"), ("", "no credentials")]
)
def test_wrong_or_missing_credentials_are_one_finding(
    s3_proxy: FaultProxy, tmp_path: Path, secret: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    if not secret:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    findings = examine(f"{s3_proxy.uri}/doctor/credentials")
    assert failed(findings) == ["access"]
    assert found in findings["access"].found


@pytest.mark.s3
def test_a_missing_bucket_is_one_finding(s3_proxy: FaultProxy) -> None:
    findings = examine("s3://lossight-nowhere/doctor")
    assert failed(findings) == ["access"]
    assert findings["access"].fix == "create the bucket, or correct the URI"


@pytest.mark.s3
def test_a_store_that_never_answers_is_left(
    s3_proxy: FaultProxy, few_attempts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_CONNECT_TIMEOUT_S", 0.3)
    s3_proxy.fail("black_hole")
    findings = examine(f"{s3_proxy.uri}/doctor/black-hole")
    assert list(findings) == ["endpoint"]
    assert findings["endpoint"].found.endswith("found timed out")


@pytest.mark.s3
def test_a_trial_that_takes_too_long_is_left(
    s3_proxy: FaultProxy, few_attempts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A short time for this trial alone: on a busy machine the others need theirs.
    patient = probe._examine

    def impatient(name: str, check: probe.Check, location: Location, *, deadline_s: float) -> Finding:
        return patient(name, check, location, deadline_s=0.5 if name == "put and get" else deadline_s)

    monkeypatch.setattr(probe, "_examine", impatient)
    s3_proxy.fail("black_hole", on="PUT")
    findings = examine(f"{s3_proxy.uri}/doctor/too-long")
    assert findings["put and get"].found == "no success within 0.5 s"
    assert list(findings) == ["endpoint", "access", "clock", "put and get", "clean-up"]


def test_a_store_that_is_not_there_is_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://user:testsecret1234567@{endpoint}")
        findings = examine("s3://bucket/x")
    assert list(findings) == ["endpoint"]
    assert findings["endpoint"].found == f"expected a store at {endpoint}, found [Errno 111] Connection refused"


@pytest.mark.parametrize(
    ("seconds", "state"), [(-301, "warning"), (-299, "ok"), (0, "ok"), (299, "ok"), (301, "warning")]
)
def test_clocks_may_differ_by_five_minutes(seconds: int, state: str) -> None:
    store = datetime.datetime(2026, 11, 22, tzinfo=datetime.UTC)
    finding = compare_clocks(store, store + datetime.timedelta(seconds=seconds))
    assert finding.state == state
    assert f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'}" in finding.found


def machine() -> dict[str, Finding]:
    findings = list(check_machine())
    assert all(bool(finding.fix) == (finding.state != "ok") for finding in findings)
    return {finding.name: finding for finding in findings}


def test_this_machine_is_described() -> None:
    assert {"Python", "ray", "torch", "CPUs", "memory"} <= machine().keys()


def test_pinned_versions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch==0.1", "ray[data,train]==2.60.0", "nobody-has-this==1", "numpy>=2", 'a==1; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", {"lossight": requirements}.get)
    findings = machine()
    assert [findings[name].state for name in ("torch", "ray", "nobody-has-this")] == ["warning", "ok", "failed"]
    assert findings["torch"].found.startswith("expected 0.1, found 2.")
    assert not {"numpy", "a"} & findings.keys()


def test_too_little_of_everything_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_usage(path: str) -> SimpleNamespace:
        return SimpleNamespace(total=100 * 2**30, free=2**30)

    limit = tmp_path / "memory.max"
    limit.write_text(f"{2**30}\n")
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(doctor, "_CGROUP_LIMIT", str(limit))
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    findings = machine()
    disk = next(name for name in findings if name.startswith("disk of "))
    assert {findings[name].state for name in ("CPUs", "memory", "shared memory", disk)} == {"warning"}
    assert findings["memory"].found == "1.0 GiB"


@pytest.mark.ray
def test_the_object_store_is_the_one_that_ray_is_given() -> None:
    from distributed.cluster import connection

    assert doctor.OBJECT_STORE_BYTES == connection._LOCAL_OBJECT_STORE_BYTES


@pytest.mark.ray
def test_a_healthy_cluster_is_healthy(local_ray: None) -> None:
    cluster, node = check_cluster("the one we are connected to")
    assert (cluster.state, node.state) == ("ok", "ok")
    assert cluster.found.startswith("1 nodes, ")


def test_a_cluster_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # this process may be connected
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert main(["doctor", "--address", address]) == 3
    captured = capfd.readouterr()
    assert f"failed: cluster: --address {address}: expected a Ray cluster, found none" in captured.out
    assert captured.err == ""


def test_the_command_shows_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--storage", str(tmp_path / "[red]")]) == 0
    text = capsys.readouterr().out
    assert "[red]" in text
    assert all(name in text for name in ["this machine", "torch", *HEALTHY])


def test_the_command_says_what_failed_in_a_line_with_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["doctor", "--storage", str(tmp_path / "file")]) == 3
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: put and get: ")
    assert line.endswith("to fix: give a folder, not a file")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("uri", ["s3:///x", "gs://bucket/x", ""])
def test_a_uri_that_can_not_be_is_said_before_anything_else(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--storage", uri]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
