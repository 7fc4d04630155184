"""Plan of a scoring: measured on a sample, concluded for the pool, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import WriteTable, plain_rows

from distributed.ingest.fleet import row_of
from distributed.scoring import planning
from distributed.scoring.options import ScoringOptions
from distributed.scoring.planning import Rates, plan_scoring
from distributed.storage.location import locate
from distributed.tables.manifest import freeze_pool
from jobs import score
from model.errors import InputError
from model.roofline import Bound
from model.synthetic import Sample

HERE = ScoringOptions(debug=True, batch_size=8)


@pytest.fixture
def pool(samples: list[Sample], write_table: WriteTable) -> str:
    return write_table("pool", [row_of(sample) for sample in samples])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_MODEL_S", 0.05)


def conclude(pool: str, rates: Rates, *, cores: float = 64, **options: object) -> planning.Plan:
    manifest = freeze_pool(locate(pool))
    return planning._conclude(
        manifest, rates, ScoringOptions(**{"actors": "1", "batch_size": 8, "decode_threads": 2, **options}), cores=cores
    )  # type: ignore[arg-type]


def rates(**values: float) -> Rates:
    found = {"read": 1000.0, "decode_thread": 100.0, "model": 150.0, "scorer": 140.0, **values}
    return Rates(**found, bound=Bound(images_per_s=200.0, limit="bytes"))


def test_a_plan_measures_every_stage_and_writes_nothing(pool: str, model_uri: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    plan = plan_scoring(pool, model=model_uri, options=HERE)
    assert list(plan.stages) == ["read", "decode", "model", "decode and model"]
    assert all(rate > 0 for rate in plan.stages.values())
    assert plan.seconds == pytest.approx(48 / plan.images_per_second)
    assert plan.share_of_bound > 0
    assert plan.bottleneck in plan.stages
    assert sorted(tmp_path.rglob("*")) == before


def test_one_process_does_one_thing_after_the_other(pool: str) -> None:
    plan = conclude(pool, rates(read=100.0, scorer=100.0), cores=0)
    assert plan.images_per_second == pytest.approx(50.0)


def test_actors_and_readers_add_up_and_the_slower_side_decides(pool: str) -> None:
    plan = conclude(pool, rates(), actors="1:4", cpus_per_actor=2, cores=11)
    assert plan.stages == {"read": 3000.0, "decode": 800.0, "model": 600.0, "decode and model": 560.0}
    assert plan.images_per_second == 560.0
    assert plan.bottleneck == "model"
    assert plan.share_of_bound == pytest.approx(0.7)


def test_actors_beyond_the_cores_add_nothing_and_reading_shares_what_they_leave(pool: str) -> None:
    plan = conclude(pool, rates(read=1000.0, scorer=100.0), actors="4:4", cpus_per_actor=1, cores=2)
    assert plan.stages["decode and model"] == 200.0
    assert plan.images_per_second == pytest.approx(1 / (1 / 200 + 1 / 2000))
    assert any("4 actors of 1 CPUs share 2 real ones" in line for line in plan.advice)


def test_slow_decoding_asks_for_as_many_threads_as_keep_up(pool: str) -> None:
    plan = conclude(pool, rates(model=1050.0, scorer=190.0), gpus_per_actor=1, decode_threads=2)
    assert plan.bottleneck == "decode"
    assert any("--decode-threads 11" in line for line in plan.advice)


def test_slow_reading_and_too_few_pieces_are_said(pool: str) -> None:
    plan = conclude(pool, rates(read=50.0), actors="1:64", cpus_per_actor=2, cores=129)
    assert any("reading holds the actors back" in line for line in plan.advice)
    assert any("64 actors are more than the " in line for line in plan.advice)


def test_a_sample_of_unreadable_images_is_refused(write_table: WriteTable, model_uri: str) -> None:
    pool = write_table("noise", plain_rows(20))
    with pytest.raises(InputError, match="expected readable images, found none in a sample of 20"):
        plan_scoring(pool, model=model_uri, options=HERE)


def test_the_command_prints_the_plan(
    pool: str, model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command = ["--pool", pool, "--model", model_uri, "--plan", "--debug", "--batch-size", "8"]
    assert score.main(command) == 0
    printed = capsys.readouterr().out
    assert "48 rows in 1 files" in printed
    assert "this pool: " in printed
    assert not list((tmp_path / "here").iterdir())  # nothing is written
