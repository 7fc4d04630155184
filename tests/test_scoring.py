"""Scoring in the calling process: every pool row ends as one scores row, and a published run stays as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WriteTable, read_scores

from distributed.ingest.fleet import row_of
from distributed.runs.progress import silent
from distributed.runs.record import begin_run
from distributed.schema import POOL
from distributed.scoring import score as scoring
from distributed.scoring.options import ScoringOptions
from distributed.scoring.pipeline import Trial, settle
from distributed.scoring.score import check_row_groups, score_pool
from distributed.storage.bundles import write_bundle
from distributed.storage.location import locate, write_bytes
from distributed.tables.manifest import Manifest, PoolFile, freeze_pool
from distributed.tables.reader import read_file
from jobs.score import main
from model.bundle import dump_bundle
from model.choices import Views
from model.description import BUNDLE_FILE
from model.errors import BundleError, InputError
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP
from model.synthetic import Sample


def options(batch_size: int) -> ScoringOptions:
    return ScoringOptions(debug=True, batch_size=batch_size)


@pytest.fixture
def rows(samples: list[Sample]) -> list[dict[str, object]]:
    """20 rows, three of them unreadable."""
    rows = [row_of(sample) for sample in samples[:20]]
    rows[3]["image"] = None
    rows[11]["image"] = samples[11].image[:100]
    rows[19]["box"] = [5, 5, 5, 5]
    return rows


@pytest.fixture
def pool(write_table: WriteTable, rows: list[dict[str, object]]) -> Path:
    """Two files, one of them in a subfolder."""
    write_table("pool/night=1", rows[:12], row_group_bytes=8000)
    return Path(write_table("pool", rows[12:])).parent / "pool"


def score(pool: Path, model_uri: str, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": model_uri,
        "out": str(pool.parent / "scores"),
        "options": options(8),
        "config": {"pool": str(pool)},
        "progress": silent,
    }
    return score_pool(str(pool), **{**arguments, **changes})


def scores_of(out: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(read_scores(locate(str(out)))).sort_by("sample_id").to_pylist()


def files_below(folder: Path) -> dict[str, bytes]:
    """All but hidden ones: the lease is renewed by whoever looks."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_every_row_of_every_file_becomes_one_scores_row(
    pool: Path, model_uri: str, rows: list[dict[str, object]]
) -> None:
    score(pool, model_uri)
    manifest = freeze_pool(locate(str(pool)))
    expected = [
        (row["sample_id"], row["pool_file"], row["pool_row"])
        for file in manifest.files
        for table in read_file(manifest, file, columns=POOL.names)
        for row in table.to_pylist()
    ]
    found = scores_of(pool.parent / "scores")
    assert sorted(expected) == [(row["sample_id"], row["pool_file"], row["pool_row"]) for row in found]
    assert len(manifest.files) == 2
    errors = {row["sample_id"]: row["error"] for row in found if row["error"]}
    assert errors == {
        rows[3]["sample_id"]: "empty",
        rows[11]["sample_id"]: "undecodable",
        rows[19]["sample_id"]: "bad_box",
    }


