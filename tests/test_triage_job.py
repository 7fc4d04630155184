"""`lossight triage` as a user meets it: what it prints, its exit codes, and each bad input as one line."""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import week
import yaml
from conftest import assert_one_line, read_scores
from week import NIGHTS

from distributed.doctor import probe
from distributed.runs.lease import hold
from distributed.schema import POOL
from distributed.selection.select import read_selection
from distributed.storage.location import locate
from distributed.tables.parquet import Row, write_rows
from jobs.cli import main
from model.errors import InputError

pytestmark = pytest.mark.slow


@pytest.fixture
def config(tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A nightly.yaml for the pool below `tmp_path`, where the command is given."""
    monkeypatch.chdir(tmp_path)
    return {
        "pool": str(tmp_path / "pool"),
        "model": model_uri,
        "out": str(tmp_path / "triage"),
        "budget": 2,
        "report": False,
        "debug": True,
    }


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("jobs.triage._today", lambda: week.MORNING)
    with week.brightness_scored():
        yield


def deliver(config: dict[str, Any], night: datetime.date, rows: list[Row]) -> None:
    write_rows(locate(f"{config['pool']}/date={night}"), rows, POOL)


def triage(config: dict[str, Any], *arguments: object) -> int:
    """The exit code of the command with this configuration as a file."""
    Path("nightly.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return main(["triage", "--config", "nightly.yaml", *map(str, arguments)])


def test_two_nights_and_again(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for number, night in enumerate(NIGHTS[:2]):
        deliver(config, night, week.fleet()[4 * number : 4 * number + 4])
    assert triage(config) == 0
    text = capsys.readouterr().out
    for night in NIGHTS[:2]:
        assert f"{night}: wrote: {config['out']}/nights/{night}\n" in text
    assert text.count("4 rows of 1 files: 4 scored, unreadable: none;") == 2
    assert text.count("2 selected: 2 loss") == 2
    assert triage(config, "--date", NIGHTS[1]) == 0
    again = capsys.readouterr().out
    assert f"{NIGHTS[1]}: already there" in again
    assert str(NIGHTS[0]) not in again


def test_a_budget_larger_than_the_night(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    assert triage({**config, "budget": 50}) == 0
    text = capsys.readouterr().out
    assert "4 selected: 4 loss" in text
    assert "the budget is 50: caps, exclusions, conditions and the night leave no more than 4" in text


def test_a_date_without_data(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    deliver(config, NIGHTS[1], week.fleet()[:4])
    for date, missed in ((NIGHTS[0], False), (NIGHTS[3], True)):  # what was missed is done all the same
        assert triage(config, "--date", date) == 0
        text = capsys.readouterr().out
        assert f"{config['pool']}: no data for the night {date}: nothing to do" in text
        assert (f"{NIGHTS[1]}: wrote" in text) == missed
        assert triage(config, "--date", date, "--require-data") == 2
        assert_one_line(capsys, f"no data for the night {date}, and --require-data is set")


def test_data_is_required_of_yesterday_if_of_no_date(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(config, NIGHTS[-2], week.fleet()[:4])
    assert triage(config, "--require-data") == 2
    assert_one_line(capsys, f"no data for the night {NIGHTS[-1]}, and --require-data is set")
    deliver(config, NIGHTS[-1], week.fleet()[4:8])
    assert triage(config, "--require-data") == 0
    deliver(config, NIGHTS[-3], week.fleet()[8:12])  # an older one, now that the date is published
    for date in ((), ("--date", NIGHTS[-1])):
        assert triage(config, "--require-data", *date) == 0
    assert triage(config, "--date", NIGHTS[-3], "--require-data") == 0


def test_the_report_of_a_night_names_the_triage_and_no_command_that_would_write_into_it(
    config: dict[str, Any],
) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    assert triage({**config, "report": True}) == 0
    page = Path(config["out"], "nights", f"{NIGHTS[0]}", "report.html").read_text(encoding="utf-8")
    (command,) = re.findall(r"<pre>(lossight .*)</pre>", page)
    assert command.startswith("lossight triage ")
    assert f"--out {config['out']} " in command
    assert f"--date {NIGHTS[0]} " in f"{command} "


def test_what_cannot_be_handed_on_ends_with_exit_code_1_and_the_night_is_published(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_selection(options: Any, **_: Any) -> dict[str, Any]:
        if options.kind == "coco":
            raise InputError("somebody has changed the pool")
        return {"num_missing": 3}

    monkeypatch.setattr("distributed.triage.night.export_selection", export_selection)
    deliver(config, NIGHTS[0], week.fleet()[:4])
    place = Path(config["out"], "nights", f"{NIGHTS[0]}")
    (place / "report.html").mkdir(parents=True)
    assert triage({**config, "exports": ["coco", "csv"], "report": True}) == 5
    text = capsys.readouterr().out
    assert "  report not written: " in text
    assert "  coco not written: somebody has changed the pool\n" in text
    assert "  csv: left out 3 images\n" in text
    record = json.loads((place / "run.json").read_text(encoding="utf-8"))
    assert record["handoff_errors"].keys() == {"report", "coco"}
    assert record["exports"] == {"csv": f"{config['out']}/nights/{NIGHTS[0]}/export/csv"}
    assert record["exports_missing"] == {"csv": 3}


def test_a_late_file_that_is_left_ends_with_exit_code_1(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    assert triage(config) == 0
    for name in ("late", "twice"):
        write_rows(locate(f"{config['pool']}/date={NIGHTS[0]}/{name}"), week.fleet()[4:5], POOL)
    deliver(config, NIGHTS[1], week.fleet()[8:12])
    assert triage(config) == 5
    left = f"  late file left for the next night: date={NIGHTS[0]}/late/part-00000.parquet: "
    assert left in capsys.readouterr().out


def test_a_date_without_data_leaves_nothing_behind(config: dict[str, Any]) -> None:
    deliver(config, NIGHTS[1], week.fleet()[:4])
    assert triage(config, "--date", NIGHTS[0]) == 0
    assert not Path(config["out"]).exists()


def test_many_unreadable_rows_and_drift_if_asked_end_with_exit_code_5(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for night in NIGHTS[:3]:
        deliver(config, night, week.rows_of(night))
    rows = [{**row, "sample_id": f"dark {row['sample_id']}"} for row in week.rows_of(week.DARK)]
    deliver(config, NIGHTS[3], rows)
    config = {**config, "drift_min_rows": 10, "drift_columns": "group"}
    assert triage(config) == 0
    assert "2026-11-19: drift: all rows: PSI " in caplog.text
    assert "drift: 1 of 1 compared; all rows: PSI " in capsys.readouterr().out
    assert triage(config, "--fail-on-drift") == 5  # of the same night, which was done already
    broken = [{**row, "image": b"", "sample_id": f"x {row['sample_id']}"} for row in week.fleet()[:2]]
    deliver(config, NIGHTS[4], [*broken, *week.fleet()[2:4]])
    assert triage(config) == 5
    assert "degraded: 50.0% of the rows have no score, --max-error-rate is 5.0%" in capsys.readouterr().out


def test_two_at_once(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    with hold(locate(config["out"])):
        assert triage(config) == 4
        assert_one_line(capsys, rf"another run holds the lease: .*pid {os.getpid()}.*expires in \d+ s")
    assert triage(config) == 0


def test_columns_that_drift_and_the_condition_look_at_are_kept(config: dict[str, Any]) -> None:
    schema = POOL.append(week.camera_field())
    rows = [{**row, "camera": "front" if number % 2 else "rear"} for number, row in enumerate(week.fleet()[:6])]
    write_rows(locate(f"{config['pool']}/date={NIGHTS[0]}"), rows, schema)
    config = {**config, "where": "camera == 'rear'", "drift_columns": ["camera", "group"], "budget": 9}
    assert triage(config) == 0
    selected = read_selection(locate(f"{config['out']}/selections/{NIGHTS[0]}"))
    assert set(selected["sample_id"].to_pylist()) == {row["sample_id"] for row in rows[::2]}
    record = json.loads(Path(config["out"], "nights", f"{NIGHTS[0]}", "run.json").read_text(encoding="utf-8"))
    assert {(found["column"], found["value"]) for found in record["drift"]} >= {("camera", "front"), ("camera", "rear")}
    assert {found["column"] for found in record["drift"]} == {None, "camera", "group"}


def test_a_strategy_that_needs_embeddings_has_them(config: dict[str, Any]) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    assert triage({**config, "strategy": "hybrid"}) == 0
    (scores,) = Path(config["out"], "nights", f"{NIGHTS[0]}").glob("scores-*")
    assert all("embedding" in rows.column_names for rows in read_scores(locate(str(scores))))


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgte": 5}, r"unknown option 'budgte', did you mean 'budget'\?"),
        ({"budget": None}, r"--budget: expected a value, found none|--budget: .*found None"),
        ({"max_per_grp": 5}, r"unknown option 'max-per-grp', did you mean 'max-per-group'\?"),
        ({"zzz": 5}, r"unknown option 'zzz'$"),
        ({"date": "yesterday"}, r"--date: .*found 'yesterday'"),
        ({"exports": "cocoa"}, r"--exports: .*found 'cocoa'"),
        ({"keep_days": 0}, r"--keep-days: .*found 0"),
        ({"model": "nowhere"}, r"nowhere: expected a model bundle, found nothing"),
        ({"pool": "nowhere"}, r"nowhere: expected a file or a folder, found nothing"),
        ({"exclude": "nowhere"}, r"nowhere: expected a table whose ids to exclude, found nothing"),
        ({"out": "{pool}/triage"}, r"expected a place outside the pool"),
        ({"min_loss": 2, "max_loss": 1}, r"--min-loss: expected at most --max-loss"),
        ({"where": "camera =="}, r"--where camera ==: expected columns compared with values"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    config: dict[str, Any], changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    changes = {key: value.format(**config) if isinstance(value, str) else value for key, value in changes.items()}
    assert triage({**config, **changes}) == 2
    assert_one_line(capsys, message)
    assert not Path(config["out"]).exists()
    assert not Path(config["pool"], "triage").exists()


def test_what_is_missing_may_be_what_was_misspelt(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    del config["budget"]
    assert triage(config) == 2
    assert_one_line(capsys, "--budget: expected a value, found none")
    assert triage({**config, "budgets": 3}) == 2
    assert_one_line(capsys, r"unknown option 'budgets', did you mean 'budget'\?")
    assert triage(config, "--budgets", 3) == 2
    assert_one_line(capsys, r"unrecognized arguments: --budgets 3, did you mean 'budget'\?; see lossight triage --help")


def test_a_condition_on_a_column_that_the_pool_has_not_names_it(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    assert triage({**config, "where": "camera == 'rear'"}) == 2
    assert_one_line(capsys, "column 'camera': expected metadata, found no such column")
    assert triage(config) == 0  # the night is not lost


def test_an_output_of_another_pool_is_refused(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    assert triage(config) == 0
    other = {**config, "pool": f"{config['pool']}-2"}
    deliver(other, NIGHTS[0], week.fleet()[:4])
    capsys.readouterr()
    assert triage(other) == 2
    assert_one_line(capsys, r"differing: pool \(was 'local:.*/pool', is 'local:.*/pool-2'\)")


def test_an_output_that_is_something_else_is_refused(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(config, NIGHTS[0], week.fleet()[:4])
    Path(config["out"]).mkdir()
    Path(config["out"], "mine.txt").write_text("x", encoding="utf-8")
    assert triage(config) == 2
    assert_one_line(capsys, "expected an empty folder or an earlier run of the same, found something else")
    assert os.listdir(config["out"]) == ["mine.txt"]


# Stores


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}, r"the store refuses these credentials \(.*\): check the keys"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, r"the store refuses these credentials"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials: expected AWS_ACCESS_KEY_ID"),
    ],
)
def test_credentials_that_are_missing_or_wrong_are_one_line_without_a_secret(
    config: dict[str, Any],
    s3_uri: str,
    variables: dict[str, str | None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setattr("distributed.storage.s3._clients", {})
    assert triage({**config, "pool": f"{s3_uri}/pool"}) == 3
    error = assert_one_line(capsys, message)
    assert "hunter2" not in error
    assert "testsecret" not in error


def test_a_store_that_is_not_there_is_told_at_once(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probed:
        probed.bind(("127.0.0.1", 0))
        port = probed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    assert triage({**config, "out": "s3://bucket/triage"}) == 3
    assert_one_line(capsys, rf"s3://bucket/triage: storage failed: expected a store at 127\.0\.0\.1:{port}, found .*")


def test_a_store_that_never_answers_is_no_hang(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "_CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        assert triage({**config, "model": "s3://bucket/model"}) == 3
    assert_one_line(
        capsys, rf"s3://bucket/model: storage failed: expected a store at 127\.0\.0\.1:{port}, found timed out"
    )
