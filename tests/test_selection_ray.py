"""Selection by tasks on a cluster: the same bytes as in one process, also where a task's process is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import scores_table, with_file_ids

from distributed import cluster
from distributed.runs.record import begin_run, publish_run
from distributed.selection.select import SELECTION_FILE, SelectionOptions, select_samples
from distributed.storage.location import locate
from distributed.tables.scores import write_part
from model.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NUM_PARTS, PART_ROWS = 5, 400
SHARE = Fraction(1, 10)


@pytest.fixture
def scores(tmp_path: Path) -> str:
    """2,000 rows in five parts, of 50 groups and with ties."""
    out = locate(str(tmp_path / "scores"))
    begin_run(out, {})
    rng = np.random.default_rng(0)
    paths = []
    for part in range(NUM_PARTS):
        rows = scores_table(
            rng.integers(0, 100, PART_ROWS).tolist(),
            sample_id=[f"{part}-{i:04d}" for i in range(PART_ROWS)],
            group=[f"g{i}" for i in rng.integers(0, 50, PART_ROWS)],
            pool_file=[f"{part}.parquet"] * PART_ROWS,
        )
        paths.append(write_part(out, with_file_ids(rows)).path)
    count = NUM_PARTS * PART_ROWS
    record = {"kind": "scores", "bundle_id": "b", "pool_fingerprint": "p", "parts": paths}
    publish_run(out, {**record, "num_rows": count, "num_scored": count})
    return out.uri


def select(scores: str, name: str, *, workers: int, **options: Any) -> tuple[bytes, dict[str, Any]]:
    out = Path(scores).parent / name
    record = select_samples(
        scores, out=str(out), options=SelectionOptions(**{"budget": 150, **options}), config={}, workers=workers
    )
    return (out / SELECTION_FILE).read_bytes(), record


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_per_group": 2, "control_share": 0.2},
        {"strategy": "random"},
        {"where": "pool_row > 100", "min_loss": 50.0, "budget": 1000, "control_share": 0.1},
    ],
    ids=str,
)
def test_any_number_of_workers_selects_the_same_bytes(scores: str, options: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(pq.read_table(scores + "/parts", columns=["sample_id"]).slice(0, 300), tmp_path / "known.parquet")
    options = {**options, "exclude": (str(tmp_path / "known.parquet"),)}
    found = [select(scores, f"s{workers}", workers=workers, **options)[0] for workers in (0, 1, 3, 9)]
    assert len(set(found)) == 1


def test_a_worker_that_is_killed_changes_nothing(scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "killed"
    run_tasks = cluster.run_tasks

    def run_and_kill(function: Callable[[Any], Any], items: Sequence[Any], **options: Any) -> list[Any]:
        def call(item: Any) -> Any:
            found = function(item)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)  # with its work done and not yet delivered
            return found

        return run_tasks(call, items, **options)

    undisturbed, _ = select(scores, "undisturbed", workers=0, max_per_group=3)
    monkeypatch.setattr(cluster, "run_tasks", run_and_kill)
    found, _ = select(scores, "killed-once", workers=3, max_per_group=3)
    assert mark.exists()
    assert found == undisturbed


def test_tasks_count_what_a_share_is_of(scores: str) -> None:
    options = {"budget": SHARE, "where": "pool_row < 40", "min_loss": 10.0}
    here, there = (select(scores, f"s{workers}", workers=workers, **options) for workers in (0, 3))
    assert here[0] == there[0]
    assert here[1]["num_eligible"] == there[1]["num_eligible"] > here[1]["num_selected"] > 0


def test_an_error_of_a_task_is_one_line_of_ours(scores: str) -> None:
    path = sorted(Path(scores, "parts").iterdir())[2]
    data = bytearray(path.read_bytes())
    data[pq.read_metadata(path).row_group(0).column(2).data_page_offset + 60] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"{path.name}: damaged") as raised:
        select(scores, "s", workers=2)
    assert "\n" not in str(raised.value)