def test_by_default_a_small_pool_is_scored_in_this_process_and_nothing_published_tells(
    pool: Path, model_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.scoring.pipeline._score_on_ray", None)
    by_default = score(pool, model_uri, out=str(tmp_path / "default"), options=ScoringOptions(batch_size=8))
    assert by_default.pop("num_rows_here") == by_default["num_rows"]
    told = score(pool, model_uri, out=str(tmp_path / "told"))
    assert set(by_default) == set(told)
    assert by_default["part_footers"] == told["part_footers"]


@pytest.mark.parametrize(
    "asked",
    [{"ray": True}, {"actors": "2"}, {"address": "h:1"}, {"cpus_per_actor": 1}, {"gpus_per_actor": 1}, {"debug": True}],
)
def test_whoever_asks_for_a_place_gets_it(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    join = Mock(side_effect=lambda given, **_: given)
    monkeypatch.setattr("distributed.scoring.pipeline.join_cluster", join)
    settle(ScoringOptions(**asked), num_rows=1, input_size=64)
    assert join.call_count == 1


def test_a_cluster_that_the_environment_names_and_a_death_in_this_process_ask_for_ray(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join = Mock(side_effect=lambda given, **_: given)
    monkeypatch.setattr("distributed.scoring.pipeline.join_cluster", join)
    settle(ScoringOptions(), num_rows=10**9, input_size=64)
    assert join.call_count == 0
    settle(ScoringOptions(), num_rows=1, input_size=64, is_after_death=True)
    monkeypatch.setenv("RAY_ADDRESS", "h:1")
    settle(ScoringOptions(), num_rows=1, input_size=64)
    assert join.call_count == 2


@pytest.mark.parametrize(
    ("num_rows", "num_done", "seconds", "has_lost"),
    [
        (10**9, 64, 2.9, False),  # too early to tell
        (10**9, 0, 9.0, False),
        (1000, 100, 4.0, False),  # 36 s are left
        (10_000, 100, 4.0, True),  # 396 s
    ],
)
def test_ray_goes_on_where_minutes_are_left(
    num_rows: int, num_done: int, seconds: float, has_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert Trial(num_rows).is_lost(num_done, seconds) is has_lost


def test_the_record_counts_what_became_of_the_rows(pool: Path, model_uri: str) -> None:
    record = score(pool, model_uri)
    assert {key: record[key] for key in ("kind", "num_rows", "num_scored", "errors", "bad_files", "error_rate")} == {
        "kind": "scores",
        "num_rows": 20,
        "num_scored": 17,
        "errors": {"bad_box": 1, "empty": 1, "undecodable": 1},
        "bad_files": {},
        "error_rate": 3 / 20,
    }
    assert record["pool_fingerprint"] == freeze_pool(locate(str(pool))).fingerprint
    assert json.loads((pool.parent / "scores" / "run.json").read_bytes()) == record


def test_the_manifest_is_kept_with_the_run(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    kept = json.loads((pool.parent / "scores" / "manifest.json").read_bytes())
    assert [file["path"] for file in kept["files"]] == ["night=1/part-00000.parquet", "part-00000.parquet"]


def test_bad_files_count_as_files_of_average_size(pool: Path, model_uri: str) -> None:
    (pool / "z.parquet").touch()
    record = score(pool, model_uri)
    assert record["bad_files"] == {"z.parquet": "empty file"}
    assert record["error_rate"] == pytest.approx((3 + 10) / (20 + 10))


def test_running_again_rewrites_nothing(pool: Path, model_uri: str) -> None:
    first = score(pool, model_uri)
    before = files_below(pool.parent / "scores")
    assert score(pool, model_uri, options=options(3)) == {**first, "was_done": True}
    assert files_below(pool.parent / "scores") == before


def test_batch_size_and_another_run_change_no_score(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    score(pool, model_uri, out=str(pool.parent / "again"), options=options(5))
    assert scores_of(pool.parent / "scores") == scores_of(pool.parent / "again")


def test_what_else_lies_among_the_parts_is_not_read_and_goes_with_the_next_run(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    before = scores_of(pool.parent / "scores")
    parts = pool.parent / "scores" / "parts"
    (pool.parent / "scores" / "run.json").unlink()
    (parts / "part-0.parquet").write_bytes(b"half a file")
    pq.write_table(pq.read_table(pool / "part-00000.parquet"), parts / "part-1.parquet")  # says nothing of itself
    record = score(pool, model_uri)
    assert (record["num_new_rows"], record["num_rows"]) == (0, 20)
    assert [f"parts/{path.name}" for path in parts.iterdir()] == record["parts"]
    assert scores_of(pool.parent / "scores") == before


def test_unreadable_rows_alone_are_published(write_table: WriteTable, model_uri: str, samples: list[Sample]) -> None:
    pool = Path(write_table("pool", [{**row_of(sample), "image": b"x"} for sample in samples[:5]]))
    record = score(pool, model_uri)
    assert (record["num_scored"], record["error_rate"], record["errors"]) == (0, 1.0, {"undecodable": 5})
    assert len(scores_of(pool.parent / "scores")) == 5


def test_a_file_that_was_written_again_is_scored_again(pool: Path, model_uri: str) -> None:
    first = score(pool, model_uri)
    before = scores_of(pool.parent / "scores")
    stat = (pool / "part-00000.parquet").stat()
    os.utime(pool / "part-00000.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    record = score(pool, model_uri)
    assert (record["num_new_rows"], record["num_rows"]) == (8, 20)
    assert record["pool_fingerprint"] != first["pool_fingerprint"]
    assert scores_of(pool.parent / "scores") == before


def test_scores_that_an_earlier_version_began_with_unfolded_norms_are_refused(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    written = pool.parent / "scores" / "config.json"
    config = json.loads(written.read_text())
    assert config["inputs"].pop("norms") == "folded"
    written.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"differing: norms \(was None, is 'folded'\); remove it or choose another"):
        score(pool, model_uri)


def test_another_bundle_is_another_run(pool: Path, model_uri: str, bundle_files: dict[str, bytes]) -> None:
    score(pool, model_uri)
    description = {**json.loads(bundle_files[BUNDLE_FILE]), "training": {"note": "another"}}
    other = locate(str(pool.parent / "other"))
    write_bundle(other, {**bundle_files, BUNDLE_FILE: json.dumps(description).encode()})
    with pytest.raises(InputError, match="differing: bundle_id"):
        score(pool, other.uri)


def write_keypoint_bundle(folder: Path, *, is_taught: bool = True) -> str:
    """A bundle whose keypoint head has weights of chance, and counts as taught."""
    torch.manual_seed(1)
    model = PoseModel(make_spec("hourglass-small", method="keypoint", skeleton=LSP))
    if is_taught:
        for judge in (model.loss_head.plain, model.loss_head.mirrored):
            judge.loss_scale.fill_(1.0)
            judge.knows_misses.fill_(value=True)
    write_bundle(locate(str(folder)), dump_bundle(model, training={}, metrics={}))
    return str(folder)


def with_views(views: Views) -> ScoringOptions:
    return ScoringOptions(debug=True, batch_size=8, views=views, keypoints=True)


def test_a_second_view_judges_anew_and_leaves_the_pose_as_it_is(pool: Path, tmp_path: Path) -> None:
    model = write_keypoint_bundle(tmp_path / "taught")
    found = []
    for views in (1, 2):
        score(pool, model, out=str(tmp_path / str(views)), options=with_views(views))
        found.append(scores_of(tmp_path / str(views)))
    for one, other in zip(*found, strict=True):
        assert [one[name] for name in ("sample_id", "confidence", "keypoints", "error")] == [
            other[name] for name in ("sample_id", "confidence", "keypoints", "error")
        ]
        if one["error"] is None:
            assert one["predicted_loss"] != other["predicted_loss"]
            for row in (one, other):
                assert row["expected_pck"] == pytest.approx(1 - np.mean(row["keypoint_miss"]), abs=1e-3)
        else:
            assert {row[name] for row in (one, other) for name in ("expected_pck", "keypoint_miss")} == {None}


def test_other_views_are_another_run(pool: Path, tmp_path: Path) -> None:
    model = write_keypoint_bundle(tmp_path / "taught")
    score(pool, model, options=with_views(1))
    with pytest.raises(InputError, match=r"differing: views \(was 1, is 2\)"):
        score(pool, model, options=with_views(2))


def test_a_head_that_cannot_judge_so_is_refused_before_anything_is_written(
    pool: Path, model_uri: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^--views 2: expected a bundle of the method keypoint, found ll\+\+conv$"):
        score(pool, model_uri, options=with_views(2))
    with pytest.raises(BundleError, match="expected a finished training, found one whose keypoint head is not taught"):
        score(pool, write_keypoint_bundle(tmp_path / "untaught", is_taught=False), options=with_views(1))
    assert not (pool.parent / "scores").exists()


def test_a_bundle_of_another_version_is_refused_before_anything_is_written(
    pool: Path, bundle_files: dict[str, bytes]
) -> None:
    description = {**json.loads(bundle_files[BUNDLE_FILE]), "format_version": 99}
    other = locate(str(pool.parent / "other"))
    write_bundle(other, {**bundle_files, BUNDLE_FILE: json.dumps(description).encode()})
    with pytest.raises(BundleError, match="expected format_version 2, found 99"):
        score(pool, other.uri)
    assert not (pool.parent / "scores").exists()


def test_a_bad_pool_is_refused_before_anything_is_written(tmp_path: Path, model_uri: str) -> None:
    with pytest.raises(InputError, match="found nothing"):
        score(tmp_path / "nowhere", model_uri)
    assert not (tmp_path / "scores").exists()


def test_a_foreign_output_is_refused_and_untouched(pool: Path, model_uri: str) -> None:
    foreign = pool.parent / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder or an earlier run of the same"):
        score(pool, model_uri, out=str(foreign))
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def test_a_labelled_table_with_further_columns_is_a_pool(
    write_table: WriteTable, model_uri: str, samples: list[Sample]
) -> None:
    pool = Path(write_table("labelled", [row_of(sample) for sample in samples[:4]], is_labelled=True))
    assert score(pool, model_uri)["num_scored"] == 4


def test_a_file_without_rows_is_no_fault(pool: Path, model_uri: str) -> None:
    pq.write_table(POOL.empty_table(), pool / "0.parquet")
    assert score(pool, model_uri)["num_rows"] == 20
    assert len(scores_of(pool.parent / "scores")) == 20


def test_progress_counts_rows_and_errors(pool: Path, model_uri: str) -> None:
    told = []

    def progress(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        told.append((stage, done, total, num_errors, note))

    score(pool, model_uri, progress=progress)
    assert told[-1] == ("score", 20, 20, 3, "")
    assert told == sorted(told)


def test_row_groups_that_no_actor_could_hold_are_refused_before_anything_is_written(
    pool: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.scoring.score.MAX_ROW_GROUP_BYTES", 1)
    with pytest.raises(InputError, match=r"\.parquet: expected row groups of at most 0 MiB, found"):
        score(pool, model_uri)
    assert not (pool.parent / "scores").exists()


# Called again on another state of the pool


def test_only_the_rows_of_appended_files_are_scored(
    pool: Path, write_table: WriteTable, model_uri: str, samples: list[Sample]
) -> None:
    score(pool, model_uri)
    before = scores_of(pool.parent / "scores")
    write_table("pool/night=2", [row_of(sample) for sample in samples[20:27]])
    record = score(pool, model_uri)
    assert (record["num_new_rows"], record["num_rows"], record["num_scored"]) == (7, 27, 24)
    assert record["errors"] == {"bad_box": 1, "empty": 1, "undecodable": 1}
    after = scores_of(pool.parent / "scores")
    assert [row for row in after if row["pool_file"] != "night=2/part-00000.parquet"] == before
    score(pool, model_uri, out=str(pool.parent / "at-once"))
    assert scores_of(pool.parent / "at-once") == after


def test_a_replaced_file_is_scored_anew_and_the_rows_of_the_old_one_are_gone(
    pool: Path, write_table: WriteTable, model_uri: str, samples: list[Sample]
) -> None:
    score(pool, model_uri)
    write_table("pool/night=1", [row_of(sample) for sample in samples[30:35]])
    record = score(pool, model_uri)
    assert (record["num_new_rows"], record["num_rows"]) == (5, 13)
    score(pool, model_uri, out=str(pool.parent / "at-once"))
    assert scores_of(pool.parent / "scores") == scores_of(pool.parent / "at-once")


def test_the_rows_of_a_removed_file_leave_the_table_and_nothing_is_scored(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    before = scores_of(pool.parent / "scores")
    (pool / "night=1" / "part-00000.parquet").unlink()
    record = score(pool, model_uri)
    assert (record["num_new_rows"], record["num_rows"]) == (0, 8)
    assert scores_of(pool.parent / "scores") == [row for row in before if row["pool_file"] == "part-00000.parquet"]


def test_the_parts_of_the_last_state_stay_for_its_readers_until_the_next(pool: Path, model_uri: str) -> None:
    states = [score(pool, model_uri)["parts"]]
    for _ in range(2):
        stat = (pool / "part-00000.parquet").stat()
        os.utime(pool / "part-00000.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        states.append(score(pool, model_uri)["parts"])
        kept = {f"parts/{path.name}" for path in (pool.parent / "scores" / "parts").iterdir()}
        assert kept == {*states[-2], *states[-1]}
    assert len({path for parts in states for path in parts}) == 3


# Pools of many kinds


def test_any_file_name_and_folder_name_will_do(
    write_table: WriteTable, model_uri: str, samples: list[Sample], tmp_path: Path
) -> None:
    names = ["with space", "größe-日本", "date=2026-11-22", "a+b%20#?&", "'quoted\"", "-dash"]
    for number, name in enumerate(names):
        written = Path(write_table(f"pool/{name}", [row_of(samples[number])]))
        (written / "part-00000.parquet").rename(written / f"{name}.parquet")
    out = tmp_path / f"scores of {''.join(names)}"
    record = score(tmp_path / "pool", model_uri, out=str(out))
    assert (record["num_scored"], record["bad_files"]) == (len(names), {})
    assert sorted(row["pool_file"] for row in scores_of(out)) == sorted(f"{name}/{name}.parquet" for name in names)


def test_hundreds_of_files_of_two_rows_are_scored_with_a_warning(
    tmp_path: Path, model_uri: str, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pool").mkdir()
    table = pa.Table.from_pylist([{**row_of(sample), "image": b"x"} for sample in samples[:2]], POOL)
    for number in range(200):
        ids = pa.array([f"{number}-a", f"{number}-b"])
        pq.write_table(table.set_column(0, POOL.field(0), ids), tmp_path / "pool" / f"{number}.parquet")
    record = score(tmp_path / "pool", model_uri)
    assert (record["num_rows"], record["errors"]) == (400, {"undecodable": 400})
    assert len(record["parts"]) == 1
    assert "200 of 200 row groups in 200 files are under 8 MiB" in caplog.text


@pytest.mark.parametrize(("num_unreadable", "exit_code"), [(0, 0), (1, 0), (100, 5)])
def test_the_exit_code_follows_the_share_of_unreadable_rows(
    write_table: WriteTable, model_uri: str, samples: list[Sample], num_unreadable: int, exit_code: int
) -> None:
    rows = [{**row_of(samples[i % 48]), "sample_id": f"s{i:03d}"} for i in range(100)]
    for row in rows[:num_unreadable]:
        row["image"] = None
    pool = write_table("pool", rows)
    out = f"{pool}-scores"
    assert main(["--pool", pool, "--model", model_uri, "--out", out, "--debug"]) == exit_code
    assert json.loads(Path(out, "run.json").read_bytes())["error_rate"] == num_unreadable / 100
    assert [row["error"] for row in scores_of(Path(out))] == ["empty"] * num_unreadable + [None] * (
        100 - num_unreadable
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("ids", "column 'sample_id': expected unique values"),
        ("pool", "expected a file or a folder, found nothing"),
        ("model", "expected"),
        ("weights", "expected"),
        ("out", "expected a place outside the pool"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line_with_exit_code_2_before_anything_is_written(
    pool: Path,
    model_uri: str,
    bundle_files: dict[str, bytes],
    spoil: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = {"pool": str(pool), "model": model_uri, "out": str(pool.parent / "scores")}
    if spoil == "ids":
        (pool / "copy.parquet").write_bytes((pool / "part-00000.parquet").read_bytes())
    elif spoil == "weights":
        other = locate(str(pool.parent / "other"))
        for name, data in bundle_files.items():
            write_bytes(other.join(name), data if name == BUNDLE_FILE else data[:-1] + bytes([data[-1] ^ 1]))
        arguments["model"] = other.uri
    elif spoil == "out":
        arguments["out"] = str(pool)
    else:
        arguments[spoil] = str(pool.parent / "nowhere")
    assert main([f"--{name}={value}" for name, value in arguments.items()] + ["--debug"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not (pool.parent / "scores").exists()


CONFIG = {"pool": "p", "actors": "1", "precision": None}  # keys of the configuration that bear names of the identity


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("precision", {"options": ScoringOptions(debug=True, precision="bfloat16")}),
        ("columns", {"options": ScoringOptions(debug=True, embeddings=True)}),
        ("columns", {"options": ScoringOptions(debug=True, metadata=("camera",))}),
    ],
)
def test_what_decides_the_scores_is_compared_whatever_the_options_are_called(
    write_table: WriteTable, rows: list[dict[str, object]], tmp_path: Path, model_uri: str, key: str, change: Any
) -> None:
    pool = tmp_path / "cameras"
    pool.mkdir()
    schema = POOL.append(pa.field("camera", pa.string()))
    pq.write_table(pa.Table.from_pylist([{**row, "camera": "front"} for row in rows], schema), pool / "a.parquet")
    score(pool, model_uri, config=CONFIG)
    score(pool, model_uri, config={**CONFIG, "actors": "2"}, options=options(16))  # how, not what
    with pytest.raises(InputError, match=rf"holds another run; differing: {key} \(was"):
        score(pool, model_uri, config=CONFIG, **change)


def test_another_pool_never_takes_the_place_of_a_pools_scores(
    pool: Path, model_uri: str, write_table: WriteTable, rows: list[dict[str, object]]
) -> None:
    score(pool, model_uri, config=CONFIG)
    before = files_below(pool.parent / "scores")
    other = Path(write_table("other", rows[:5]))
    with pytest.raises(InputError, match=r"differing: pool \(was .*/pool', is .*/other'\)"):
        score(other, model_uri, config=CONFIG)
    assert files_below(pool.parent / "scores") == before


def test_the_default_precision_and_its_name_are_the_same(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    named = ScoringOptions(debug=True, precision="float32")
    assert score(pool, model_uri, options=named)["was_done"]


def test_a_bundle_that_is_replaced_during_the_run_scores_nothing(
    pool: Path, tmp_path: Path, bundle_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = locate(str(tmp_path / "model"))
    write_bundle(model, bundle_files)
    torch.manual_seed(1)
    other = dump_bundle(
        PoseModel(make_spec("hourglass-small", method="ll++conv", skeleton=LSP)), training={}, metrics={}
    )
    begin = scoring.begin_run

    def begin_and_replace(*arguments: Any, **options: Any) -> bool:
        write_bundle(model, other)
        return begin(*arguments, **options)

    monkeypatch.setattr(scoring, "begin_run", begin_and_replace)
    with pytest.raises(InputError, match=r"expected the bundle \w+ that the run began with, found \w+"):
        score(pool, model.uri)
    assert not (pool.parent / "scores" / "run.json").exists()


@pytest.mark.parametrize("place", ["", "scores", "a/b"])
def test_scores_inside_their_pool_are_refused(pool: Path, model_uri: str, place: str) -> None:
    before = files_below(pool)
    with pytest.raises(InputError, match="expected a place outside the pool"):
        score(pool, model_uri, out=str(pool / place))
    assert files_below(pool) == before


def test_nothing_is_left_in_an_output_of_another_command(
    pool: Path, model_uri: str, write_table: WriteTable, rows: list[dict[str, object]]
) -> None:
    out = Path(write_table("ingested", rows))
    begin_run(locate(str(out.parent / "made")), {"kind": "folder", "source": "x"})
    with pytest.raises(InputError, match="expected scores or an empty folder, found another output; choose another"):
        score(pool, model_uri, out=str(out.parent / "made"))
    assert [path.name for path in (out.parent / "made").iterdir()] == ["config.json"]


def test_a_file_that_was_away_for_a_moment_is_scored_the_next_time(
    pool: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pool / "night=1" / "part-00000.parquet"
    begin = scoring.begin_run

    def begin_while_it_is_away(*arguments: Any, **options: Any) -> bool:
        file.rename(pool.parent / "away")
        return begin(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "begin_run", begin_while_it_is_away)
        first = score(pool, model_uri)
    assert first["bad_files"] == {"night=1/part-00000.parquet": "changed during the run"}
    (pool.parent / "away").rename(file)
    second = score(pool, model_uri)
    assert (second["bad_files"], second["num_rows"], second["num_new_rows"]) == ({}, 20, 12)
    assert score(pool, model_uri)["was_done"]


def test_a_published_part_that_is_lost_is_scored_again(pool: Path, model_uri: str) -> None:
    record = score(pool, model_uri)
    before = scores_of(pool.parent / "scores")
    (pool.parent / "scores" / record["parts"][0]).unlink()
    assert score(pool, model_uri)["num_new_rows"] == 20
    assert scores_of(pool.parent / "scores") == before


def test_the_record_has_the_configuration_that_published_it(pool: Path, model_uri: str) -> None:
    assert score(pool, model_uri, config={**CONFIG, "actors": "3"})["config"]["actors"] == "3"


MIB = 2**20


def make_manifest(*files: list[int]) -> Manifest:
    """A manifest of empty files whose row groups have these sizes in bytes."""
    return Manifest(
        location=locate("pool"),
        files=tuple(
            PoolFile(
                path=f"night/{number}.parquet",
                size=1,
                version="v",
                row_group_rows=(1,) * len(sizes),
                row_group_bytes=tuple(sizes),
                footer="",
            )
            for number, sizes in enumerate(files)
        ),
        bad_files=(),
    )


def test_a_row_group_that_no_actor_could_hold_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"^pool/night/1\.parquet: expected row groups of at most 512 MiB, found 600 MiB: ingest it again$",
    ):
        check_row_groups(make_manifest([64 * MIB], [64 * MIB, 600 * MIB]))


@pytest.mark.parametrize(
    "files",
    [
        [],
        [[]],
        [[64 * MIB] * 16],
        [[160 * MIB]],
        [[8 * MIB] * 1000],
        [[1]] * 64,  # a small pool
        [[64 * MIB] * 500, *[[1]] * 500],
    ],
)
def test_a_pool_as_it_should_be_needs_no_warning(files: list[list[int]]) -> None:
    assert check_row_groups(make_manifest(*files)) == []


def test_many_small_row_groups_are_told_of() -> None:
    (warning,) = check_row_groups(make_manifest([64 * MIB], *[[8 * MIB - 1]] * 65))
    assert warning.startswith("pool: 65 of 66 row groups in 66 files are under 8 MiB")
    assert "`lossight ingest` writes 64 MiB" in warning


def test_large_row_groups_are_told_of() -> None:
    (warning,) = check_row_groups(make_manifest([64 * MIB, 161 * MIB], [500 * MIB]))
    assert warning.startswith("pool: 2 of 3 row groups are over 160 MiB: each is held in memory at once")
