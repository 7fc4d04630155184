"""Scores of bins: held until a part is worth writing, and gone on with where a process died."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from conftest import freeze, plain_rows, scores_table, write_file

from distributed.runs.logbook import Logbook
from distributed.schema import FILE_ID
from distributed.scoring import pipeline
from distributed.scoring.options import ScoringOptions
from distributed.scoring.pipeline import BinScorer, bins_of
from distributed.storage.location import locate
from distributed.tables.manifest import Manifest, PoolFile, Segment
from distributed.tables.reader import Bin, plan_bins
from distributed.tables.scores import ScoresPart, read_part


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """40 rows in four files."""
    for number in range(4):
        write_file(tmp_path / "pool" / f"{number}.parquet", plain_rows(10, start=10 * number))
    return freeze(tmp_path / "pool")


class CountingScorer:
    """Scores a row by its number, and remembers the rows of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.calls.append([int(name[1:]) for name in rows["sample_id"].to_pylist()])
        scores = scores_table([float(number) for number in self.calls[-1]])
        for name in ("sample_id", "pool_file", "pool_row"):
            kind = scores.schema.field(name).type
            scores = scores.set_column(scores.schema.get_field_index(name), name, rows[name].cast(kind))
        return scores.append_column(FILE_ID, rows[FILE_ID])


def bin_scorer(manifest: Manifest, out: Path, log: Logbook, scorer: CountingScorer) -> BinScorer:
    place = manifest.location
    return BinScorer(scorer, pool=place, images=place, out=locate(str(out)), log=log, call_rows=6, num_readers=3)


def ids_in(out: Path, parts: list[ScoresPart]) -> list[str]:
    return sorted(pa.concat_tables([read_part(locate(str(out)), part) for part in parts])["sample_id"].to_pylist())


IDS = [f"p{number:04d}" for number in range(40)]


def test_the_scores_of_a_bin_are_one_part_and_calls_have_rows_of_several_files(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_READ_BYTES", 1)  # each row group is read alone
    scorer = CountingScorer()
    (bin_,) = plan_bins(manifest.segments)
    parts = bin_scorer(manifest, tmp_path, Logbook(), scorer)(bin_)
    assert [part.num_rows for part in parts] == [40]
    assert ids_in(tmp_path, parts) == IDS
    assert [row for call in scorer.calls for row in call] == [*range(40)]
    assert [len(call) for call in scorer.calls] == [6] * 6 + [4]


@pytest.mark.parametrize(
    ("limit", "value", "sizes"), [("_PART_ROWS", 12, [12, 12, 12, 4]), ("_PART_S", -1.0, [6] * 6 + [4])]
)
def test_a_part_is_written_when_it_is_large_or_old(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, sizes: list[int]
) -> None:
    monkeypatch.setattr(pipeline, limit, value)
    (bin_,) = plan_bins(manifest.segments)
    parts = bin_scorer(manifest, tmp_path, Logbook(), CountingScorer())(bin_)
    assert [part.num_rows for part in parts] == sizes
    assert ids_in(tmp_path, parts) == IDS


def test_whoever_follows_a_dead_process_goes_on_behind_what_it_had_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_PART_ROWS", 12)
    (bin_,) = plan_bins(manifest.segments)
    log, heir = Logbook(), CountingScorer()
    steps = bin_scorer(manifest, tmp_path, log, CountingScorer()).steps(bin_)
    while not next(steps):
        pass  # it dies once a part is written
    parts = bin_scorer(manifest, tmp_path, log, heir)(bin_)
    assert heir.calls[0][0] == 12
    assert ids_in(tmp_path, parts) == IDS


def test_a_stop_writes_what_is_scored_and_reads_no_further_bin(manifest: Manifest, tmp_path: Path) -> None:
    log, scorer = Logbook(), CountingScorer()
    first, second = (Bin(segments=tuple(manifest.segments[start : start + 2])) for start in (0, 2))
    bins = bin_scorer(manifest, tmp_path, log, scorer)
    assert [part.num_rows for part in bins(first)] == [20]
    log.stop()
    assert bins(second) == []
    assert len(scorer.calls) == 4


def big_file(number: int) -> PoolFile:
    """A GiB of images."""
    groups = (512,) * 16
    return PoolFile(
        path=f"{number:06d}", size=2**30, version="", row_group_rows=groups, row_group_bytes=(2**26,) * 16, footer=""
    )


@pytest.mark.parametrize(
    ("num_files", "num_actors", "least", "most"),
    [(1, 1, 4, 8), (1, 64, 128, 128), (100, 8, 100, 300), (20_000, 16, 1_250, 2_500)],
)
def test_bins_are_few_for_a_large_pool_and_enough_for_all_actors(
    num_files: int, num_actors: int, least: int, most: int
) -> None:
    segments = [Segment(big_file(number), 0, 8192) for number in range(num_files)]
    bins = bins_of(segments, ScoringOptions(actors=str(num_actors), batch_size=16))
    assert least <= len(bins) <= most
    assert sum(bin_.num_rows for bin_ in bins) == 8192 * num_files
    assert bins[-1].num_bytes <= 2**27


def test_a_single_row_group_is_work_for_all_actors() -> None:
    bins = bins_of([Segment(big_file(0), 0, 300)], ScoringOptions(actors="4", batch_size=16))
    assert [bin_.num_rows for bin_ in bins] == [48] * 6 + [12]
    assert len(bins_of([Segment(big_file(0), 0, 300)], ScoringOptions(actors="1", batch_size=16))) == 1
