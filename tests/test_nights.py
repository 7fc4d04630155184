"""Nights and their files: each version of a file is in one night, whatever comes late, changes or is unfinished."""

from __future__ import annotations

import datetime
import os
import uuid
from pathlib import Path

import pytest

from distributed.storage.location import Location, locate, read_bytes, write_bytes
from distributed.triage.nights import FILES_FILE, Night, Nights, dates_below, find_nights, freeze_night
from model.errors import InputError

D1, D2, D3, D4 = (datetime.date(2026, 11, day) for day in (1, 2, 3, 4))
LONG_AGO = datetime.date(2020, 1, 1)


def put(folder: Location, *paths: str, data: bytes = b"x") -> None:
    for path in paths:
        write_bytes(folder.join("pool", *path.split("/")), data)


def freeze(folder: Location, date: datetime.date, *, since: datetime.date = LONG_AGO) -> Night | None:
    return freeze_night(folder.join("nights"), date, find_nights(folder.join("pool")), since=since)


def paths(folder: Location, night: Night | None) -> list[str]:
    assert night is not None
    return [file.path[len(folder.join("pool").path) + 1 :] for file in night.files]


def test_folders_name_the_nights(folder: Location, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "date=2026-11-02/b.parquet", "date=2026-11-01/x/a.parquet", "date=2026-11-02/_tmp/c.parquet")
    put(folder, "date=2026-11-02/notes.txt", "date=yesterday/d.parquet", "date=2026-13-01/e.parquet", "other/f.parquet")
    put(folder, "date=2026-1-5/h.parquet", "loose.parquet")
    nights = find_nights(folder.join("pool"))
    assert nights.dates == (D1, D2)
    assert paths(folder, freeze(folder, D1)) == ["date=2026-11-01/x/a.parquet"]
    assert paths(folder, freeze(folder, D2)) == ["date=2026-11-02/b.parquet"]
    for name in ("date=yesterday", "date=2026-13-01", "date=2026-1-5"):
        assert f"{name}: not looked at: expected a folder date=YYYY-MM-DD" in caplog.text
    assert "files beside its date=… folders are not looked at" in caplog.text


def test_a_pool_that_is_not_there_is_named(folder: Location) -> None:
    with pytest.raises(InputError, match=r"pool: expected a file or a folder, found nothing"):
        find_nights(folder.join("pool"))


def test_a_night_without_files_has_not_begun(folder: Location) -> None:
    put(folder, "date=2026-11-01/notes.txt")
    assert freeze(folder, D1) is None
    assert freeze(folder, D2) is None
    assert dates_below(folder.join("nights")) == []


def test_a_night_stays_what_it_was_and_what_comes_later_is_late_in_the_next(folder: Location) -> None:
    put(folder, "date=2026-11-01/a.parquet")
    first = freeze(folder, D1)
    put(folder, "date=2026-11-01/b.parquet", "date=2026-11-02/c.parquet")
    assert freeze(folder, D1) == first
    second = freeze(folder, D2)
    assert second is not None
    assert (paths(folder, second), second.late) == (
        ["date=2026-11-01/b.parquet", "date=2026-11-02/c.parquet"],
        ("date=2026-11-01/b.parquet",),
    )
    put(folder, "date=2026-11-03/d.parquet")
    assert paths(folder, freeze(folder, D3)) == ["date=2026-11-03/d.parquet"]


def test_a_file_that_was_replaced_is_late_and_one_that_was_removed_is_nothing(folder: Location) -> None:
    put(folder, "date=2026-11-01/a.parquet", "date=2026-11-01/b.parquet")
    freeze(folder, D1)
    put(folder, "date=2026-11-01/a.parquet", data=b"other")
    pool = folder.join("pool")
    pool.filesystem.delete_file(f"{pool.path}/date=2026-11-01/b.parquet")
    put(folder, "date=2026-11-02/c.parquet")
    assert paths(folder, freeze(folder, D2)) == ["date=2026-11-01/a.parquet", "date=2026-11-02/c.parquet"]


def test_files_of_nights_that_have_not_begun_or_are_too_old_are_not_late(folder: Location) -> None:
    put(folder, "date=2026-11-01/a.parquet", "date=2026-11-02/b.parquet", "date=2026-11-03/c.parquet")
    freeze(folder, D1)
    put(folder, "date=2026-11-01/late.parquet")
    assert paths(folder, freeze(folder, D3, since=D2)) == ["date=2026-11-03/c.parquet"]  # the 2nd begins by itself
    put(folder, "date=2026-11-04/d.parquet")
    assert paths(folder, freeze(folder, D4)) == ["date=2026-11-01/late.parquet", "date=2026-11-04/d.parquet"]


