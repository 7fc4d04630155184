"""Reads that go wrong once are repeated; what stays unread is named, and read by the next run or the next night."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import week
from conftest import read_scores
from faultproxy import FaultProxy

from distributed.ingest.fleet import row_of
from distributed.runs.record import read_run
from distributed.schema import POOL
from distributed.selection.select import read_selection
from distributed.storage.location import list_files, locate
from distributed.tables.manifest import freeze_pool
from distributed.tables.parquet import write_rows
from jobs.cli import main
from jobs.run import DEGRADED, DONE
from model.synthetic import Sample

RATE = ["--max-error-rate=.5"]
KINDS = ["short", "flip_byte"]
VICTIM = "b/part-00000.parquet"
FILES = "abc"
FILE_ROWS = 8


def deliver(place: str, samples: list[Sample]) -> None:
    """A pool of three files, each with two row groups."""
    for number, name in enumerate(FILES):
        rows = [row_of(sample) for sample in samples[number * FILE_ROWS : (number + 1) * FILE_ROWS]]
        size = sum(len(row["image"]) for row in rows) * 2 // 3
        write_rows(locate(f"{place}/pool/{name}"), rows, POOL, row_group_bytes=size)


def score(place: str, model: str) -> int:
    """The exit code of the command."""
    return main(
        [
            "score",
            "--pool",
            f"{place}/pool",
            "--model",
            model,
            "--out",
            f"{place}/scores",
            "--max-error-rate=.5",
            "--debug",
        ]
    )


def record_of(place: str) -> dict[str, Any]:
    return read_run(locate(f"{place}/scores"), expected="scores")


def scores_of(place: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        pa.concat_tables(read_scores(locate(f"{place}/scores"))).sort_by("sample_id").to_pylist()
    )
    return rows


@pytest.fixture
def s3_place(s3_proxy: FaultProxy, samples: list[Sample]) -> str:
    place = f"{s3_proxy.uri}/reads-{uuid.uuid4().hex[:8]}"
    deliver(place, samples)
    return place


@pytest.mark.s3
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_answer_is_asked_for_again(s3_proxy: FaultProxy, s3_place: str, model_uri: str, kind: str) -> None:
    """Whichever read of the file it befalls, one or two in a row: footers, ids, images."""
    s3_proxy.fail("slow", on="GET", path=VICTIM, bytes_per_s=1e9, times=(many := 1000))
    assert score(s3_place, model_uri) == DONE
    undisturbed, num_reads = scores_of(s3_place), many - int(s3_proxy._faults[0].times)
    assert num_reads > 4
    for index in range(num_reads):
        s3_proxy.heal()
        s3_proxy.fail(kind, on="GET", path=VICTIM, after=index, times=1 + index % 2)
        place, out = s3_place, f"{s3_place}/scores-{index}"
        arguments = ["--pool", f"{place}/pool", "--model", model_uri, "--out", out, "--debug"]
        code, record = main(["score", *arguments]), read_run(locate(out), expected="scores")
        if code == DONE:
            rows = pa.concat_tables(read_scores(locate(out))).sort_by("sample_id").to_pylist()
            assert (rows, record["bad_files"], record["damaged_files"]) == (undisturbed, {}, {})
        else:  # a footer has no checksum: what was frozen of it may be wrong, and that is found out when it is read
            assert (code, kind, list(record["bad_files"])) == (DEGRADED, "flip_byte", [VICTIM])
            s3_proxy.heal()
            assert main(["score", *arguments]) == DONE


@pytest.mark.s3
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_good", [0, 2, 4])  # answers before: none, those of the freezing, and one more
def test_a_file_that_cannot_be_read_is_named_and_the_next_run_takes_it(
    s3_proxy: FaultProxy, s3_place: str, model_uri: str, kind: str, num_good: int, capsys: pytest.CaptureFixture[str]
) -> None:
    s3_proxy.fail(kind, on="GET", path=VICTIM, after=num_good)
    assert score(s3_place, model_uri) == DEGRADED
    record = record_of(s3_place)
    assert list(record["bad_files"]) == [VICTIM]
    assert record["error_rate"] == pytest.approx(1 / 3)
    assert f"file not read: {VICTIM}: " in capsys.readouterr().out
    assert score(s3_place, model_uri) == DEGRADED  # it is still so
    s3_proxy.heal()
    assert score(s3_place, model_uri) == DONE
    record = record_of(s3_place)
    assert (record["num_new_rows"], record["num_scored"], record["bad_files"]) == (8, 24, {})
    assert score(s3_place, model_uri) == DONE
    assert record_of(s3_place) == record


@pytest.mark.s3
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_published_where_no_file_can_be_read(
    s3_proxy: FaultProxy, s3_place: str, model_uri: str, kind: str
) -> None:
    s3_proxy.fail(kind, on="GET", path="/pool/", after=2 * len(FILES))
    assert score(s3_place, model_uri) == 2
    assert not locate(f"{s3_place}/scores/run.json").exists
    s3_proxy.heal()
    assert score(s3_place, model_uri) == DONE
    assert record_of(s3_place)["num_scored"] == 24


def flip_image(path: Path) -> bytes:
    """Flips a bit of an image of the second row group without a trace of a write; returns what was there."""
    content, chunk = path.read_bytes(), pq.read_metadata(path).row_group(1).column(1)
    place = chunk.data_page_offset + chunk.total_compressed_size - 1
    put(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    return content


def put(path: Path, content: bytes) -> None:
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_damaged_rows_are_read_again_by_the_next_run(
    tmp_path: Path, samples: list[Sample], model_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(str(tmp_path), samples)
    victim = tmp_path / "pool" / VICTIM
    num_hit = pq.read_metadata(victim).row_group(1).num_rows
    content = flip_image(victim)
    for _ in range(2):
        assert score(str(tmp_path), model_uri) == DEGRADED
        record = record_of(str(tmp_path))
        assert (record["num_rows"], record["errors"]) == (24, {"damaged": num_hit})
        assert (record["bad_files"], record["damaged_files"]) == ({}, {VICTIM: num_hit})
        assert f"file read in part: {VICTIM}: damaged: {num_hit} rows" in capsys.readouterr().out
    assert record["num_new_rows"] == num_hit
    before = scores_of(str(tmp_path))
    put(victim, content)
    assert score(str(tmp_path), model_uri) == DONE
    record = record_of(str(tmp_path))
    assert (record["num_new_rows"], record["num_scored"], record["damaged_files"]) == (num_hit, 24, {})
    for row, earlier in zip(scores_of(str(tmp_path)), before, strict=True):
        assert row == earlier or earlier["error"] == "damaged"
    assert score(str(tmp_path), model_uri) == DONE
    assert record_of(str(tmp_path)) == record


def test_readers_of_a_table_with_damaged_rows_keep_it_while_it_is_scored_again(
    tmp_path: Path, samples: list[Sample], model_uri: str
) -> None:
    """The parts of the last record stay as they are until the next one is published, and after."""
    deliver(str(tmp_path), samples)
    flip_image(tmp_path / "pool" / VICTIM)
    score(str(tmp_path), model_uri)
    kept = {path: (tmp_path / "scores" / path).read_bytes() for path in record_of(str(tmp_path))["parts"]}
    score(str(tmp_path), model_uri)
    assert {path: (tmp_path / "scores" / path).read_bytes() for path in kept} == kept


def test_a_file_that_is_shorter_than_it_was_listed_is_bad(tmp_path: Path, samples: list[Sample]) -> None:
    deliver(str(tmp_path), samples)
    pool = locate(f"{tmp_path}/pool")
    listed = list_files(pool, suffix=".parquet")
    size = (tmp_path / "pool" / VICTIM).stat().st_size
    os.truncate(tmp_path / "pool" / VICTIM, size // 2)
    (bad,) = freeze_pool(pool, files=listed).bad_files
    assert (bad.path, bad.reason) == (VICTIM, f"damaged: expected {size} B, found {size // 2} B")


# Nights


def triage(place: str, model: str) -> int:
    options = ["--pool", f"{place}/pool", "--model", model, "--out", f"{place}/triage", "--first-night=2026-01-01"]
    return main(["triage", *options, "--budget=2", "--max-error-rate=.9", "--no-report", "--debug"])


def night_of(place: str, number: int) -> dict[str, Any]:
    return read_run(locate(f"{place}/triage/nights/{week.NIGHTS[number]}"), expected="night")


def deliver_night(place: str, number: int) -> None:
    rows = week.fleet()[number * 8 : number * 8 + 8]
    for name, own in (("a", rows[:4]), ("b", rows[4:])):
        write_rows(locate(f"{place}/pool/date={week.NIGHTS[number]}/{name}"), own, POOL)


@pytest.mark.s3
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_good", [0, 2])  # answers before: none, or those of the freezing
def test_a_file_that_a_night_cannot_read_is_late_in_the_next(
    s3_proxy: FaultProxy, model_uri: str, kind: str, num_good: int
) -> None:
    place = f"{s3_proxy.uri}/reads-{uuid.uuid4().hex[:8]}"
    victim = f"date={week.NIGHTS[0]}/b/part-00000.parquet"
    chosen = locate(f"{place}/triage/selections/{week.NIGHTS[0]}")
    deliver_night(place, 0)
    s3_proxy.fail(kind, on="GET", path="/b/part-00000", after=num_good)
    with week.brightness_scored():
        assert triage(place, model_uri) == DEGRADED
        night = night_of(place, 0)
        assert (list({**night["bad_files"], **night["damaged_files"]}), night["num_scored"]) == ([victim], 4)
        before = (read_run(chosen, expected="selection"), read_selection(chosen))
        deliver_night(place, 1)
        s3_proxy.heal()
        assert triage(place, model_uri) == DONE
        found = night_of(place, 1)
        assert (found["late_files"], found["num_scored"], found["bad_files"]) == ([victim], 12, {})
        assert (read_run(chosen, expected="selection"), read_selection(chosen)) == before
        deliver_night(place, 2)
        assert triage(place, model_uri) == DONE
        assert night_of(place, 2)["late_files"] == []


def test_a_file_of_which_a_night_lost_rows_is_late_in_the_next(tmp_path: Path, model_uri: str) -> None:
    path = f"date={week.NIGHTS[0]}/b/part-00000.parquet"
    rows = week.fleet()[4:8]
    deliver_night(str(tmp_path), 0)
    write_rows(locate(f"{tmp_path}/pool/{path}").parent, rows, POOL, row_group_bytes=len(rows[0]["image"]) * 2)
    content = flip_image(tmp_path / "pool" / path)
    with week.brightness_scored():
        assert triage(str(tmp_path), model_uri) == DEGRADED
        night = night_of(str(tmp_path), 0)
        assert list(night["damaged_files"]) == [path]
        put(tmp_path / "pool" / path, content)
        deliver_night(str(tmp_path), 1)
        assert triage(str(tmp_path), model_uri) == DONE
    night = night_of(str(tmp_path), 1)
    assert (night["late_files"], night["num_scored"], night["damaged_files"]) == ([path], 12, {})
    ids = [
        sample_id
        for number in (0, 1)
        for sample_id in read_selection(locate(f"{tmp_path}/triage/selections/{week.NIGHTS[number]}"))["sample_id"]
    ]
    assert len(set(ids)) == len(ids) == 4
