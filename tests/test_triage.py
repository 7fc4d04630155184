"""Triage, night after night: nothing twice, nothing lost, whatever happens in between; on disk and on a real S3 server."""

from __future__ import annotations

import datetime
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import week
from week import BUDGET, CORRUPT, DARK, LATE_PATH, LATE_ROWS, MISSED, NIGHT_ROWS, NIGHTS, WITH_LATE

from distributed.nightly.history import read_history
from distributed.nightly.triage import TriageOptions
from distributed.runs.record import read_run
from distributed.selection.select import read_selection
from distributed.storage.location import locate
from distributed.tables.scores import read_scores

NOT_THE_SAME = ("images_per_second",)  # of two weeks that differ in nothing


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a week's pool and triage go."""
    root = str(tmp_path) if request.param == "disk" else request.getfixturevalue("s3_uri")
    return f"{root}/week-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def quiet_week(tmp_path_factory: pytest.TempPathFactory, model_uri: str) -> tuple[TriageOptions, list[int]]:
    """A week on disk in which no triage was killed, and how much each triage did to the store."""
    place = str(tmp_path_factory.mktemp("quiet"))
    options, efforts = week.options_of(place, model_uri), []
    with week.brightness_scored() as scored:
        for night in NIGHTS:
            week.deliver(place, night)
            if night != MISSED:
                with week.killed_at(None) as killer:
                    week.triage(options)
                efforts.append(killer.count)
    assert set(scored.values()) == {1}
    assert set(scored) == week.pool_rows(options)
    return options, efforts


def comparable_history(options: TriageOptions) -> list[dict[str, Any]]:
    rows = read_history(locate(options.out).join("history.parquet"))
    return [{key: value for key, value in row.items() if key not in NOT_THE_SAME} for row in rows]


def selected(options: TriageOptions, night: datetime.date) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_selection(locate(options.out).join("selections", f"{night}")).to_pylist()
    return rows


def test_a_week_in_which_each_triage_is_killed_is_the_week_in_which_none_was(
    place: str, model_uri: str, quiet_week: tuple[TriageOptions, list[int]]
) -> None:
    quiet, efforts = quiet_week
    options, rng = week.options_of(place, model_uri), random.Random(6)  # noqa: S311
    with week.brightness_scored() as scored:
        for night, effort in zip((night for night in NIGHTS if night != MISSED), efforts, strict=True):
            for arrived in (MISSED, night) if night == WITH_LATE else (night,):
                week.deliver(place, arrived)
            for _ in range(2):  # the second one is killed while it goes on
                with pytest.raises(week.KilledError), week.killed_at(rng.randint(1, effort // 2)):
                    run_once(options, scored)
            run_once(options, scored)
            run_once(options, scored)  # has nothing left to do
    assert comparable_history(options) == comparable_history(quiet)
    for night in NIGHTS:
        assert selected(options, night) == selected(quiet, night)


def run_once(options: TriageOptions, scored: Any) -> None:
    """One triage, which must not score what scores on storage hold already."""
    held = week.held_rows(options)
    scored.clear()
    week.triage(options)
    assert not held & set(scored)


def test_the_week_has_what_was_in_it(quiet_week: tuple[TriageOptions, list[int]]) -> None:
    options, _ = quiet_week
    history = comparable_history(options)
    assert [row["night"] for row in history] == NIGHTS
    assert [row["num_rows"] for row in history] == [NIGHT_ROWS + LATE_ROWS * (night == MISSED) for night in NIGHTS]
    assert [row["num_bad_files"] for row in history] == [int(night == CORRUPT) for night in NIGHTS]
    assert [row["num_selected"] for row in history] == [BUDGET] * 7
    assert [bool(row["drift"]) for row in history] == [night == DARK for night in NIGHTS]
    chosen = [row["sample_id"] for night in NIGHTS for row in selected(options, night)]
    assert len(set(chosen)) == len(chosen) == 7 * BUDGET


def test_a_late_file_enters_the_next_selection_and_none_before(quiet_week: tuple[TriageOptions, list[int]]) -> None:
    """The 18th is the first night that is triaged after it came."""
    options, _ = quiet_week
    record = read_run(locate(f"{options.out}/nights/{MISSED}"), expected="night")
    assert record["late_files"] == [LATE_PATH]
    files = [
        path
        for rows in read_scores(locate(f"{options.out}/{record['scores']}"))
        for path in rows["pool_file"].to_pylist()
    ]
    assert files.count(LATE_PATH) == LATE_ROWS
