"""Triage, night after night: nothing twice, nothing lost, whatever happens in between; on disk and on S3 alike."""

from __future__ import annotations

import datetime
import os
import random
import shutil
import uuid
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import week
from conftest import read_scores
from faulty import KilledError, killed_at
from week import BUDGET, CORRUPT, DARK, LATE_PATH, LATE_ROWS, MISSED, NIGHT_ROWS, NIGHTS, WITH_LATE

from distributed.reporting.options import ExportOptions
from distributed.runs.lease import Lease
from distributed.runs.record import read_run
from distributed.schema import POOL
from distributed.selection.select import read_selection
from distributed.selection.strategies import choose
from distributed.storage.bundles import read_bundle_id
from distributed.storage.champion import move_champion, read_champion
from distributed.storage.location import locate, write_bytes
from distributed.tables.history import read_history
from distributed.tables.parquet import Row, write_rows
from distributed.triage.options import TriageOptions
from model.errors import InputError, LeaseError, RunFailedError

pytestmark = pytest.mark.slow

NOT_THE_SAME = ("images_per_second",)  # of two weeks that differ in nothing


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Folder for a week's pool and triage."""
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
                with killed_at(None) as killer:
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
                with pytest.raises(KilledError), killed_at(rng.randint(1, effort // 2)):
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
    assert [row["num_bad_files"] for row in history] == [int(night >= CORRUPT) for night in NIGHTS]  # late in each
    assert [row["num_selected"] for row in history] == [BUDGET] * 7
    assert [bool(row["drift"]) for row in history] == [night == DARK for night in NIGHTS]
    chosen = [row["sample_id"] for night in NIGHTS for row in selected(options, night)]
    assert len(set(chosen)) == len(chosen) == 7 * BUDGET


def test_a_late_file_enters_the_next_selection_and_none_before(quiet_week: tuple[TriageOptions, list[int]]) -> None:
    """The 18th is the first night that is triaged after it came."""
    options, _ = quiet_week
    record = read_run(locate(f"{options.out}/nights/{MISSED}"), expected="night")
    assert record["late_files"] == [LATE_PATH]
    files = [path for rows in read_scores(locate(record["scores"])) for path in rows["pool_file"].to_pylist()]
    assert files.count(LATE_PATH) == LATE_ROWS


def test_killed_at_any_point_a_night_is_what_it_would_have_been(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    week.deliver(str(tmp_path), NIGHTS[0])
    with week.brightness_scored() as scored:
        with killed_at(None) as killer:
            week.triage(options)
        expected = comparable_history(options), selected(options, NIGHTS[0])
        for point in range(4, killer.count, 8):
            shutil.rmtree(options.out)
            with pytest.raises(KilledError), killed_at(point):
                week.triage(options)
            run_once(options, scored)
            assert (comparable_history(options), selected(options, NIGHTS[0])) == expected, point


# What nights may be like


def deliver_rows(place: str, night: datetime.date, rows: list[Row], *, name: str = "a") -> None:
    write_rows(locate(f"{place}/pool/date={night}/{name}"), rows, POOL)


def sample_ids(options: TriageOptions, night: datetime.date) -> set[str]:
    return {row["sample_id"] for row in selected(options, night)}


def test_until_a_date_means_missed_nights_before_it_and_none_after(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    for number, night in enumerate(NIGHTS[:4]):
        deliver_rows(str(tmp_path), night, week.fleet()[4 * number : 4 * number + 4])
    with week.brightness_scored():
        assert [record["night"] for record in week.triage(options, until=NIGHTS[1])] == [str(n) for n in NIGHTS[:2]]
        assert [record.get("was_done") for record in week.triage(options, until=NIGHTS[1])] == [True]
        assert [record["night"] for record in week.triage(options)] == [str(night) for night in NIGHTS[2:4]]
        assert week.triage(options, until=NIGHTS[5]) == []  # no data, and nothing missed
        (newest,) = week.triage(options)
    assert (newest["night"], newest["was_done"]) == (str(NIGHTS[3]), True)


def test_today_and_what_a_wrong_clock_dated_later_waits(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri, keep_days=1)
    for number, night in enumerate((*NIGHTS[:3], datetime.date(2099, 1, 1))):
        deliver_rows(str(tmp_path), night, week.fleet()[4 * number : 4 * number + 4])
    with week.brightness_scored():
        records = week.triage(options, today=NIGHTS[2])
        assert [record["night"] for record in records] == [str(night) for night in NIGHTS[:2]]
        records += week.triage(options, today=NIGHTS[2], until=datetime.date(2099, 1, 1))
    assert [Path(record["scores"]).exists() for record in records] == [False, True, True, True]


def test_nights_before_the_first_one_are_left_alone(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri, first_night=NIGHTS[1])
    for number, night in enumerate(NIGHTS[:2]):
        deliver_rows(str(tmp_path), night, week.fleet()[4 * number : 4 * number + 4])
    with week.brightness_scored() as scored:
        assert [record["night"] for record in week.triage(options)] == [str(NIGHTS[1])]
    assert len(scored) == 4


def test_a_pool_without_folders_of_dates_has_nights_that_are_over(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    for number, night in enumerate(NIGHTS[:2]):
        write_rows(locate(f"{options.pool}/{number}"), week.fleet()[4 * number : 4 * number + 4], POOL)
        noon = datetime.datetime.combine(night, datetime.time(12), datetime.UTC).timestamp()
        os.utime(tmp_path / "pool" / f"{number}" / "part-00000.parquet", (noon, noon))
    with week.brightness_scored():
        assert [record["night"] for record in week.triage(options, today=NIGHTS[1])] == [str(NIGHTS[0])]
        found = week.triage(options, today=NIGHTS[1], until=NIGHTS[1])
    assert [(record["night"], record["num_rows"]) for record in found] == [(str(NIGHTS[1]), 4)]


@pytest.mark.parametrize("num_checks", [0, 1])
def test_a_lease_that_is_lost_while_rows_are_chosen_commits_no_selection(
    num_checks: int, tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, checks = week.options_of(str(tmp_path), model_uri), [None] * num_checks
    deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[:4])
    found = choose

    def lost(_: Lease) -> None:
        if not checks:
            raise LeaseError("another run's")
        checks.pop()

    def choose_slowly(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(Lease, "_renew", lost)
        return found(*arguments, **named)

    monkeypatch.setattr("distributed.selection.select.choose", choose_slowly)
    with week.brightness_scored(), pytest.raises(LeaseError):
        week.triage(options)
    chosen = tmp_path / "triage" / "selections" / str(NIGHTS[0])
    assert (chosen / "selection.parquet").exists() == bool(num_checks)
    assert not (chosen / "run.json").exists()


def test_labelled_rows_are_not_selected(tmp_path: Path, model_uri: str) -> None:
    rows = week.fleet()[:6]
    write_rows(locate(f"{tmp_path}/labelled"), rows[:3], POOL)
    options = week.options_of(str(tmp_path), model_uri, budget=5, control_share=0, exclude=f"{tmp_path}/labelled")
    deliver_rows(str(tmp_path), NIGHTS[0], rows)
    with week.brightness_scored():
        (record,) = week.triage(options)
    assert sample_ids(options, NIGHTS[0]) == {row["sample_id"] for row in rows[3:]}
    assert (record["budget"], record["num_selected"]) == (5, 3)


def test_what_was_selected_is_not_selected_again_however_often_it_comes(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    for night in NIGHTS[:3]:
        deliver_rows(str(tmp_path), night, week.fleet()[:10])
    with week.brightness_scored():
        records = week.triage(options)
    assert [record["num_selected"] for record in records] == [4, 4, 2]


def test_a_night_without_a_readable_row_waits_and_the_others_do_not(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    write_bytes(locate(f"{options.pool}/date={NIGHTS[0]}/a/part-00000.parquet"), b"cut short")
    deliver_rows(str(tmp_path), NIGHTS[1], week.fleet()[4:8])
    with week.brightness_scored():
        for _ in range(2):
            with pytest.raises(InputError, match=r"no readable file; date=2026-11-16/a/part-00000\.parquet: damaged"):
                week.triage(options)
        deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[:4])
        found = [(record["night"], record.get("was_done", False)) for record in week.triage(options)]
    assert found == [(str(NIGHTS[0]), False), (str(NIGHTS[1]), True)]
    assert [row["night"] for row in comparable_history(options)] == NIGHTS[:2]


def test_a_late_file_that_nothing_can_be_done_with_waits_and_no_night_does(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    with week.brightness_scored():
        deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[:4])
        week.triage(options)
        late = [f"date={NIGHTS[0]}/{name}/part-00000.parquet" for name in ("late", "twice")]
        for name in ("late", "twice"):
            deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[4:5], name=name)
        for number, night in enumerate(NIGHTS[1:3], 2):
            deliver_rows(str(tmp_path), night, week.fleet()[4 * number : 4 * number + 4])
            (record,) = week.triage(options)
            assert (record["night"], record["late_files"], record["num_scored"]) == (str(night), [], 4)
            assert list(record["late_files_left"]) == late
            assert "expected unique values" in record["late_files_left"][late[0]]
        deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[5:6], name="twice")
        deliver_rows(str(tmp_path), NIGHTS[3], week.fleet()[16:20])
        (record,) = week.triage(options)
    assert (record["late_files"], record["late_files_left"], record["num_scored"]) == (late, {}, 6)


def test_a_night_of_unreadable_images_is_published_without_a_selection(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    deliver_rows(str(tmp_path), NIGHTS[0], [{**row, "image": b"no image"} for row in week.fleet()[:4]])
    deliver_rows(str(tmp_path), NIGHTS[1], week.fleet()[4:8])
    with week.brightness_scored():
        first, second = week.triage(options)
    assert (first["selection"], first["error_rate"], first["errors"]) == (None, 1.0, {"undecodable": 4})
    assert second["num_selected"] == 4


@pytest.fixture
def other(tmp_path: Path, bundle_files: dict[str, bytes]) -> Path:
    """A bundle of the same weights and another id."""
    (tmp_path / "other").mkdir()
    for name, data in bundle_files.items():
        (tmp_path / "other" / name).write_bytes(data.replace(b'"note": "untrained"', b'"note": "the other"'))
    return tmp_path / "other"


def point(pointer: str, bundle: str) -> str:
    """Promotes a bundle, and returns its id."""
    location = locate(pointer)
    bundle_id = read_bundle_id(locate(bundle))
    place = locate(bundle)
    move_champion(location, read_champion(location), bundle=place, bundle_id=bundle_id, why="promoted", record=None)
    return bundle_id


def test_triage_follows_the_pointer_and_a_night_that_has_begun_keeps_its_bundle(
    tmp_path: Path, model_uri: str, other: Path
) -> None:
    pointer = str(tmp_path / "champion.json")
    ids = [point(pointer, model_uri)]
    options = week.options_of(str(tmp_path), pointer)
    for number in (0, 1):
        deliver_rows(str(tmp_path), NIGHTS[number], week.fleet()[4 * number : 4 * number + 4])
    with week.brightness_scored():
        with pytest.raises(KilledError), killed_at(60):
            week.triage(options, until=NIGHTS[0])
        assert Path(options.out, "nights", str(NIGHTS[0]), "config.json").exists()
        ids.append(point(pointer, str(other)))
        week.triage(options)
    assert [row["bundle_id"] for row in comparable_history(options)] == ids
    scores = read_run(locate(f"{options.out}/nights/{NIGHTS[1]}"), expected="night")["scores"]
    assert read_run(locate(scores), expected="scores")["model"] == str(other)


def test_a_new_bundle_scores_what_comes_and_changes_nothing_that_is_published(
    tmp_path: Path, model_uri: str, other: Path
) -> None:
    options = week.options_of(str(tmp_path), model_uri)
    deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[:4])
    with week.brightness_scored():
        week.triage(options)
        before = selected(options, NIGHTS[0])
        deliver_rows(str(tmp_path), NIGHTS[1], week.fleet()[4:8])
        with pytest.raises(KilledError), killed_at(60):
            week.triage(options)  # has scored the second night
        week.triage(options.model_copy(update={"model": str(other)}))
    first, second = comparable_history(options)
    assert first["bundle_id"] != second["bundle_id"]
    assert selected(options, NIGHTS[0]) == before
    found = (tmp_path / "triage" / "nights" / str(NIGHTS[1])).glob("scores-*")
    assert len(list(found)) == 2  # what the first bundle had begun stays apart


def test_a_night_is_handed_on_before_it_is_published(
    tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def write_report(selection: str, *, out: str, history: str | None, progress: Any) -> None:
        assert history is not None
        calls.append(("report", selection, out, len(read_history(locate(history)))))

    def export_selection(options: ExportOptions, *, progress: Any) -> None:
        calls.append((options.kind, options.selection, options.out, options.pool))
        raise RunFailedError("the store failed")

    monkeypatch.setattr("distributed.triage.night.write_report", write_report)
    monkeypatch.setattr("distributed.triage.night.export_selection", export_selection)
    options = week.options_of(str(tmp_path), model_uri, report=True, exports=("coco",))
    deliver_rows(str(tmp_path), NIGHTS[0], week.fleet()[:4])
    place, chosen = f"{options.out}/nights/{NIGHTS[0]}", f"{options.out}/selections/{NIGHTS[0]}"
    with week.brightness_scored(), pytest.raises(RunFailedError, match="the store failed"):
        week.triage(options)
    assert not Path(place, "run.json").exists()
    assert calls == [
        ("report", chosen, f"{place}/report.html", 1),
        ("coco", chosen, f"{place}/export/coco", options.pool),
    ]
    monkeypatch.setattr("distributed.triage.night.export_selection", Mock(return_value={"num_missing": 0}))
    with week.brightness_scored() as scored:
        (record,) = week.triage(options)
    assert not scored
    assert (record["report"], record["exports"]) == (f"{place}/report.html", {"coco": f"{place}/export/coco"})


def test_old_scores_are_removed_and_nothing_else(tmp_path: Path, model_uri: str) -> None:
    options = week.options_of(str(tmp_path), model_uri, keep_days=1)
    for number, night in enumerate(NIGHTS[:4]):
        deliver_rows(str(tmp_path), night, week.fleet()[4 * number : 4 * number + 4])
    with week.brightness_scored():
        records = week.triage(options)
    assert [Path(record["scores"]).exists() for record in records] == [False, False, True, True]
    assert [len(selected(options, night)) for night in NIGHTS[:4]] == [4] * 4
    shutil.rmtree(f"{options.pool}/date={NIGHTS[2]}")
    deliver_rows(str(tmp_path), NIGHTS[4], week.fleet()[16:20])
    with week.brightness_scored():
        records += week.triage(options)
    assert [Path(record["scores"]).exists() for record in records] == [False] * 3 + [True] * 2
    assert len(comparable_history(options)) == 5
