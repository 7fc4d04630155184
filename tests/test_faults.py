"""Faults of machines, processes, files and disks: the scores are those of a quiet run, or the run says why not."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faulty
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import read_scores
from faulty import (
    FILE_ROWS,
    NUM_ROWS,
    KilledError,
    assert_no_leftovers,
    assert_same,
    flip_bit_of_image,
    killed_at,
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

from distributed.scoring import pipeline
from distributed.scoring import score as scoring
from distributed.storage import location as storage
from distributed.storage.location import locate
from model.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


# Processes and machines


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_an_actor_killed_in_mid_batch_costs_nothing(
    arguments: list[str], out: Path, undisturbed: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "killed"
    scorer = faulty.killed_once_at(rows_of("c")[7], str(marker))
    monkeypatch.setattr("distributed.scoring.pipeline.LossScorer", scorer)
    assert run(arguments, "--actors", "2") == 0
    assert marker.exists()
    assert record_of(out)["num_new_rows"] == NUM_ROWS
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_row_that_kills_its_process_every_time_is_found_and_costs_itself(
    arguments: list[str], out: Path, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = rows_of("d")[9]
    monkeypatch.setattr("distributed.scoring.pipeline.LossScorer", faulty.crashed_by(poison))
    assert run(arguments, "--ray", "--max-error-rate", "0.01") == 5
    found = scores_by_id(out)
    assert only(found, [poison])["error"].to_pylist() == ["crashed"]
    assert only(found, [poison])["predicted_loss"].to_pylist() == [None]
    assert_same(without(found, [poison]), without(undisturbed, [poison]))
    assert record_of(out)["errors"]["crashed"] == 1
    assert record_of(out)["error_examples"]["crashed"] == [poison]


@pytest.mark.ray
def test_a_lost_machine_costs_nothing(arguments: list[str], out: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    marker = tmp_path / "lost"
    fault = ["node_removed", NUM_ROWS // 3, str(marker)]
    with score_process(*arguments, "--cpus-per-actor", "2", fault=fault) as process:
        said = process.communicate(timeout=faulty.DEADLINE_S)
    assert process.returncode == 0, said
    assert marker.exists()
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)


@pytest.mark.ray
def test_a_driver_killed_at_30_percent_and_again_at_90_loses_nothing_that_was_written(
    arguments: list[str], out: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    kept = [0]
    for percent, how in ((30, "--ray"), (90, "--debug")):
        marker = tmp_path / f"held-{percent}"
        fault = ["use", "held_after", percent * NUM_ROWS // 100 - kept[-1], str(marker)]
        with score_process(*arguments, how, fault=fault) as process:
            until(lambda m=marker: m.exists() and num_rows_kept(out) > kept[-1], process=process)
            process.kill()
            process.wait(faulty.DEADLINE_S)
        kept.append(num_rows_kept(out))
        with pytest.raises(InputError, match="unfinished"):
            list(read_scores(locate(str(out))))
    assert 0 < kept[1] < kept[2] < NUM_ROWS
    assert run(arguments, "--debug") == 0
    assert record_of(out)["num_new_rows"] == NUM_ROWS - kept[2]
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)


def test_a_process_killed_in_the_middle_of_a_write_goes_on_from_there(
    arguments: list[str], out: Path, undisturbed: pa.Table
) -> None:
    with score_process(*arguments, "--debug", fault=["killed_before", "pyarrow.parquet:ParquetWriter", 3]) as process:
        process.wait(faulty.DEADLINE_S)
    assert process.returncode == -signal.SIGKILL
    num_written = num_rows_kept(out)
    assert num_written > 0
    assert run(arguments, "--debug") == 0
    assert record_of(out)["num_new_rows"] == NUM_ROWS - num_written
    assert_no_leftovers(out)
    assert_same(scores_by_id(out), undisturbed)


def test_a_run_killed_at_any_point_goes_on_from_there(arguments: list[str], out: Path, undisturbed: pa.Table) -> None:
    with killed_at(None) as killer:
        assert run(arguments, "--debug") == 0
    num_published = 0
    for point in range(killer.count // 9, killer.count, killer.count // 9):
        shutil.rmtree(out)
        with pytest.raises(KilledError), killed_at(point):
            run(arguments, "--debug")
        is_published, num_written = (out / "run.json").exists(), num_rows_kept(out)
        assert run(arguments, "--debug") == 0
        if not is_published:
            assert record_of(out)["num_new_rows"] == max(0, NUM_ROWS - num_written)
            assert_no_leftovers(out)
        assert_same(scores_by_id(out), undisturbed)
        num_published += is_published
    assert num_published < 2


# Files of the pool


def test_truncated_empty_and_foreign_files_are_named_and_cost_themselves(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    (pool / "b.parquet").write_bytes((pool / "b.parquet").read_bytes()[:-100])
    (pool / "c.parquet").write_bytes(b"")
    (pool / "e.parquet").write_bytes(b"PAR1 is how we begin, and how we end: PAR1")
    assert run(arguments, "--debug") == 5
    bad_files = record_of(out)["bad_files"]
    assert sorted(bad_files) == ["b.parquet", "c.parquet", "e.parquet"]
    assert bad_files["c.parquet"] == "empty file"
    assert record_of(out)["error_rate"] == pytest.approx(0.5, abs=0.03)
    assert_same(scores_by_id(out), without(undisturbed, [*rows_of("b"), *rows_of("c"), *rows_of("e")]))


def test_a_mended_file_is_scored_by_the_next_call(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    whole = (pool / "b.parquet").read_bytes()
    (pool / "b.parquet").write_bytes(whole[:-100])
    assert run(arguments, "--debug") == 5
    (pool / "b.parquet").write_bytes(whole)
    assert run(arguments, "--debug") == 0
    assert record_of(out)["num_new_rows"] == FILE_ROWS
    assert_same(scores_by_id(out), undisturbed)


def test_a_flipped_bit_in_images_costs_their_row_group(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    flip_bit_of_image(pool / "d.parquet", row_group=2)
    assert run(arguments, "--debug", "--max-error-rate", "0.03") == 5
    found, hit = scores_by_id(out), rows_of("d")[8:12]
    assert only(found, hit)["error"].to_pylist() == ["damaged"] * 4
    assert only(found, hit)["predicted_loss"].null_count == 4
    for name in ("sample_id", "group", "pool_file", "pool_row"):
        assert only(found, hit)[name].to_pylist() == only(undisturbed, hit)[name].to_pylist()
    assert_same(without(found, hit), without(undisturbed, hit))


def test_a_flipped_bit_anywhere_is_never_a_silent_score(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    path = pool / "a.parquet"
    whole = path.read_bytes()
    for number, position in enumerate(range(len(whole) // 16, len(whole), len(whole) // 8)):
        data = bytearray(whole)
        data[position] ^= 1 << (number % 8)
        path.write_bytes(data)
        place = out.with_name(f"scores-{number}")
        run([*arguments[:-1], str(place)], "--debug")
        found, record = scores_by_id(place), record_of(place)
        damaged = [row["sample_id"] for row in found.to_pylist() if row["error"] == "damaged"]
        lost = rows_of("a") if "a.parquet" in record["bad_files"] else []
        assert damaged or lost, position
        assert_same(without(found, damaged), without(undisturbed, [*damaged, *lost]))


@contextmanager
def changed_after_the_freeze(pool: Path) -> Iterator[None]:
    """In the block a run finds e.parquet replaced and f.parquet removed after it has frozen the pool."""
    freeze = scoring.freeze_pool

    def freeze_then_change(*given: Any, **named: Any) -> Any:
        manifest = freeze(*given, **named)
        write_file(pool / "e.parquet", new_night())
        (pool / "f.parquet").unlink()
        return manifest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "freeze_pool", freeze_then_change)
        yield


_CHANGED = dict.fromkeys(["e.parquet", "f.parquet"], "changed during the run")


def test_files_replaced_and_removed_during_the_run_fail_alone_and_count_next_time(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    with changed_after_the_freeze(pool):
        assert run(arguments, "--debug") == 5
    assert record_of(out)["bad_files"] == _CHANGED
    gone = [*rows_of("e"), *rows_of("f")]
    assert_same(scores_by_id(out), without(undisturbed, gone))

    assert run(arguments, "--debug") == 0
    assert record_of(out)["num_new_rows"] == FILE_ROWS
    assert record_of(out)["bad_files"] == {}
    new = new_night()["sample_id"].to_pylist()
    found = scores_by_id(out)
    assert_same(without(found, new), without(undisturbed, gone))
    assert sorted(only(found, new)["sample_id"].to_pylist()) == sorted(new)


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_on_ray_too_damage_and_change_cost_themselves(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table
) -> None:
    flip_bit_of_image(pool / "d.parquet", row_group=2)
    with changed_after_the_freeze(pool):
        assert run(arguments, "--ray") == 5
    assert record_of(out)["bad_files"] == _CHANGED
    found, hit = scores_by_id(out), rows_of("d")[8:12]
    assert only(found, hit)["error"].to_pylist() == ["damaged"] * 4
    assert_same(without(found, hit), without(undisturbed, [*hit, *rows_of("e"), *rows_of("f")]))


def test_a_file_replaced_when_half_of_it_is_scored_gives_no_rows(
    arguments: list[str], pool: Path, out: Path, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_then_change(place: Any, rows: pa.Table) -> Any:
        part = write(place, rows)
        if "b.parquet" in rows["pool_file"].to_pylist() and num_rows_kept(out) < 2 * FILE_ROWS:
            write_file(pool / "b.parquet", new_night())
        return part

    write = pipeline.write_part
    monkeypatch.setattr(pipeline, "write_part", write_then_change)
    assert run(arguments, "--debug") == 5
    assert record_of(out)["bad_files"] == {"b.parquet": "changed during the run"}
    assert_same(scores_by_id(out), without(undisturbed, rows_of("b")))


def test_a_damaged_part_of_a_killed_run_is_scored_again(arguments: list[str], out: Path, undisturbed: pa.Table) -> None:
    with pytest.raises(KilledError), killed_at(6, on="/parts/"):
        run(arguments, "--debug")
    damaged = sorted((out / "parts").iterdir())[1]
    data = bytearray(damaged.read_bytes())
    ids = pq.read_metadata(damaged).row_group(0).column(0)
    data[ids.data_page_offset + ids.total_compressed_size - 2] ^= 1  # a page: only whoever reads the rows can know
    damaged.write_bytes(data)
    assert run(arguments, "--debug") == 3
    assert run(arguments, "--debug") == 0
    assert 0 < record_of(out)["num_new_rows"] < NUM_ROWS
    assert_same(scores_by_id(out), undisturbed)


# The disk of the output

_PAGES_LEFT = 6  # enough for the records of the run and a part or two


@contextmanager
def small_disk(folder: Path, *, num_bytes: int) -> Iterator[None]:
    """A file system of a given size there; the test is skipped where none may be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    try:
        done = subprocess.run(mount, check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("mode", ["debug", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_full_disk_ends_the_run_with_one_line_and_space_lets_it_go_on(
    request: pytest.FixtureRequest,
    arguments: list[str],
    tmp_path: Path,
    undisturbed: pa.Table,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = [f"--{mode}"]
    if mode == "ray":
        request.getfixturevalue("local_ray")
    disk = tmp_path / "disk"
    with small_disk(disk, num_bytes=256 * 1024):
        out = disk / "scores"
        arguments = [*arguments[:-1], str(out)]
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(256 * 1024 - _PAGES_LEFT * 4096))
        assert run(arguments, *how) == 3
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert "the disk is full" in said[0]
        with pytest.raises(InputError, match="unfinished"):
            list(read_scores(locate(str(out))))
        num_written = num_rows_kept(out)
        ballast.unlink()
        # A full disk lets nobody write that the lease is released; but a process that has ended holds none.
        monkeypatch.setattr("distributed.runs.lease.is_dead", lambda _: True)
        assert run(arguments, "--debug") == 0
        assert record_of(out)["num_new_rows"] == NUM_ROWS - num_written
        assert_same(scores_by_id(out), undisturbed)
        assert_no_leftovers(out)


@pytest.mark.parametrize("num_good", [0, 1, 3])
def test_a_write_that_fails_half_way_leaves_nothing_and_the_same_command_goes_on(
    arguments: list[str],
    out: Path,
    undisturbed: pa.Table,
    num_good: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As above, for machines on which nothing can be mounted."""
    calls = iter(range(100))

    def write(place: Any, rows: pa.Table) -> Any:
        if next(calls) == num_good:
            with storage.open_atomic(place.join("parts", "part-x.parquet")) as stream:
                stream.write(b"half of")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_part(place, rows)

    write_part = pipeline.write_part
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_part", write)
        assert run(arguments, "--debug") == 3
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("score: ")]  # progress
    assert len(said) == 1
    assert "the disk is full" in said[0]
    assert len(list((out / "parts").iterdir())) == num_good
    assert run(arguments, "--debug") == 0
    assert_same(scores_by_id(out), undisturbed)
    assert_no_leftovers(out)