def test_what_an_older_night_has_is_known_however_old_it_is(folder: Location) -> None:
    """A copy has another time: in pools without folders the version that one night has may be of another date."""
    put(folder, "date=2026-11-02/a.parquet")
    freeze(folder, D2)
    nights = folder.join("nights")
    frozen = read_bytes(nights.join(f"{D2}", FILES_FILE))
    write_bytes(nights.join(f"{D1}", FILES_FILE), frozen)
    nights.filesystem.delete_dir(f"{nights.path}/{D2}")
    assert freeze(folder, D2, since=D2) is None


def test_what_a_later_night_has_taken_is_not_taken_again_by_one_that_is_done_anew(folder: Location) -> None:
    put(folder, "date=2026-11-01/a.parquet")
    freeze(folder, D1)
    put(folder, "date=2026-11-01/late.parquet", "date=2026-11-02/b.parquet")
    freeze(folder, D2)
    nights = folder.join("nights")
    nights.filesystem.delete_dir(f"{nights.path}/{D1}")
    assert paths(folder, freeze(folder, D1)) == ["date=2026-11-01/a.parquet"]


def test_files_of_an_ingest_that_is_not_finished_wait(folder: Location, caplog: pytest.LogCaptureFixture) -> None:
    put(folder, "date=2026-11-01/drive/config.json", "date=2026-11-01/drive/a.parquet", "date=2026-11-01/b.parquet")
    assert paths(folder, freeze(folder, D1)) == ["date=2026-11-01/b.parquet"]
    assert "an ingest is not finished: its files wait" in caplog.text
    put(folder, "date=2026-11-01/drive/run.json", "date=2026-11-02/c.parquet")
    assert paths(folder, freeze(folder, D2)) == ["date=2026-11-01/drive/a.parquet", "date=2026-11-02/c.parquet"]


def test_a_damaged_list_is_named(folder: Location) -> None:
    put(folder, "date=2026-11-01/a.parquet")
    write_bytes(folder.join("nights", f"{D1}", FILES_FILE), b"{}")
    with pytest.raises(InputError, match=r"2026-11-01/files\.json: expected the files of a night"):
        freeze(folder, D1)


def test_the_list_names_files_below_the_pool(folder: Location) -> None:
    """So that a pool may be mounted elsewhere."""
    put(folder, "date=2026-11-01/a.parquet")
    freeze(folder, D1)
    data = folder.join("nights", f"{D1}", FILES_FILE)
    with data.filesystem.open_input_file(data.path) as stream:
        assert b'"date=2026-11-01/a.parquet"' in stream.read()


# Pools without folders of dates


def by_time(tmp_path: Path, **days: int) -> Nights:
    """A pool on disk whose files were written at noon of a day of November."""
    for name, day in days.items():
        file = tmp_path / "pool" / "x" / f"{name}.parquet"
        put(locate(str(tmp_path)), f"x/{name}.parquet")
        noon = datetime.datetime(2026, 11, day, 12, tzinfo=datetime.UTC).timestamp()
        os.utime(file, (noon, noon))
    return find_nights(locate(str(tmp_path / "pool")))


def test_files_without_folders_of_dates_are_of_the_day_they_were_written(tmp_path: Path) -> None:
    nights = by_time(tmp_path, a=1, b=1, c=3)
    assert nights.dates == (D1, D3)
    assert [len(nights.files(date)) for date in (D1, D2, D3)] == [2, 0, 1]


def test_a_file_of_an_earlier_day_is_late_there_too(tmp_path: Path) -> None:
    nights, place = by_time(tmp_path, a=1), locate(str(tmp_path / "nights"))
    freeze_night(place, D1, nights, since=LONG_AGO)
    night = freeze_night(place, D2, by_time(tmp_path, b=1, c=2), since=LONG_AGO)
    assert night is not None
    assert night.late == ("x/b.parquet",)
    assert len(night.files) == 2


@pytest.mark.s3
def test_a_store_says_when_its_files_were_written(s3_uri: str) -> None:
    folder = locate(f"{s3_uri}/times-{uuid.uuid4().hex[:8]}")
    before = datetime.datetime.now(datetime.UTC).date()
    put(folder, "x/a.parquet", "b.parquet")
    nights = find_nights(folder.join("pool"))
    after = datetime.datetime.now(datetime.UTC).date()
    assert set(nights.dates) <= {before, after}
    assert sum(len(nights.files(date)) for date in nights.dates) == 2
