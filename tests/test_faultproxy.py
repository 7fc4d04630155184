"""The fault proxy passes requests on as they are, and fails exactly as told."""

from __future__ import annotations

import http.client
import time

import pytest
from faultproxy import FaultProxy

from distributed.storage.location import locate, read_bytes, write_bytes

pytestmark = pytest.mark.s3


@pytest.fixture
def target(s3_proxy: FaultProxy) -> str:
    """The path of an object that anybody may ask for, and be refused by the server itself."""
    return f"/{s3_proxy.uri.removeprefix('s3://')}/some/object"


def ask(proxy: FaultProxy, method: str, target: str, *, timeout_s: float = 20) -> tuple[int, bytes]:
    host, _, port = proxy.endpoint.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("num_bytes", [0, 10, 12 * 2**20])  # an empty put, a put, several parts
def test_objects_pass_unchanged(s3_proxy: FaultProxy, num_bytes: int) -> None:
    data = bytes(range(251)) * (num_bytes // 251 + 1)
    location = locate(f"{s3_proxy.uri}/faultproxy/a b=ü+%25/{num_bytes}")
    write_bytes(location, data[:num_bytes])
    assert read_bytes(location) == data[:num_bytes]
    assert s3_proxy.counts["PUT"] >= 1 + num_bytes // (10 * 2**20)
    assert s3_proxy.counts["GET"] >= (num_bytes > 0)


def test_botocore_passes_too(s3_proxy: FaultProxy) -> None:
    from botocore.session import get_session

    client = get_session().create_client("s3", region_name="us-east-1", endpoint_url=s3_proxy.endpoint)
    bucket = s3_proxy.uri.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="faultproxy/b", Body=b"x" * 100_000, IfNoneMatch="*")
    assert len(client.get_object(Bucket=bucket, Key="faultproxy/b")["Body"].read()) == 100_000
    assert client.list_objects_v2(Bucket=bucket, Prefix="faultproxy/b")["KeyCount"] == 1
    client.close()
    assert s3_proxy.counts == {"PUT": 1, "GET": 1, "LIST": 1}


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("slow_down", 503, b"<Code>SlowDown</Code>"),
        ("internal_error", 500, b"<Code>InternalError</Code>"),
        ("access_denied", 403, b"<Code>AccessDenied</Code>"),
        ("expired_token", 400, b"<Code>ExpiredToken</Code>"),
    ],
)
def test_errors_are_answered_as_the_store_does(
    s3_proxy: FaultProxy, target: str, kind: str, status: int, code: bytes
) -> None:
    s3_proxy.fail(kind)
    found, body = ask(s3_proxy, "GET", target)
    assert found == status
    assert code in body
    assert ask(s3_proxy, "HEAD", target) == (status, b"")


def test_only_what_was_named_fails_and_as_often_as_told(s3_proxy: FaultProxy, target: str) -> None:
    s3_proxy.fail("slow_down", on="GET LIST", path="object", after=1, times=2)
    served = [ask(s3_proxy, "GET", target)[0] != 503 for _ in range(4)]
    assert served == [True, False, False, True]
    assert ask(s3_proxy, "HEAD", target)[0] != 503
    assert s3_proxy.counts == {"GET": 4, "HEAD": 1}


def test_a_share_of_the_requests_fails_the_same_ones_each_time(s3_proxy: FaultProxy, target: str) -> None:
    def statuses() -> list[int]:
        s3_proxy.heal()
        s3_proxy.fail("slow_down", share=0.3)
        return [ask(s3_proxy, "GET", target)[0] for _ in range(40)]

    first = statuses()
    assert first == statuses()
    assert 4 <= first.count(503) <= 20


def test_broken_connections(s3_proxy: FaultProxy, target: str) -> None:
    s3_proxy.fail("reset", times=1)
    s3_proxy.fail("lost_answer", times=1)
    s3_proxy.fail("truncate", times=1)
    s3_proxy.fail("black_hole", times=1)
    for expected in (ConnectionResetError, ConnectionResetError, http.client.IncompleteRead, TimeoutError):
        with pytest.raises(expected):
            ask(s3_proxy, "GET", target, timeout_s=0.3)
    assert ask(s3_proxy, "GET", target)[0] == 403  # no signature: the server's own answer


def test_a_lost_answer_is_one_to_a_request_that_was_carried_out(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faultproxy/lost")
    s3_proxy.fail("lost_answer", on="PUT", times=1)
    write_bytes(location, b"x")
    assert s3_proxy.counts["PUT"] == 2
    assert read_bytes(location) == b"x"


def test_one_byte_is_flipped(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faultproxy/flipped")
    write_bytes(location, b"aaa")
    s3_proxy.fail("flip_byte", on="GET", times=1)
    assert [read_bytes(location), read_bytes(location)] == [b"a`a", b"aaa"]


def test_a_short_answer_says_that_it_is_whole(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faultproxy/short")
    write_bytes(location, bytes(range(100)))
    s3_proxy.fail("short", on="GET", times=1)
    assert [read_bytes(location), read_bytes(location)] == [bytes(range(50)), bytes(range(100))]


def test_a_slow_body_takes_its_time(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faultproxy/slow")
    write_bytes(location, bytes(20_000))
    s3_proxy.fail("slow", on="GET", bytes_per_s=50_000)
    started = time.monotonic()
    assert read_bytes(location) == bytes(20_000)
    assert time.monotonic() - started >= 0.3  # four pauses of 82 ms
