"""One row of a moment: no strategy and no arm selects two rows of a group within the gap of each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import publish_scores, scores_table

from distributed.selection.options import SelectionOptions
from distributed.selection.select import read_selection, select_samples
from distributed.storage.location import locate
from jobs.select import main

START = datetime(2026, 11, 28, tzinfo=UTC)
NUM_DRIVES, FRAMES = 20, 20
GAP = 1.0

Row = dict[str, Any]


def made_up() -> pa.Table:
    """20 drives of 20 frames, 0.3 s apart; some rows lack a group or a time. Frames that follow are alike."""
    rng = np.random.default_rng(0)
    drive, frame = np.divmod(np.arange(NUM_DRIVES * FRAMES), FRAMES)
    losses = rng.random(NUM_DRIVES)[drive] + np.sin(frame / 3) / 4 + rng.random(len(drive)) / 10
    embeddings = np.stack([drive, np.sin(frame / 3), rng.random(len(drive)) / 50], axis=1).astype(np.float16)
    times = [START + timedelta(hours=int(d), seconds=0.3 * int(f)) for d, f in zip(drive, frame, strict=True)]
    rows = scores_table(
        losses.tolist(),
        group=[None if f == 7 else f"drive{d}" for d, f in zip(drive, frame, strict=True)],
        captured_at=[None if f % 10 == 3 else time for f, time in zip(frame, times, strict=True)],
    )
    return rows.append_column("embedding", pa.array(list(embeddings), pa.list_(pa.float16(), 3)))


ROWS = made_up()


def select(scores: str, name: str, **options: Any) -> tuple[list[Row], Row]:
    out = locate(str(Path(scores).parent / name))
    record = select_samples(scores, out=out.uri, options=SelectionOptions(**options), config={})
    return read_selection(out).to_pylist(), record


def ids(rows: list[Row]) -> list[str]:
    return [row["sample_id"] for row in rows]


def are_near(one: Row, other: Row, gap: float = GAP) -> bool:
    if one["group"] is None or one["group"] != other["group"] or not one["captured_at"] or not other["captured_at"]:
        return False
    return abs(one["captured_at"] - other["captured_at"]) <= timedelta(seconds=gap)


def walk_down(k: int, known: list[Row], *, cap: int = 1000) -> tuple[list[str], int]:
    """The ids that are taken, none near to one before or to a known one; and how many lacked the gap to one before."""
    taken: list[Row] = []
    num_passed_over = 0
    for row in sorted(ROWS.to_pylist(), key=lambda row: (-row["predicted_loss"], row["sample_id"])):
        is_left_out = any(row["sample_id"] == each["sample_id"] or are_near(row, each) for each in known)
        is_full = row["group"] is not None and sum(each["group"] == row["group"] for each in taken) == cap
        if is_left_out or is_full or len(taken) == k:
            continue
        if any(are_near(row, each) for each in taken):
            num_passed_over += 1
        else:
            taken.append(row)
    return ids(taken), num_passed_over


@pytest.fixture
def scores(tmp_path: Path) -> str:
    order = np.arange(len(ROWS)).reshape(-1, 4).T.ravel()  # rows that follow are in four parts
    return publish_scores(tmp_path / "scores", ROWS.take(pa.array(order)), num_parts=4)


@pytest.mark.parametrize("cap", [None, 3])
def test_loss_order_is_walked_down_past_what_is_near(scores: str, cap: int | None) -> None:
    rows, record = select(scores, "s", budget=60, max_per_group=cap, min_gap=GAP)
    assert (ids(rows), record["num_passed_over"]) == walk_down(60, [], cap=cap or 1000)
    assert record["num_passed_over"] > 20


@pytest.mark.parametrize(
    "options",
    [
        {"control_share": 0.5},
        {"strategy": "random"},
        {"strategy": "hybrid", "control_share": 0.2},
        {"strategy": "coreset", "control_share": 0.2},
        {"min_distance": 0.01},
    ],
    ids=str,
)
def test_no_two_rows_of_a_selection_show_one_moment(scores: str, options: Row) -> None:
    rows, _ = select(scores, "s", budget=80, min_gap=GAP, **options)
    assert len(rows) == 80
    assert not [pair for pair in combinations(rows, 2) if are_near(*pair)]
    off, record = select(scores, "off", budget=80, min_gap=0, **options)
    assert [pair for pair in combinations(off, 2) if are_near(*pair)]
    assert not record["num_passed_over"]


def test_what_is_near_to_an_excluded_row_is_left_out_where_its_table_knows_the_moment(
    scores: str, tmp_path: Path
) -> None:
    """A labelled table does, and an earlier selection; a list of ids does not."""
    first, _ = select(scores, "first", budget=30, min_gap=GAP)
    second, _ = select(scores, "second", budget=30, min_gap=GAP, exclude=(str(tmp_path / "first"),))
    assert (ids(second)) == walk_down(30, first)[0]
    assert not [1 for one in first for other in second if are_near(one, other)]
    pq.write_table(pa.table({"sample_id": ids(first)}), tmp_path / "ids.parquet")
    of_ids, _ = select(scores, "of-ids", budget=30, min_gap=GAP, exclude=(str(tmp_path / "ids.parquet"),))
    assert [1 for one in first for other in of_ids if are_near(one, other)]


@pytest.mark.parametrize("options", [{"strategy": "coreset"}, {"strategy": "hybrid"}, {"min_distance": 0.01}], ids=str)
def test_what_looks_at_embeddings_keeps_the_gap_to_excluded_rows_too(scores: str, tmp_path: Path, options: Row) -> None:
    first, _ = select(scores, "first", budget=20, min_gap=GAP)
    second, _ = select(scores, "second", budget=20, min_gap=GAP, exclude=(str(tmp_path / "first"),), **options)
    assert len(second) == 20
    assert not [
        1 for one in first for other in second if one["sample_id"] == other["sample_id"] or are_near(one, other)
    ]


def test_scores_of_an_earlier_version_are_selected_from_and_it_says_what_they_lack(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = publish_scores(tmp_path / "older", ROWS.drop_columns(["captured_at"]))
    rows, record = select(older, "s", budget=30)
    assert [row["captured_at"] for row in rows] == [None] * 30
    assert record["num_passed_over"] == 0
    assert "older/parts" in caplog.text
    assert "have no captured_at: --min-gap passes over none of their rows" in caplog.text


def test_the_command_says_how_many_were_passed_over(scores: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(Path(scores).parent / "out")
    assert main(["--scores", scores, "--out", out, "--budget", "60", "--min-gap", "1"]) == 0
    line = f"passed over: {walk_down(60, [])[1]} images within 1 s of a better one of their group (--min-gap)"
    assert line in capsys.readouterr().out
    for bad in ("-1", "nan", "inf", "soon"):
        assert main(["--scores", scores, "--out", out, "--budget", "60", "--min-gap", bad]) == 2
        assert "--min-gap" in capsys.readouterr().err
