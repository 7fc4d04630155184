"""Simulations: tiny ones end to end, what they go on from, what they refuse, and their tables by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import WriteTable

from distributed.simulation import simulate as cycles
from distributed.simulation.data import near_duplicate_share
from distributed.simulation.options import SimulateOptions
from distributed.simulation.tables import markdown
from jobs.simulate import main

TINY = Path(__file__).parents[1] / "simulations" / "tiny.yaml"
SECONDS = {"train_seconds", "evaluate_seconds", "select_seconds"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def options_of(**change: Any) -> dict[str, Any]:
    tiny = yaml.safe_load(TINY.read_text(encoding="utf-8"))
    return {**tiny, "estimator": "tiny_poses:tiny", "min_gap": 0, "workers": 0, **change}


def run(folder: Path, **change: Any) -> int:
    """The exit code of the command with the tiny configuration, changed."""
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(yaml.safe_dump({"out": str(folder), **options_of(**change)}), encoding="utf-8")
    return main(["--config", str(config)])


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All that the rows say but for the time that they took."""
    table = pq.read_table(folder / "rows.parquet")
    return table.drop_columns(sorted(SECONDS)).to_pylist()


FEW = {"strategies": ["random", "keypoint"], "single_seed": ["coreset"], "seeds": [0]}


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulation that nothing happened to."""
    folder = tmp_path_factory.mktemp("simulation") / "quiet"
    assert run(folder, **FEW) == 0
    return folder


def test_each_arm_has_a_row_a_stage_and_picks_rows_that_it_had_not(quiet: Path) -> None:
    rows = rows_of(quiet)
    assert [(row["strategy"], row["stage"]) for row in rows] == [
        (name, stage) for name in ("coreset", "keypoint", "random") for stage in (0, 1)
    ]
    for row in rows:
        assert row["num_labelled"] == 48 + 12 * row["stage"]
        assert len(set(row["picks"])) == (12 if row["stage"] == 0 else 0)
        assert {each["value"] for each in row["slices"]} >= {"night", "occlusion", "motion_blur", "unusual_pose"}
        assert all(each["num_rows"] >= 2 for each in row["slices"])
    picks = {row["strategy"]: tuple(row["picks"]) for row in rows if row["stage"] == 0}
    assert len(set(picks.values())) == 3


def test_arms_that_begin_alike_share_their_first_model(quiet: Path) -> None:
    rows = rows_of(quiet)
    assert len({row["model"] for row in rows if row["stage"] == 0}) == 1
    assert len(list((quiet / "models").iterdir())) == 1 + 3  # one start, and a second stage each


def test_the_report_has_a_table_a_question_and_its_plots(quiet: Path) -> None:
    text = (quiet / "report.md").read_text(encoding="utf-8")
    assert text.count("\n## ") == 5
    assert "| random | " in text
    for name in ("picks.svg", "retrained.svg"):
        assert (quiet / name).read_text(encoding="utf-8").startswith("<?xml")


def test_a_killed_run_goes_on_from_its_rows_to_the_same_tables(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    run_stage = cycles.run_stage

    def killed_at_the_third(stage: Any, **how: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return run_stage(stage, **how)

    monkeypatch.setattr(cycles, "run_stage", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "again", **FEW)
    assert len(list((tmp_path / "again" / "rows").iterdir())) == 2
    monkeypatch.setattr(cycles, "run_stage", run_stage)
    shutil.rmtree(tmp_path / "again" / "labelled")
    assert run(tmp_path / "again", **FEW) == 0
    assert rows_of(tmp_path / "again") == rows_of(quiet)


def test_time_that_is_over_ends_it_in_order_and_a_finished_one_is_not_run_again(
    quiet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "short", **FEW, max_minutes=1e-6) in (130, 143)
    assert "stopped with 0 of 6 stages done; the same command goes on" in capsys.readouterr().err
    assert run(quiet, **FEW) == 0
    assert "already there" in capsys.readouterr().out


@pytest.mark.ray
def test_on_ray_it_gives_the_rows_of_this_process(quiet: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "ray", **FEW, workers=2) == 0
    assert rows_of(tmp_path / "ray") == rows_of(quiet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [0, 0]}, "--seeds: expected each once, found 0"),
        ({"strategies": ["random", "random"]}, "--strategies: expected each once, found random"),
        ({"strategies": ["best"]}, "--strategies: input should be 'random', "),
        ({"stages": 40}, "--stages: expected at most the 96 rows that the start leaves of the pool, found 40 stages"),
        ({"epochs": 3}, "--steps: expected either --steps or --epochs, found both or neither"),
        ({"slices": "weather"}, "expected text"),
        ({"stages": 40, "budget": 3}, "--stages: expected at most the 96 rows that the start leaves of the pool"),
        ({"out": "s3://bucket/simulation"}, "--out s3://bucket/simulation: expected a folder on a disk"),
        ({"estimator": "hourglas"}, "hourglas"),
        ({"gpus": 1}, "GPUs: expected a CUDA device on this machine, found none"),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", **{**FEW, **change}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


@pytest.mark.ray
def test_a_gpu_that_the_cluster_lacks_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", **FEW, gpus=1, workers=1) == 2
    assert "cluster: expected 1 GPUs, found 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_start_may_be_drawn_from_the_pool_by_seed(quiet: Path, tmp_path: Path) -> None:
    tables = {name: str(quiet / "fleet" / name) for name in ("pool", "test")}
    arms = {"strategies": ["random", "coreset"], "single_seed": [], "seeds": [0, 1]}
    assert run(tmp_path / "drawn", fleet=None, start="40", **tables, **arms) == 0
    rows = rows_of(tmp_path / "drawn")
    assert {row["num_labelled"] for row in rows if row["stage"] == 0} == {40}
    assert len({row["model"] for row in rows if row["stage"] == 0}) == 2  # one a seed, whatever the strategy
    for row in rows:
        if row["stage"] == 1:
            files = (tmp_path / "drawn" / "models" / row["model"] / "config.json").read_text(encoding="utf-8")
            key = json.loads(files)["labelled_ids"]
            ids = pq.read_table(tmp_path / "drawn" / "labelled" / key, columns=["sample_id"])["sample_id"].to_pylist()
            assert len(set(ids)) == len(ids) == 52
    assert run(tmp_path / "more", fleet=None, start="90", **tables, **arms) == 2  # 6 rows are left for a budget of 12


def test_tables_that_overlap_or_have_no_labels_are_refused(
    quiet: Path, tmp_path: Path, write_table: WriteTable, capsys: pytest.CaptureFixture[str]
) -> None:
    start, pool = str(quiet / "fleet" / "start"), str(quiet / "fleet" / "pool")
    assert run(tmp_path / "out", **FEW, fleet=None, start=start, pool=pool, test=pool) == 2
    assert "--test: expected no row of the pool, found 96, first " in capsys.readouterr().err
    rows = pq.read_table(quiet / "fleet" / "test" / "part-00000.parquet").to_pylist()
    rows[1]["visibility"] = [0] * 14
    bare = write_table("bare", rows, is_labelled=True)
    assert run(tmp_path / "out", **FEW, fleet=None, start=start, pool=pool, test=bare) == 2
    expected = f"expected labels in every row, found 1 without, first {rows[1]['sample_id']!r}"
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_configuration_under_the_same_output_is_refused(
    quiet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(quiet, **{**FEW, "budget": 13}) == 2
    assert "differing: budget (was 12, is 13)" in capsys.readouterr().err


def test_near_duplicates_are_a_second_apart_at_most_or_of_one_group_without_times() -> None:
    at = [0.0, 1.0, 2.5, 9.0, None, None, None, None]
    groups = ["a", "a", "a", "b", "c", "c", None, None]
    stamps = pa.array([None if each is None else int(1e6 * each) for each in at], pa.timestamp("us", tz="UTC"))
    ids = pa.array([f"r{number}" for number in range(8)])
    index = pa.table({"sample_id": ids, "group": groups, "captured_at": stamps})
    assert near_duplicate_share(index, ["r0", "r1"], []) == 1
    assert near_duplicate_share(index, ["r1", "r2"], []) == 0
    assert near_duplicate_share(index, ["r0", "r3"], ["r1"]) == 0.5  # what was labelled earlier counts too
    assert near_duplicate_share(index, ["r4", "r5", "r6", "r7"], []) == 0.5


def a_row(strategy: str, seed: int, stage: int, pck: float, picks_pck: float | None) -> dict[str, Any]:
    measures = dict.fromkeys(("spearman_loss", "spearman_pck", "ause_loss", "ause_pck", "near_duplicates"), 0.25)
    return {
        "strategy": strategy,
        "seed": seed,
        "stage": stage,
        "num_labelled": 100 * (stage + 1),
        "test_pck": pck,
        "picks_pck": picks_pck,
        "picks_pck_common": picks_pck,
        "slices": [],
        **measures,
        **dict.fromkeys(SECONDS, 1.0),
    }


def test_tables_are_means_and_deviations_with_the_best_in_bold_and_paired_differences() -> None:
    values = {
        ("random", 0): (0.4, 0.5),
        ("random", 1): (0.4, 0.7),
        ("keypoint", 0): (0.2, 0.8),
        ("keypoint", 1): (0.2, 0.8),
    }
    rows = [a_row(name, seed, 0, 0.3, picks) for (name, seed), (picks, _) in values.items()]
    rows += [a_row(name, seed, 1, after, None) for (name, seed), (_, after) in values.items()]
    made = options_of(strategies=["random", "keypoint"], single_seed=[], seeds=[0, 1])
    text = markdown(rows, SimulateOptions(out="x", **made))
    assert "| keypoint | **0.200 ± 0.000** |" in text
    assert "| random | 0.400 ± 0.000 |" in text
    assert "| random | **0.300 ± 0.000** | 0.600 ± 0.141 |" in text
    assert "| keypoint | **0.300 ± 0.000** | **0.800 ± 0.000** |" in text
    assert "| keypoint | +0.200 (-1.071 to +1.471) | - |" in text  # t of one degree of freedom is 12.706
