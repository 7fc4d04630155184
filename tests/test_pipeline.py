"""Scoring through Ray Data: every row out exactly once, and the same scores and selection as without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import WriteTable, read_scores

from distributed.ingest.fleet import row_of
from distributed.runs.progress import silent
from distributed.scoring.options import ScoringOptions
from distributed.scoring.pipeline import join_cluster
from distributed.scoring.score import score_pool
from distributed.selection.select import SelectionOptions, read_selection, select_samples
from distributed.storage.location import locate
from jobs.options import parse_options
from jobs.score import ScoreOptions
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


def score(pool: str, model: str, out: Path, *, batch_size: int = 16, **options: Any) -> dict[str, Any]:
    work = ScoringOptions(**{"actors": "1", "batch_size": batch_size, **options})
    return score_pool(pool, model=model, out=str(out), options=work, config={}, progress=silent)


def by_id(out: Path) -> pa.Table:
    return pa.concat_tables(read_scores(locate(str(out)))).sort_by("sample_id")


def test_ray_and_debug_mode_give_the_same_scores_and_the_same_selection(
    pool: str, model_uri: str, tmp_path: Path
) -> None:
    with_ray = score(pool, model_uri, tmp_path / "ray", actors="2:2", cpus_per_actor=1, batch_size=16)
    without = score(pool, model_uri, tmp_path / "debug", debug=True, batch_size=16)
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


def test_ray_goes_on_with_what_this_process_has_left(
    pool: str, model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.scoring.pipeline._TRIAL_S", 0.0)
    monkeypatch.setattr("distributed.scoring.pipeline._WORTH_RAY_CORE_S", 0.0)
    moved = score(pool, model_uri, tmp_path / "moved", actors=None, batch_size=16)
    assert 0 < moved["num_rows_here"] < moved["num_new_rows"] == 200
    here = score(pool, model_uri, tmp_path / "here", debug=True, batch_size=16)
    assert moved["errors"] == here["errors"]
    a, b = by_id(tmp_path / "moved"), by_id(tmp_path / "here")
    assert a["sample_id"].to_pylist() == b["sample_id"].to_pylist()
    assert np.allclose(
        a["predicted_loss"].to_numpy(), b["predicted_loss"].to_numpy(), rtol=0, atol=1e-5, equal_nan=True
    )


def test_every_row_comes_out_once_for_any_number_of_actors_and_batch_size(
    pool: str, model_uri: str, tmp_path: Path
) -> None:
    one = score(pool, model_uri, tmp_path / "one", cpus_per_actor=1, batch_size=64)
    three = score(pool, model_uri, tmp_path / "three", actors="1:3", cpus_per_actor=1, batch_size=7)
    assert one["num_rows"] == three["num_rows"] == 200
    assert by_id(tmp_path / "one")["sample_id"].to_pylist() == by_id(tmp_path / "three")["sample_id"].to_pylist()
    assert len(set(by_id(tmp_path / "three")["sample_id"].to_pylist())) == 200


@pytest.mark.parametrize(("num_rows", "num_actors"), [(1, 1), (2001, 3), (10**9, 7)])
def test_without_a_number_there_are_as_many_actors_as_there_is_room_and_work_for(
    num_rows: int, num_actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def room_for(*, cpus: float, gpus: float) -> int:
        asked.append((cpus, gpus))
        return 7

    monkeypatch.setattr("distributed.cluster.resources.room_for", room_for)
    monkeypatch.setattr("distributed.cluster.resources.check_resources", lambda **_: None)
    options = join_cluster(ScoringOptions(cpus_per_actor=2), num_rows=num_rows)
    assert (options.min_actors, options.max_actors) == (num_actors, num_actors)
    assert asked == [(2, 0)]


def test_a_number_of_actors_that_was_asked_for_is_kept() -> None:
    options = ScoringOptions(actors="1:50", cpus_per_actor=1)
    assert join_cluster(options, num_rows=10**9) == options


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ([], (0, 0, 1, 1)),  # one actor a core
        (["--gpus-per-actor", "1"], (0, 0, 2, 2)),
        (["--debug"], (0, 0, 2, 2)),
        (["--actors", "1:8", "--cpus-per-actor", "4"], (1, 8, 4, 4)),
        (["--cpus-per-actor", "0.5", "--decode-threads", "3"], (0, 0, 0.5, 3)),
        (["--cpus-per-actor", "0.5"], (0, 0, 0.5, 1)),
    ],
)
def test_what_the_command_leaves_open_follows_from_the_rest(flags: list[str], found: tuple[float, ...]) -> None:
    config = parse_options(ScoreOptions, ["--pool", "p", "--model", "m", "--out", "o", *flags], prog="lossight score")
    assert (config.min_actors, config.max_actors, config.cpus, config.threads) == found


def test_more_cpus_than_there_are_is_refused_and_nothing_waits(pool: str, model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cluster: expected 1001 CPUs .*, found"):
        score(pool, model_uri, tmp_path / "out", actors="500", cpus_per_actor=2)
    assert not (tmp_path / "out" / "run.json").exists()


def test_gpus_asked_for_and_absent_are_refused(pool: str, model_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected 1 GPUs, found 0"):
        score(pool, model_uri, tmp_path / "out", gpus_per_actor=1)
