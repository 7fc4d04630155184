"""Scoring in the calling process: every pool row ends as one scores row, and a published run stays as it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable

from distributed.bundles import write_bundle
from distributed.fleet import row_of
from distributed.pool import freeze_pool, read_file
from distributed.progress import silent
from distributed.runs import begin_run
from distributed.schema import POOL
from distributed.scores import read_scores
from distributed.scoring import ScoringOptions, score_pool
from distributed.storage import locate
from model.bundle import BUNDLE_FILE
from model.errors import BundleError, InputError
from model.synthetic import Sample

OPTIONS = ScoringOptions(in_process=True, batch_size=8)


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
        "options": OPTIONS,
        "config": {"pool": str(pool)},
        "progress": silent,
    }
    return score_pool(str(pool), **{**arguments, **changes})


def scores_of(out: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(read_scores(locate(str(out)))).sort_by("sample_id").to_pylist()


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


def test_the_parts_are_sorted(pool: Path, model_uri: str) -> None:
    record = score(pool, model_uri)
    assert len(record["parts"]) == 2
    for part in record["parts"]:
        losses = pq.read_table(pool.parent / "scores" / part)["predicted_loss"].to_pylist()
        scored = [loss for loss in losses if loss is not None]
        assert losses == sorted(scored, reverse=True) + [None] * (len(losses) - len(scored))


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
    assert score(pool, model_uri, options=ScoringOptions(in_process=True, batch_size=3)) == {**first, "was_done": True}
    assert files_below(pool.parent / "scores") == before


def test_batch_size_and_another_run_change_no_score(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    score(pool, model_uri, out=str(pool.parent / "again"), options=ScoringOptions(in_process=True, batch_size=5))
    assert scores_of(pool.parent / "scores") == scores_of(pool.parent / "again")


def test_what_an_interrupted_attempt_left_is_not_read(pool: Path, model_uri: str) -> None:
    scores = pool.parent / "scores"
    score(pool, model_uri)
    (scores / "run.json").unlink()
    (scores / "attempt-0dead" / "deep").mkdir(parents=True)
    (scores / "attempt-0dead" / "deep" / "part.parquet").touch()
    record = score(pool, model_uri)
    assert "was_done" not in record
    assert not any(part.startswith("attempt-0dead") for part in record["parts"])
    assert all(scores.joinpath(part).exists() for part in record["parts"])
    assert len(scores_of(scores)) == 20


def test_unreadable_rows_alone_are_published(write_table: WriteTable, model_uri: str, samples: list[Sample]) -> None:
    pool = Path(write_table("pool", [{**row_of(sample), "image": b"x"} for sample in samples[:5]]))
    record = score(pool, model_uri)
    assert (record["num_scored"], record["error_rate"], record["errors"]) == (0, 1.0, {"undecodable": 5})
    assert len(scores_of(pool.parent / "scores")) == 5


def test_a_changed_pool_is_another_run(pool: Path, model_uri: str) -> None:
    score(pool, model_uri)
    before = files_below(pool.parent / "scores")
    stat = (pool / "part-00000.parquet").stat()
    os.utime(pool / "part-00000.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(InputError, match=r"holds another run; differing: pool_fingerprint \(was '\w+', is '\w+'\)"):
        score(pool, model_uri)
    assert files_below(pool.parent / "scores") == before


def test_another_bundle_is_another_run(pool: Path, model_uri: str, bundle_files: dict[str, bytes]) -> None:
    score(pool, model_uri)
    description = {**json.loads(bundle_files[BUNDLE_FILE]), "training": {"note": "another"}}
    other = locate(str(pool.parent / "other"))
    write_bundle(other, {**bundle_files, BUNDLE_FILE: json.dumps(description).encode()})
    with pytest.raises(InputError, match="differing: bundle_id"):
        score(pool, other.uri)


def test_a_bundle_of_another_version_is_refused_before_anything_is_written(
    pool: Path, bundle_files: dict[str, bytes]
) -> None:
    description = {**json.loads(bundle_files[BUNDLE_FILE]), "format_version": 99}
    other = locate(str(pool.parent / "other"))
    write_bundle(other, {**bundle_files, BUNDLE_FILE: json.dumps(description).encode()})
    with pytest.raises(BundleError, match="expected format_version 1, found 99"):
        score(pool, other.uri)
    assert not (pool.parent / "scores").exists()


def test_a_bad_pool_is_refused_before_anything_is_written(tmp_path: Path, model_uri: str) -> None:
    with pytest.raises(InputError, match="found nothing"):
        score(tmp_path / "nowhere", model_uri)
    assert not (tmp_path / "scores").exists()


def test_a_foreign_output_is_refused_and_untouched(pool: Path, model_uri: str) -> None:
    with pytest.raises(InputError, match="expected an empty folder or an earlier run of the same"):
        score(pool, model_uri, out=str(pool))
    assert not (pool / "config.json").exists()


def test_a_damaged_page_stops_the_run_and_nothing_is_published(pool: Path, model_uri: str) -> None:
    path = pool / "part-00000.parquet"
    image = pq.read_metadata(path).row_group(0).column(POOL.get_field_index("image"))
    good, middle = path.read_bytes(), image.data_page_offset + image.total_compressed_size // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    with pytest.raises(InputError, match=r"pool/part-00000\.parquet: damaged: "):
        score(pool, model_uri)
    with pytest.raises(InputError, match="unfinished"):
        list(read_scores(locate(str(pool.parent / "scores"))))


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


def test_another_kind_of_run_in_the_output_is_refused(pool: Path, model_uri: str) -> None:
    begin_run(locate(str(pool.parent / "scores")), {"budget": 3})
    with pytest.raises(InputError, match=r"holds an unfinished other run; differing: .*budget \(was 3, is None\)"):
        score(pool, model_uri)


def test_row_groups_that_no_actor_could_hold_are_refused_before_anything_is_written(
    pool: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distributed.scoring.MAX_ROW_GROUP_BYTES", 1)
    with pytest.raises(InputError, match=r"\.parquet: expected row groups of at most 0 MiB, found"):
        score(pool, model_uri)
    assert not (pool.parent / "scores").exists()
