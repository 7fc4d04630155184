"""`lossight evaluate` on a terminal: its tables, what it says of data that it does not trust, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_one_line

from distributed.ingest.fleet import row_of
from distributed.schema import labelled
from jobs.cli import main
from model.bundle import Bundle, dump_bundle
from model.calibration import Calibration
from model.synthetic import Sample

pytestmark = pytest.mark.slow

LINE = Calibration(
    predicted_loss=(-9.0, 9.0), true_loss=(0.0, 1.0), pck=(1.0, 0.0), failure_share=(0.0, 1.0), num_images=50
)
SCHEMA = pa.schema([*labelled(14), pa.field("light", pa.string()), pa.field("slices", pa.list_(pa.string()))])


@pytest.fixture
def table(tmp_path: Path, samples: list[Sample]) -> str:
    (tmp_path / "labelled").mkdir()
    rows = [{**row_of(sample), "light": ["day", "night"][i % 2]} for i, sample in enumerate(samples[:12])]
    rows[5]["image"] = b""
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "labelled" / "a.parquet")
    return str(tmp_path / "labelled")


def run(table: str, model: str, *arguments: str) -> int:
    return main(["evaluate", "--labelled", table, "--model", model, *arguments])


def test_everything_is_shown_and_written(
    table: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in dump_bundle(bundle.model, training={}, metrics={}, calibration=LINE).items():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    out = tmp_path / "out"
    assert run(table, str(tmp_path / "model"), "--out", str(out)) == 0
    text = capsys.readouterr().out
    assert "12 rows, unreadable: 1 empty" in text
    for words in ("what finds the failures?", "heatmap confidence", "true loss (oracle)", "left_wrist", "light: night"):
        assert words in text
    assert "expected calibration error: true loss" in text
    record = json.loads((out / "run.json").read_text())
    assert {(each["column"], each["value"]) for each in record["slices"]} >= {("light", "day"), ("light", "night")}
    assert (out / record["plot"]).exists()
    assert run(table, str(tmp_path / "model"), "--out", str(out)) == 0
    assert "already there" in capsys.readouterr().out


def test_what_is_not_to_be_trusted_is_said(table: str, model_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(table) / "z.parquet").touch()
    assert run(table, model_uri, "--slices", "light", "--slices", "group") == 0
    text = capsys.readouterr().out
    assert "file not read: z.parquet: empty file" in text
    assert "no reliability table: the bundle is not calibrated" in text
    assert "light: day" in text
    assert "group: v0" in text


def test_unreadable_rows_alone_leave_hyphens(
    table: str, model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(table).to_pylist()
    (tmp_path / "bad").mkdir()
    pq.write_table(
        pa.Table.from_pylist([{**row, "image": b"none"} for row in rows], SCHEMA), tmp_path / "bad" / "a.parquet"
    )
    assert run(str(tmp_path / "bad"), model_uri, "--out", str(tmp_path / "out")) == 0
    text = capsys.readouterr().out
    assert "12 rows, unreadable: 12 undecodable" in text
    assert "nan" not in text.lower().replace("unreadable", "")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["num_errors"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--slices", "wheather"),
            "--slices wheather: expected text, booleans, integers or lists of text, found no such",
        ),
        (("--slices", "box"), "--slices box: expected text, .* found a column of the tables' own in a.parquet"),
        (("--selection", "nowhere"), "nowhere: expected selection"),
        (("--batch-size", "0"), "--batch-size: input should be greater than or equal to 1, found '0'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    table: str,
    model_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:

    out = tmp_path / "out"
    assert run(table, model_uri, "--out", str(out), *arguments) == 2
    assert_one_line(capsys, message)
    assert not out.exists()


def test_other_slices_under_the_same_output_are_refused(
    table: str, model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(table, model_uri, "--out", str(tmp_path / "out")) == 0
    assert run(table, model_uri, "--out", str(tmp_path / "out"), "--slices", "light") == 2
    assert "differing: slices (was None, is ['light'])" in capsys.readouterr().err
