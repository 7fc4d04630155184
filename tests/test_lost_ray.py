"""Ray lost under a run: one line, an exit code that is retried, nothing half-published; the same command goes on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from faulty import assert_same, score_process, scores_by_id

from jobs import score

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]

POINTS = ("frozen", "part", "publishing")
RETRIED = {1, 3, 134, -6, 137, -9}  # a crash by its code or its signal, or compute that failed


@pytest.mark.parametrize(
    ("process", "when"),
    [
        ("raylet", "part"),
        ("gcs_server", "publishing"),
        *(
            pytest.param(process, when, marks=pytest.mark.nightly)
            for process in ("raylet", "gcs_server")
            for when in (*POINTS, "leaving")
            if (process, when) not in {("raylet", "part"), ("gcs_server", "publishing")}
        ),
    ],
)
def test_a_lost_process_of_ray_ends_the_run_in_one_line_and_the_same_command_goes_on(
    process: str, when: str, pool: Path, tmp_path: Path, model_uri: str, undisturbed: pa.Table
) -> None:
    out = tmp_path / "scores"
    arguments = ["--pool", str(pool), "--model", model_uri, "--out", str(out)]
    with score_process(*arguments, "--ray", fault=["ray_lost", process, str(out), when]) as running:
        _, errors = running.communicate(timeout=150)
    is_published = (out / "run.json").exists()
    assert running.returncode in (RETRIED | {0} if is_published else RETRIED)
    own = [line for line in errors.splitlines() if line.startswith("lossight: ")]
    assert "Traceback" not in errors
    assert running.returncode == 0 or len(own) == 1, errors
    assert score.main([*arguments, "--debug"]) == 0
    assert_same(scores_by_id(out), undisturbed)


@pytest.mark.parametrize(
    "when",
    ["part", *(pytest.param(when, marks=pytest.mark.nightly) for when in ("frozen", "publishing"))],
)
def test_a_thread_that_fails_is_told_in_one_line_and_ends_nothing(
    when: str, pool: Path, tmp_path: Path, model_uri: str, undisturbed: pa.Table
) -> None:
    out = tmp_path / "scores"
    arguments = ["--pool", str(pool), "--model", model_uri, "--out", str(out)]
    with score_process(*arguments, "--ray", fault=["thread_fails", str(out), when]) as running:
        _, errors = running.communicate(timeout=150)
    assert running.returncode == 0, errors
    assert "Traceback" not in errors
    assert_same(scores_by_id(out), undisturbed)
