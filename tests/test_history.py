"""The history of a triage: a row a night, replaced in its place, whole or not at all; and what old nights may lose."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

from distributed.schema import HISTORY
from distributed.storage.location import Location, list_files, locate, write_bytes
from distributed.tables import history
from distributed.tables.history import read_history, record_night
from distributed.triage.triage import drop_old_scores
from model.errors import InputError, RunFailedError


def row(day: int, **changes: Any) -> dict[str, Any]:
    values = {
        "night": datetime.date(2026, 11, day),
        "bundle_id": "b",
        "num_files": 1,
        "num_late_files": 0,
        "num_bad_files": 0,
        "num_rows": 10,
        "num_scored": 9,
        "error_rate": 0.1,
        "num_selected": 2,
        "images_per_second": None,
        "loss_quantiles": [-1.5, 0.25],
        "slices": [{"column": "camera", "value": "ü", "num_scored": 9, "loss_quantiles": [0.5]}],
        "psi": None,
        "ks": 0.125,
        "drift": ["words"],
    }
    return {**values, **changes}


def test_there_is_none_at_first(folder: Location) -> None:
    assert read_history(folder.join("h.parquet")) == []


def test_rows_are_by_date_and_replaced_in_their_place(folder: Location) -> None:
    place = folder.join("h.parquet")
    for each in (row(2), row(3), row(1), row(2, num_selected=7)):
        record_night(place, each)
    assert read_history(place) == [row(1), row(2, num_selected=7), row(3)]
    with place.filesystem.open_input_file(place.path) as stream:
        assert pq.read_table(stream).schema.equals(HISTORY)


def test_the_same_row_again_writes_nothing(folder: Location) -> None:
    place = folder.join("h.parquet")
    record_night(place, row(1))
    before = place.stat()
    record_night(place, row(1))
    assert place.stat() == before


def test_writers_at_once_lose_no_row(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_ATTEMPTS", 50)
    place = folder.join("h.parquet")
    threads = [threading.Thread(target=record_night, args=(place, row(day))) for day in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_history(place) == [row(day) for day in range(1, 7)]


def test_a_file_that_others_keep_changing_is_a_failure_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "write_if", Mock(return_value=None))
    with pytest.raises(RunFailedError, match=r"h\.parquet: others changed it 5 times"):
        record_night(locate(str(tmp_path / "h.parquet")), row(1))


def test_what_is_no_history_is_named_and_stays(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "h.parquet"))
    write_bytes(place, b"something else")
    with pytest.raises(InputError, match=r"h\.parquet: damaged"):
        record_night(place, row(1))
    pq.write_table(HISTORY.empty_table().drop_columns(["drift"]), tmp_path / "h.parquet")
    with pytest.raises(InputError, match=r"h\.parquet: column 'drift': expected list"):
        record_night(place, row(1))


def test_only_the_scores_of_old_nights_are_removed(folder: Location) -> None:
    dates = [datetime.date(2026, 11, day) for day in (1, 2, 3, 10)]
    for date in dates:
        for path in ("run.json", "files.json", "report.html", "scores-a/run.json", "scores-b/parts/x.parquet"):
            write_bytes(folder.join(f"{date}", *path.split("/")), b"x")

    def with_scores() -> list[str]:
        files = [file.path[len(folder.path) + 1 :] for file in list_files(folder, suffix="")]
        assert len([path for path in files if "scores" not in path]) == 3 * len(dates)
        return sorted({path[:10] for path in files if "scores" in path})

    today = datetime.date(2026, 11, 11)
    drop_old_scores(folder, dates, today=today, keep_days=9)
    assert len(with_scores()) == 4
    drop_old_scores(folder, [*dates, datetime.date(2099, 1, 1)], today=dates[-1], keep_days=9)
    assert len(with_scores()) == 4  # a night of the future makes no other old
    drop_old_scores(folder, [dates[0], dates[2], dates[3]], today=today, keep_days=7)
    assert with_scores() == ["2026-11-02", "2026-11-03", "2026-11-10"]  # of the 2nd nobody said that it is published
