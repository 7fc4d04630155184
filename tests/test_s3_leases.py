"""Faults of a store in conditional writes and leases: lost answers, refusals, outages, broken promises."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import version_of
from faultproxy import FaultProxy

from distributed.runs.lease import LEASE_FILE, hold
from distributed.storage import s3
from distributed.storage.location import (
    Location,
    list_files,
    locate,
    read_bytes,
    read_versioned,
    write_bytes,
    write_if,
)
from model.errors import InputError, LeaseError, RunFailedError

pytestmark = pytest.mark.s3


@pytest.fixture
def folder(s3_uri: str) -> Location:
    """A folder that does not exist yet."""
    return locate(f"{s3_uri}/{uuid.uuid4().hex}")


def test_a_bucket_is_a_folder_and_a_missing_one_is_nothing(s3_uri: str) -> None:
    write_bytes(locate(f"{s3_uri}/x"), b"x")
    assert locate(s3_uri).stat() is None
    assert list_files(locate(s3_uri), suffix="")
    nowhere = locate("s3://no-such-bucket")
    assert nowhere.join("x").stat() is None
    assert read_versioned(nowhere.join("x")) is None
    with pytest.raises(InputError, match=r"^s3://no-such-bucket: expected a file or a folder, found nothing"):
        list_files(nowhere, suffix="")
    assert write_if(nowhere.join("x"), b"x", version="0" * 32) is None


@pytest.mark.parametrize("is_new", [True, False])
def test_a_write_whose_answer_is_lost_counts(s3_proxy: FaultProxy, is_new: bool) -> None:
    location = locate(f"{s3_proxy.uri}/{uuid.uuid4().hex}")
    version = None if is_new else write_if(location, b"old", version=None)
    s3_proxy.fail("lost_answer", on="PUT", times=1)
    before = s3_proxy.counts["PUT"]
    written = write_if(location, b"new", version=version)
    assert s3_proxy.counts["PUT"] - before == 2
    assert read_versioned(location) == (b"new", written)


def test_a_repeated_write_does_not_take_anothers_content_for_its_own(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/{uuid.uuid4().hex}")
    write_if(location, b"theirs", version=None)
    s3_proxy.fail("slow_down", on="PUT", times=1)
    assert write_if(location, b"ours", version=None) is None
    assert read_bytes(location) == b"theirs"


def test_busy_stores_and_broken_answers_are_ridden_out(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/{uuid.uuid4().hex}").join("x")
    s3_proxy.fail("slow_down", times=1)
    version = write_if(location, b"whole" * 1000, version=None)
    s3_proxy.fail("truncate", on="GET", times=1)
    s3_proxy.fail("reset", on="LIST", times=1)
    assert read_versioned(location) == (b"whole" * 1000, version)
    assert [file.version for file in list_files(location.parent, suffix="")] == [version]


def test_a_store_that_ignores_conditions_is_refused(s3_proxy: FaultProxy) -> None:
    out = locate(f"{s3_proxy.uri}/{uuid.uuid4().hex}")
    s3_proxy.fail("no_conditions", on="PUT")
    with pytest.raises(InputError) as caught, hold(out):
        pass
    assert str(caught.value) == (
        f"{out.uri}: expected a store with conditional writes, found one that ignored the condition of a write, "
        f"so that two runs could mix; `lossight doctor --storage {out.uri}` checks it"
    )


def test_an_outage_shorter_than_its_life_does_not_cost_the_lease(s3_proxy: FaultProxy, few_attempts: None) -> None:
    out = locate(f"{s3_proxy.uri}/{uuid.uuid4().hex}")
    with hold(out, ttl_s=900) as lease:
        s3_proxy.fail("slow_down")
        with pytest.raises(RunFailedError, match="storage failed: SlowDown at PutObject: "):
            lease.check()
        s3_proxy.heal()
        lease.check()
        s3_proxy.fail("lost_answer", on="PUT")
        with pytest.raises(RunFailedError, match="storage failed: "):
            lease.check()
        s3_proxy.heal()
        lease.check()  # the store holds a heartbeat of ours that we do not know of
        s3_proxy.fail("slow_down")
    s3_proxy.heal()  # it could not be released, so it is still held; but the block ended in peace
    with pytest.raises(LeaseError, match="another run holds the lease"), hold(out):
        pass


def test_an_outage_longer_than_its_life_costs_the_lease(s3_proxy: FaultProxy, few_attempts: None) -> None:
    out = locate(f"{s3_proxy.uri}/{uuid.uuid4().hex}")
    with hold(out, ttl_s=0.2) as lease:
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "lease")
        s3_proxy.fail("slow_down")
        thread.join(60)
        s3_proxy.heal()
        with pytest.raises(LeaseError, match=r"the lease expired: .*SlowDown"):
            lease.check()
    assert out.join(LEASE_FILE).exists


@pytest.mark.parametrize(
    ("variable", "code"),
    [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")],
)
def test_wrong_credentials_are_said_in_one_line(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, variable: str, code: str
) -> None:
    monkeypatch.setattr(s3, "_clients", {})
    monkeypatch.setenv(variable, "wrong-and-hidden")
    location = locate(f"{s3_uri}/x")
    with pytest.raises(RunFailedError) as caught:
        write_if(location, b"x", version=None)
    assert str(caught.value) == (
        f"{location.uri}: storage failed: the store refuses these credentials ({code} at PutObject): "
        "check the keys or the role, and their rights"
    )
    with pytest.raises(RunFailedError, match="the store refuses these credentials"):
        list_files(location, suffix="")
    with pytest.raises(RunFailedError, match="credentials"):
        read_bytes(location)


def test_missing_credentials_are_said_in_one_line(s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3, "_clients", {})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(RunFailedError, match="storage failed: no credentials: expected AWS_ACCESS_KEY_ID and"):
        locate(f"{s3_uri}/x").stat()


def test_an_expired_token_is_said(s3_proxy: FaultProxy) -> None:
    s3_proxy.fail("expired_token")
    with pytest.raises(RunFailedError, match=r"refuses these credentials \(ExpiredToken at PutObject\)"):
        write_if(locate(f"{s3_proxy.uri}/x"), b"x", version=None)
    with pytest.raises(RunFailedError, match=r"400 at HeadObject: check the credentials"):
        locate(f"{s3_proxy.uri}/x").stat()


def test_a_location_leads_to_its_own_store_whatever_the_environment(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = locate(f"{s3_uri}/{uuid.uuid4().hex}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert write_if(location, b"x", version=None) == version_of(location)


def test_one_client_serves_a_process(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_clients", {})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: locate(f"{s3_uri}/nothing").stat(), range(8)))
    assert len(s3._clients) == 1
