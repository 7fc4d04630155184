"""Scoring through Ray Data: every row out exactly once, and the same scores and selection as without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import WriteTable

from distributed.fleet import row_of
from distributed.progress import silent
from distributed.scores import read_scores
from distributed.scoring import ScoringOptions, score_pool
from distributed.selection import SelectionOptions, read_selection, select_samples
from distributed.storage import locate
from model.errors import InputError
from model.synthetic import Sample, generate_fleet

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def pool(samples: list[Sample], write_table: WriteTable) -> str:
    """200 rows in small row groups; some are unreadable in each way."""
    rows = [row_of(sample) for sample in (*samples, *generate_fleet(seed=8, num_samples=152, unreadable_share=0.05))]
    rows[3]["image"] = b""
    rows[50]["image"] = bytes(rows[50]["image"])[:2000]  # type: ignore[call-overload]
    rows[51]["image"] = None
    rows[52]["box"] = (float("nan"), 0.0, 10.0, 10.0)
    rows[53]["box"] = None
    return write_table("pool", rows, row_group_bytes=200_000)


def score(pool: str, model: str, out: Path, **options: Any) -> dict[str, Any]:
    return score_pool(pool, model=model, out=str(out), options=ScoringOptions(**options), config={}, progress=silent)


def by_id(out: Path) -> pa.Table:
    return pa.concat_tables(read_scores(locate(str(out)))).sort_by("sample_id")


def test_ray_and_debug_mode_give_the_same_scores_and_the_same_selection(
    pool: str, model_uri: str, tmp_path: Path
) -> None:
    with_ray = score(pool, model_uri, tmp_path / "ray", actors=2, cpus_per_actor=1, batch_size=16)
    without = score(pool, model_uri, tmp_path / "debug", in_process=True, batch_size=16)
    assert with_ray["num_rows"] == without["num_rows"] == 200
    assert with_ray["errors"] == without["errors"]
    assert with_ray["num_scored"] < 200
    a, b = by_id(tmp_path / "ray"), by_id(tmp_path / "debug")
    for column in ("sample_id", "group", "error", "pool_file", "pool_row"):
        assert a[column].to_pylist() == b[column].to_pylist()
    for column in ("predicted_loss", "confidence"):
        assert np.allclose(a[column].to_numpy(), b[column].to_numpy(), rtol=0, atol=1e-5, equal_nan=True)
    selected = []
    for name in ("ray", "debug"):
        out = str(tmp_path / f"selection-{name}")
        select_samples(str(tmp_path / name), out=out, options=SelectionOptions(budget=40), config={})
        selected.append(read_selection(locate(out))["sample_id"].to_pylist())
    assert selected[0] == selected[1]


def test_every_row_comes_out_once_for_any_number_of_actors_and_batch_size(
    pool: str, model_uri: str, tmp_path: Path
) -> None:
    one = score(pool, model_uri, tmp_path / "one", actors=1, cpus_per_actor=1, batch_size=64)
    three = score(pool, model_uri, tmp_path / "three", actors=3, cpus_per_actor=1, batch_size=7)
    assert one["num_rows"] == three["num_rows"] == 200
    assert by_id(tmp_path / "one")["sample_id"].to_pylist() == by_id(tmp_path / "three")["sample_id"].to_pylist()
    assert len(set(by_id(tmp_path / "three")["sample_id"].to_pylist())) == 200


def test_progress_reaches_the_total(pool: str, model_uri: str, tmp_path: Path) -> None:
    told: list[tuple[int, int, int]] = []

    def progress(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        told.append((done, total, num_errors))

    record = score_pool(
        pool,
        model=model_uri,
        out=str(tmp_path / "out"),
        options=ScoringOptions(cpus_per_actor=1),
        config={},
        progress=progress,
    )
    assert told[-1] == (200, 200, sum(record["errors"].values()))


def test_more_cpus_than_there_are_is_refused_and_nothing_waits(pool: str, model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cluster: expected 1001 CPUs .*, found"):
        score(pool, model_uri, tmp_path / "out", actors=500)
    assert not (tmp_path / "out" / "run.json").exists()


def test_gpus_asked_for_and_absent_are_refused(pool: str, model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected 1 GPUs .*, found 0"):
        score(pool, model_uri, tmp_path / "out", gpus_per_actor=1)


def test_a_file_that_changes_after_the_freeze_ends_the_run_with_one_line(
    pool: str, model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import scoring
    from model.errors import RunFailedError

    freeze = scoring.freeze_pool

    def freeze_then_change(location: Any) -> Any:
        manifest = freeze(location)
        file = next(Path(pool).glob("*.parquet"))
        file.write_bytes(file.read_bytes() + b"more")
        return manifest

    monkeypatch.setattr(scoring, "freeze_pool", freeze_then_change)
    with pytest.raises(RunFailedError, match=r"part-00000\.parquet: expected the file of .* that the run froze"):
        score(pool, model_uri, tmp_path / "out", cpus_per_actor=1)
    assert not (tmp_path / "out" / "run.json").exists()


def test_what_a_stopped_run_left_is_neither_read_nor_touched(pool: str, model_uri: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    left = out / "attempt-0dead" / "part-000000.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a file")
    score(pool, model_uri, tmp_path / "x", in_process=True)
    (out / "config.json").write_bytes((tmp_path / "x" / "config.json").read_bytes())
    score(pool, model_uri, out, cpus_per_actor=1)
    assert left.read_bytes() == b"half a file"  # it may be another run's, still at work
    assert len(by_id(out)) == 200


def test_starting_ray_leaves_our_answer_to_sigterm_in_place() -> None:
    code = (
        "import signal; from jobs.run import _leave as ours; signal.signal(signal.SIGTERM, ours); "
        "from distributed.cluster import connect; connect(); assert signal.getsignal(signal.SIGTERM) is ours"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent, capture_output=True)
