"""Storage behind a proxy that fails: it rides out what passes, and ends in one line without a secret otherwise."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import plain_rows, read_scores
from faultproxy import FaultProxy

from distributed.ingest.fleet import row_of
from distributed.runs.progress import silent
from distributed.runs.record import read_run
from distributed.schema import POOL
from distributed.scoring import pipeline
from distributed.scoring.options import ScoringOptions
from distributed.scoring.score import score_pool
from distributed.storage.bundles import write_bundle
from distributed.storage.location import (
    Location,
    WholeReads,
    list_files,
    locate,
    open_atomic,
    read_bytes,
    read_versioned,
    write_bytes,
    write_if,
)
from distributed.tables.parquet import open_table, write_rows
from distributed.tables.scores import ScoresPart, write_part
from model.errors import InputError, RunFailedError
from model.synthetic import Sample

pytestmark = pytest.mark.s3

TRANSIENT = ["slow_down", "internal_error", "reset"]
SECRETS = ["testkey12345", "testsecret1234567"]
BIG = bytes(range(256)) * 45_000  # 11.5 MB: two parts


def contents(folder: Location) -> dict[str, bytes]:
    infos = list_files(folder, suffix="")
    return {info.base_name: read_bytes(folder.join(info.base_name)) for info in infos}


def check_is_one_clean_line(error: BaseException, uri: str) -> None:
    assert str(error).startswith(f"{uri}: storage failed: ")
    assert "\n" not in str(error)
    shown = "".join(traceback.format_exception(error))
    assert not any(secret in text for secret in SECRETS for text in (str(error), shown))


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_fifth_of_all_requests_may_fail(s3_proxy: FaultProxy, kind: str) -> None:
    folder = locate(f"{s3_proxy.uri}/faults/fifth-{kind}")
    s3_proxy.fail(kind, share=0.2)
    written = {f"{index}.bin": bytes([index]) * 1000 for index in range(6)} | {"big.bin": BIG}
    for name, data in written.items():
        write_bytes(folder.join(name), data)
    assert contents(folder) == written
    assert not folder.join("none").exists
    assert sum(s3_proxy.counts.values()) > 15


@pytest.mark.parametrize("operation", ["GET", "PUT", "POST", "LIST", "HEAD"])
def test_three_failures_in_a_row_pass(s3_proxy: FaultProxy, operation: str) -> None:
    """What pyarrow's own retries, three attempts, give up on."""
    folder = locate(f"{s3_proxy.uri}/faults/three-{operation}")
    s3_proxy.fail("slow_down", on=operation, times=3)
    write_bytes(folder.join("x"), BIG)  # in parts, which only POST begins and completes
    assert contents(folder) == {"x": BIG}
    assert s3_proxy.counts[operation] > 3


@pytest.mark.parametrize("kind", ["slow_down", "reset", "black_hole"])
def test_a_failure_while_a_tiny_file_is_read_passes(s3_proxy: FaultProxy, kind: str, few_attempts: None) -> None:
    location = locate(f"{s3_proxy.uri}/faults/tiny-{kind}")
    write_bytes(location, b"data")
    s3_proxy.fail(kind, on="GET", times=1)
    assert read_bytes(location) == b"data"


@pytest.mark.parametrize(
    "faults",
    [
        [{"kind": "truncate", "on": on, "times": 1} for on in ("GET", "LIST")],
        [{"kind": "slow", "on": "GET", "bytes_per_s": 20e6}],
    ],
    ids=["truncated", "slow"],
)
def test_an_answer_that_is_cut_is_asked_for_again_and_a_slow_one_arrives(
    s3_proxy: FaultProxy, faults: list[dict[str, Any]]
) -> None:
    folder = locate(f"{s3_proxy.uri}/faults/{faults[0]['kind']}")
    write_bytes(folder.join("x"), BIG)
    for fault in faults:
        s3_proxy.fail(**fault)
    assert contents(folder) == {"x": BIG}


@pytest.mark.parametrize("data", [b"data", BIG], ids=["small", "big"])
@pytest.mark.parametrize(("operation", "path"), [("PUT", ""), ("POST", ""), ("POST", "uploadId")])
def test_a_lost_answer_to_a_write_leaves_one_whole_object(
    s3_proxy: FaultProxy, operation: str, path: str, data: bytes
) -> None:
    folder = locate(f"{s3_proxy.uri}/faults/lost-{operation}-{path}-{len(data)}")
    s3_proxy.fail("lost_answer", on=operation, path=path, times=1)
    write_bytes(folder.join("x"), data)
    assert contents(folder) == {"x": data}


