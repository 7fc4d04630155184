"""The lines of docs/python.md, one after another, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteTable

from distributed.ingest.fleet import row_of
from model.synthetic import Sample

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_lines_of_the_page_run(
    write_table: WriteTable, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row_of(sample) for sample in samples]
    write_table("work/labelled", rows[:24], is_labelled=True)
    write_table("work/pool", rows[24:], row_group_bytes=10**7)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        assert 3 <= len(block.strip().splitlines()) <= 12
        exec(block, names)  # noqa: S102
    assert names["selected"].num_rows == 2  # of the one drive that is in the pool
    assert names["metrics"]["num_rows"] == 24
    assert (tmp_path / "work" / "model" / "bundle.json").exists()
