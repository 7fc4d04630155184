"""Selection by tasks on a cluster: the same bytes as in one process, also where a task's process is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import publish_scores, scores_table

from distributed.cluster import resources, work
from distributed.selection import strategies
from distributed.selection.select import SELECTION_FILE, SelectionOptions, select_samples
from jobs.select import main
from model.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

NUM_PARTS, PART_ROWS = 5, 400
SHARE = "10%"


@pytest.fixture
def scores(tmp_path: Path) -> str:
    """2,000 rows in five parts, of 50 groups and with ties."""
    return publish(tmp_path / "scores", seed=0)


def publish(folder: Path, *, seed: int) -> str:
    rng, tables = np.random.default_rng(seed), []
    for part in range(NUM_PARTS):
        rows = scores_table(
            rng.integers(0, 100, PART_ROWS).tolist(),
            sample_id=[f"{part}-{i:04d}" for i in range(PART_ROWS)],
            group=[f"g{i}" for i in rng.integers(0, 50, PART_ROWS)],
            pool_file=[f"{part}.parquet"] * PART_ROWS,
        )
        vectors = pa.array(rng.integers(-9, 9, (PART_ROWS, 3)).tolist(), pa.list_(pa.float16(), 3))  # with ties
        tables.append(rows.append_column("embedding", vectors))
    return publish_scores(folder, pa.concat_tables(tables), num_parts=NUM_PARTS)


def select(scores: str | list[str], name: str, *, workers: int, **options: Any) -> tuple[bytes, dict[str, Any]]:
    out = Path(scores if isinstance(scores, str) else scores[0]).parent / name
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
        {"strategy": "hybrid", "max_per_group": 4},
    ],
    ids=str,
)
def test_any_number_of_workers_selects_the_same_bytes(scores: str, options: dict[str, Any], tmp_path: Path) -> None:
    pq.write_table(pq.read_table(scores + "/parts", columns=["sample_id"]).slice(0, 300), tmp_path / "known.parquet")
    options = {**options, "exclude": (str(tmp_path / "known.parquet"),)}
    found = [select(scores, f"s{workers}", workers=workers, **options)[0] for workers in (0, 1, 3, 9)]
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"control_share": 0.2},
        {"max_per_group": 2, "min_distance": 3.0},
        {"where": "pool_row > 100", "min_loss": 50.0, "budget": 2000},
    ],
    ids=str,
)
def test_coreset_in_actors_selects_the_same_bytes(scores: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Of two tables that share samples, some of them labelled already."""
    more = publish(tmp_path / "more", seed=1)  # the same ids with other losses and embeddings
    pq.write_table(pq.read_table(scores + "/parts", columns=["sample_id"]).slice(0, 300), tmp_path / "known.parquet")
    options = {**options, "strategy": "coreset", "exclude": (str(tmp_path / "known.parquet"),)}
    found = [select([scores, more], f"s{workers}", workers=workers, **options) for workers in (0, 1, 3)]
    assert len({selection for selection, _ in found}) == 1
    assert 0 < found[0][1]["num_selected"] <= NUM_PARTS * PART_ROWS - 300


def test_the_rows_of_coreset_stay_in_its_actors(scores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded here is nothing: the driver would be too small for the embeddings of a fleet."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("loaded by the driver")

    monkeypatch.setattr(strategies, "load_shard", refuse)
    _, record = select(scores, "s", workers=2, strategy="coreset")
    assert record["num_selected"] == 150


@pytest.mark.parametrize(("flags", "num_workers"), [([], 0), (["--workers", "2"], 2), (["--address", "A"], None)])
def test_the_command_spreads_coreset_as_it_is_told(
    scores: str, flags: list[str], num_workers: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    spread = strategies.shards_in_actors

    def watched(loaders: Sequence[Any]) -> Any:
        used.append(len(loaders))
        return spread(loaders)

    monkeypatch.setattr(strategies, "shards_in_actors", watched)
    out = str(tmp_path / "out")
    assert main(["--scores", scores, "--out", out, "--budget", "20", "--strategy", "coreset", *flags]) == 0
    expected = resources.room_for(cpus=1, gpus=0) if num_workers is None else num_workers
    assert used == ([expected] if expected else [])
    monkeypatch.undo()
    alone, _ = select(scores, "alone", workers=0, budget=20, strategy="coreset")
    assert (tmp_path / "out" / SELECTION_FILE).read_bytes() == alone


def test_a_worker_that_is_killed_changes_nothing(scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "killed"
    run_tasks = work.run_tasks

    def run_and_kill(function: Callable[[Any], Any], items: Sequence[Any], **options: Any) -> list[Any]:
        def call(item: Any) -> Any:
            found = function(item)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)  # with its work done and not yet delivered
            return found

        return run_tasks(call, items, **options)

    undisturbed, _ = select(scores, "undisturbed", workers=0, max_per_group=3)
    monkeypatch.setattr(work, "run_tasks", run_and_kill)
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
