"""The whole loop through the commands, on a small fleet: what `make demo` does, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.cli import main


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_demo_runs_shows_its_table_and_runs_again_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    arguments = ["demo", "--out", str(out), "--labelled", "96", "--pool", "240", "--budget", "15", "--epochs", "1"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for words in (
        "images scored",
        "whole pool",
        "Spearman",
        "hard slices",
        "share of the selection",
        "report.html",
    ):
        assert words in text
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    selection = pq.read_table(out / "selection" / "selection.parquet")
    assert selection["rank"].to_pylist() == list(range(1, 16))
    pool, truth = (pq.read_table(sorted((out / name).glob("*.parquet"))) for name in ("pool", "truth"))
    assert pool["sample_id"].equals(truth["sample_id"])
    assert not {"keypoints", "visibility", "slices"} & set(pool.column_names)
    labelled_drives = set(pq.read_table(sorted((out / "labelled").glob("*.parquet")))["group"].to_pylist())
    assert not labelled_drives & set(pool["group"].to_pylist())

    scored = json.loads((out / "scores" / "run.json").read_text())
    assert main(arguments) == 0
    assert json.loads((out / "scores" / "run.json").read_text()) == scored
