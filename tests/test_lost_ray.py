"""Ray lost under a run: one line, an exit code that is retried, nothing half-published; the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from faulty import assert_same, score_process, scores_by_id, write_night

from jobs import score

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]

POINTS = ("frozen", "part", "publishing")
RETRIED = {1, 3, 134, -6, 137, -9}  # a crash by its code or its signal, or compute that failed


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_night(tmp_path / "pool")


@pytest.fixture(scope="module")
def quiet(model_uri: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The scores of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("quiet")
    pool, out = write_night(folder / "pool"), folder / "scores"
    assert score.main(["--pool", str(pool), "--model", model_uri, "--out", str(out), "--debug"]) == 0
    return scores_by_id(out)


@pytest.mark.parametrize("when", [*POINTS, "leaving"])
@pytest.mark.parametrize("process", ["raylet", "gcs_server"])
def test_a_lost_process_of_ray_ends_the_run_in_one_line_and_the_same_command_goes_on(
    process: str, when: str, pool: Path, tmp_path: Path, model_uri: str, quiet: pa.Table
) -> None:
    out = tmp_path / "scores"
    arguments = ["--pool", str(pool), "--model", model_uri, "--out", str(out)]
    with score_process(*arguments, fault=["ray_lost", process, str(out), when]) as running:
        _, errors = running.communicate(timeout=150)
    is_published = (out / "run.json").exists()
    assert running.returncode in (RETRIED | {0} if is_published else RETRIED)
    own = [line for line in errors.splitlines() if line.startswith("lossight: ")]
    assert "Traceback" not in errors
    assert running.returncode == 0 or len(own) == 1, errors
    assert score.main([*arguments, "--debug"]) == 0
    assert_same(scores_by_id(out), quiet)


@pytest.mark.parametrize("when", POINTS)
def test_a_thread_that_fails_is_told_in_one_line_and_ends_nothing(
    when: str, pool: Path, tmp_path: Path, model_uri: str, quiet: pa.Table
) -> None:
    out = tmp_path / "scores"
    arguments = ["--pool", str(pool), "--model", model_uri, "--out", str(out)]
    with score_process(*arguments, fault=["thread_fails", str(out), when]) as running:
        _, errors = running.communicate(timeout=150)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    assert_same(scores_by_id(out), quiet)