def test_a_conditional_write_whose_answer_is_lost_has_succeeded(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faults/conditional")
    s3_proxy.fail("lost_answer", on="PUT", times=1)
    first = write_if(location, b"first", version=None)
    assert read_versioned(location) == (b"first", first)
    s3_proxy.fail("lost_answer", on="PUT", times=1)
    second = write_if(location, b"second", version=first)
    assert read_versioned(location) == (b"second", second)
    assert s3_proxy.counts["PUT"] == 4


def test_a_conditional_write_that_lost_has_lost_whatever_fails(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faults/lost-race")
    theirs = write_if(location, b"theirs", version=None)
    s3_proxy.fail("lost_answer", on="PUT", times=1)
    assert write_if(location, b"ours", version=None) is None
    s3_proxy.fail("slow_down", on="PUT GET", times=2)
    assert write_if(location, b"ours", version="0" * 32) is None
    assert read_versioned(location) == (b"theirs", theirs)


@pytest.mark.parametrize("kind", [*TRANSIENT, "lost_answer"])
def test_conditional_writes_through_failures_count_right(s3_proxy: FaultProxy, kind: str) -> None:
    location = locate(f"{s3_proxy.uri}/faults/counter-{kind}")
    s3_proxy.fail(kind, on="GET PUT HEAD", share=0.2)
    version = None
    for count in range(8):
        version = write_if(location, b"%d" % count, version=version)
        assert version
        assert read_versioned(location) == (b"%d" % count, version)
    stored = location.stat()
    assert stored
    assert (stored.size, stored.version) == (1, version)


def test_a_truncated_record_is_asked_for_again(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faults/record")
    version = write_if(location, bytes(1000), version=None)
    s3_proxy.fail("truncate", on="GET", times=8)
    assert read_versioned(location) == (bytes(1000), version)


def test_a_short_read_is_noticed_whatever_its_length(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faults/short")
    write_bytes(location, bytes(range(200)))  # one of which is the mark
    with location.filesystem.open_input_file(location.path) as stream:
        reads = WholeReads(stream)
        for count in (2, 16, 17, 100, 1000):
            s3_proxy.fail("short", on="GET", times=2)
            reads.seek(100)
            with pytest.raises(OSError, match=rf"expected {min(count, 100)} B of a read, found fewer"):
                reads.read(count)
            s3_proxy.fail("short", on="GET", times=1)
            reads.seek(100)
            assert reads.read(count) == bytes(range(100, 200))[:count]
        assert reads.read(10) == b""
        for start in range(200):
            reads.seek(start)
            assert reads.read(1) == bytes([start])


CALLS: dict[str, Callable[[Location], object]] = {
    "read": read_bytes,
    "list": lambda location: list_files(location.parent, suffix=""),
    "look": lambda location: location.exists,
    "write": lambda location: write_bytes(location, b"other"),
    "write much": lambda location: write_bytes(location, BIG),
    "read a version": read_versioned,
    "write if": lambda location: write_if(location, b"other", version=None),
}


KINDS = ["slow_down", "reset", "truncate", "black_hole", "access_denied", "expired_token"]
# Each call with two kinds, each kind with two calls or more; the other pairs at night.
PAIRS = [
    pytest.param(call, kind, marks=() if (column - row) % 3 == 0 else pytest.mark.nightly)
    for row, call in enumerate(CALLS)
    for column, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("call", "kind"), PAIRS)
def test_an_outage_is_one_line(s3_proxy: FaultProxy, few_attempts: None, call: str, kind: str) -> None:
    location = locate(f"{s3_proxy.uri}/faults/outage/{kind}/{call}/x")
    write_bytes(location, bytes(1000))
    s3_proxy.fail(kind)
    uri = location.parent.uri if call == "list" else location.uri
    if kind == "truncate" and call in ("look", "write"):  # the answers to HEAD and PUT have no body to truncate
        CALLS[call](location)
        return
    with pytest.raises(RunFailedError) as caught:
        CALLS[call](location)
    check_is_one_clean_line(caught.value, uri)


def test_a_refusal_in_the_middle_of_a_write_is_one_line(s3_proxy: FaultProxy) -> None:
    location = locate(f"{s3_proxy.uri}/faults/expired")
    s3_proxy.fail("expired_token", on="PUT POST", after=2)
    with pytest.raises(RunFailedError, match=r"storage failed: .*ExpiredToken") as caught:
        write_bytes(location, BIG)
    check_is_one_clean_line(caught.value, location.uri)
    s3_proxy.heal()
    assert not location.exists


def test_a_block_that_fails_during_an_outage_says_its_own_error(s3_proxy: FaultProxy, few_attempts: None) -> None:
    def fail_halfway() -> None:
        with open_atomic(locate(f"{s3_proxy.uri}/faults/halfway")) as stream:
            stream.write(b"half")
            s3_proxy.fail("slow_down")
            raise InputError("halfway")

    with pytest.raises((InputError, RunFailedError)) as caught:
        fail_halfway()
    assert "\n" not in str(caught.value)


def read_pool(location: Location) -> pa.Table:
    with open_table(location) as reader:
        return reader.read()


def test_one_flipped_byte_never_becomes_data(s3_proxy: FaultProxy) -> None:
    folder = locate(f"{s3_proxy.uri}/faults/flipped")
    write_rows(folder, plain_rows(60, image_bytes=5000), POOL, row_group_bytes=100_000)
    part = folder.join("part-00000.parquet")
    before = s3_proxy.counts["GET"]
    undisturbed = read_pool(part)
    found = 0
    for index in range(s3_proxy.counts["GET"] - before):
        s3_proxy.heal()
        s3_proxy.fail("flip_byte", on="GET", after=index, times=1)
        try:
            assert read_pool(part).equals(undisturbed), f"answer {index}"
        except (InputError, RunFailedError) as error:
            assert str(error).startswith(f"{part.uri}: damaged: ")  # noqa: PT017
            found += 1
    assert found


def score(pool: str, *, model: str, out: str) -> pa.Table:
    options = ScoringOptions(debug=True)
    score_pool(pool, model=model, out=out, options=options, config={}, progress=silent)
    return pa.concat_tables(read_scores(locate(out))).sort_by("sample_id")


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(["reset", "lost_answer"], id="network"),
        pytest.param(["slow_down", "internal_error"], id="store"),
        pytest.param(["truncate", "slow"], id="bodies"),
    ],
)
def test_a_run_through_failures_gives_what_it_gives_undisturbed(
    s3_proxy: FaultProxy,
    samples: list[Sample],
    bundle_files: dict[str, bytes],
    tmp_path: Path,
    kinds: list[str],
) -> None:
    place = f"{s3_proxy.uri}/faults/run-{'-'.join(kinds)}"
    rows = [row_of(sample) for sample in samples]
    rows[5]["image"] = b""
    for folder in (place, str(tmp_path)):
        write_rows(locate(f"{folder}/pool"), rows, POOL, row_group_bytes=20_000)
        write_bundle(locate(f"{folder}/model"), bundle_files)
    for kind in kinds:
        s3_proxy.fail(kind, share=0.05)
    disturbed = score(f"{place}/pool", model=f"{place}/model", out=f"{place}/scores")
    undisturbed = score(f"{tmp_path}/pool", model=f"{tmp_path}/model", out=f"{tmp_path}/scores")
    assert sum(s3_proxy.counts.values()) > 50
    assert disturbed.to_pylist() == undisturbed.to_pylist()


def test_a_run_that_is_refused_after_a_while_says_so_and_the_same_call_goes_on(
    s3_proxy: FaultProxy,
    samples: list[Sample],
    bundle_files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the right to write is taken away, or keys end, in the middle of the night."""
    place = f"{s3_proxy.uri}/faults/refused"
    for folder in (place, str(tmp_path)):
        write_rows(locate(f"{folder}/pool"), [row_of(sample) for sample in samples], POOL, row_group_bytes=20_000)
        write_bundle(locate(f"{folder}/model"), bundle_files)
    undisturbed = score(f"{tmp_path}/pool", model=f"{tmp_path}/model", out=f"{tmp_path}/scores")
    num_written = 0

    def write(out: Location, rows: pa.Table) -> ScoresPart:
        nonlocal num_written
        part = write_part(out, rows)
        num_written += len(rows)
        s3_proxy.fail("access_denied")
        return part

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_part", write)
        with pytest.raises(RunFailedError, match=r"storage failed: .*(credentials|rights)") as raised:
            score(f"{place}/pool", model=f"{place}/model", out=f"{place}/scores")
    assert "\n" not in str(raised.value)
    s3_proxy.heal()
    assert not locate(f"{place}/scores/run.json").exists
    # The lease could not be released; but a process that has ended holds none.
    monkeypatch.setattr("distributed.runs.lease.is_dead", lambda _: True)
    found = score(f"{place}/pool", model=f"{place}/model", out=f"{place}/scores")
    assert found.to_pylist() == undisturbed.to_pylist()
    assert 0 < read_run(locate(f"{place}/scores"), expected="scores")["num_new_rows"] == len(samples) - num_written
