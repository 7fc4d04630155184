"""Selections against sorting everything and walking down; the same bytes however the scores lie."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, plain_rows, scores_table

from distributed.runs import begin_run, publish_run
from distributed.schema import SELECTION
from distributed.scores import write_part
from distributed.selection import SELECTION_FILE, SelectionOptions, read_selection, select_samples
from distributed.storage import locate
from model.errors import InputError

NUM_ROWS = 60


def made_up_scores() -> pa.Table:
    """60 rows of 4 groups and none, with ties, failed rows and infinities, from three pool files."""
    rng = random.Random(0)  # noqa: S311
    losses: list[float | None] = [rng.choice([None, 0.25, 0.5, rng.random()]) for _ in range(NUM_ROWS)]
    losses[7], losses[8] = math.inf, -math.inf
    return scores_table(
        losses,
        group=[rng.choice([None, "a", "b", "c", "d"]) for _ in range(NUM_ROWS)],
        pool_file=[f"{rng.choice('xyz')}.parquet" for _ in range(NUM_ROWS)],
    )


SCORES_ROWS = made_up_scores().to_pylist()

PublishScores = Callable[..., str]


@pytest.fixture
def publish_scores(tmp_path: Path) -> PublishScores:
    def publish(name: str, rows: pa.Table, *, num_parts: int = 1, pool_fingerprint: str = "pool") -> str:
        out = locate(str(tmp_path / name))
        begin_run(out, {"by": "hand"})
        shuffled = rows.take(pa.array(random.Random(num_parts).sample(range(len(rows)), len(rows))))  # noqa: S311
        size = -(-len(rows) // num_parts)
        parts = [
            write_part(out, f"attempt-1/part-{i}.parquet", shuffled.slice(i * size, size)) for i in range(num_parts)
        ]
        record = {
            "kind": "scores",
            "bundle_id": "bundle",
            "pool_fingerprint": pool_fingerprint,
            "parts": [part.path for part in parts],
            "num_rows": len(rows),
            "num_scored": rows["error"].null_count,
        }
        publish_run(out, record)
        return out.uri

    return publish


@pytest.fixture
def scores(publish_scores: PublishScores) -> str:
    return publish_scores("scores", made_up_scores())


def select(scores: str, name: str = "selection", **options: Any) -> list[dict[str, Any]]:
    out = str(Path(scores).parent / name)
    select_samples(scores, out=out, options=SelectionOptions(**options), config={"scores": scores, **options})
    found = read_selection(locate(out))
    assert found.schema.equals(SELECTION)
    return found.to_pylist()


def record_of(scores: str, name: str = "selection", **options: Any) -> dict[str, Any]:
    out = str(Path(scores).parent / name)
    return select_samples(scores, out=out, options=SelectionOptions(**options), config={"scores": scores, **options})


def walk_down(budget: int, *, max_per_group: float = math.inf, excluded: frozenset[str] = frozenset()) -> list[str]:
    scored = [row for row in SCORES_ROWS if row["error"] is None and row["sample_id"] not in excluded]
    taken: list[str] = []
    counts = Counter[str]()
    for row in sorted(scored, key=lambda row: (-row["predicted_loss"], row["sample_id"])):
        if len(taken) < budget and (row["group"] is None or counts[row["group"]] < max_per_group):
            counts[row["group"]] += 1
            taken.append(row["sample_id"])
    return taken


def ids_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["sample_id"] for row in rows]


def test_the_highest_losses_are_selected(scores: str) -> None:
    rows = select(scores, budget=10)
    by_id = {row["sample_id"]: row for row in SCORES_ROWS}
    assert ids_of(rows) == walk_down(10)
    assert [row["rank"] for row in rows] == list(range(1, 11))
    for row in rows:
        origin = {name: by_id[row["sample_id"]][name] for name in ("predicted_loss", "group", "pool_file", "pool_row")}
        assert row == {**row, **origin, "reason": "loss", "expected_pck": None}


@pytest.mark.parametrize("max_per_group", [1, 2, 5])
@pytest.mark.parametrize("budget", [1, 7, 25, 1000])
def test_groups_are_capped(scores: str, budget: int, max_per_group: int) -> None:
    rows = select(scores, budget=budget, max_per_group=max_per_group)
    assert ids_of(rows) == walk_down(budget, max_per_group=max_per_group)


def test_a_budget_beyond_the_pool_takes_all_scored_rows(scores: str) -> None:
    record = record_of(scores, budget=1000)
    assert record["num_selected"] == record["num_scored"] == len(walk_down(1000))
    assert record["budget"] == 1000


@pytest.mark.parametrize("options", [{}, {"max_per_group": 3}, {"strategy": "random", "seed": 5}])
def test_the_selection_is_byte_identical_however_the_scores_lie(
    publish_scores: PublishScores, options: dict[str, Any]
) -> None:
    files = set()
    for num_parts in (1, 2, 5):
        scores = publish_scores(f"scores-{num_parts}", made_up_scores(), num_parts=num_parts)
        select(scores, name=f"selection-{num_parts}", budget=15, **options)
        files.add((Path(scores).parent / f"selection-{num_parts}" / SELECTION_FILE).read_bytes())
    assert len(files) == 1


def test_a_random_draw_depends_on_the_seed_alone(scores: str) -> None:
    draws = [
        ids_of(select(scores, name=f"s{i}", budget=12, strategy="random", seed=seed))
        for i, seed in enumerate([0, 0, 1])
    ]
    assert draws[0] == draws[1] != draws[2]
    assert set(draws[0]) <= set(walk_down(1000))
    assert len(set(draws[0])) == 12


def test_a_random_draw_says_so(scores: str) -> None:
    assert {row["reason"] for row in select(scores, budget=3, strategy="random")} == {"random"}


def test_a_random_draw_is_capped(scores: str) -> None:
    rows = select(scores, budget=1000, strategy="random", max_per_group=2)
    counts = Counter(row["group"] for row in rows)
    assert all(counts[group] == 2 for group in "abcd")


def test_a_larger_random_draw_begins_with_the_smaller(scores: str) -> None:
    few = select(scores, name="few", budget=5, strategy="random")
    many = select(scores, name="many", budget=20, strategy="random")
    assert ids_of(many)[:5] == ids_of(few)


def test_excluded_tables_and_earlier_selections_are_left_out(scores: str, write_table: WriteTable) -> None:
    rows = [{**row, "sample_id": sample_id} for row, sample_id in zip(plain_rows(4), walk_down(4), strict=True)]
    table = write_table("known", [*rows, *plain_rows(3, start=90)])
    without_table = select(scores, name="first", budget=6, exclude=(table,))
    assert ids_of(without_table) == walk_down(6, excluded=frozenset(walk_down(4)))
    earlier = str(Path(scores).parent / "first")
    record = record_of(scores, name="second", budget=6, exclude=(table, earlier))
    assert ids_of(read_selection(locate(str(Path(scores).parent / "second"))).to_pylist()) == walk_down(16)[10:]
    assert record["num_excluded_ids"] == 13


def test_excluding_everything_selects_nothing(scores: str, write_table: WriteTable) -> None:
    rows = [{"sample_id": row["sample_id"], "image": b""} for row in SCORES_ROWS]
    assert select(scores, budget=5, exclude=(write_table("all", rows),)) == []


def test_an_empty_selection_may_be_excluded_next_time(scores: str, write_table: WriteTable) -> None:
    rows = [{"sample_id": row["sample_id"], "image": b""} for row in SCORES_ROWS]
    select(scores, name="nothing", budget=5, exclude=(write_table("all", rows),))
    found = select(scores, budget=5, exclude=(str(Path(scores).parent / "nothing"),))
    assert ids_of(found) == walk_down(5)


def test_an_excluded_table_needs_ids(scores: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "names.parquet")
    with pytest.raises(InputError, match=r"names\.parquet: column 'sample_id': expected string, found no such column"):
        select(scores, budget=5, exclude=(str(tmp_path / "names.parquet"),))


def test_an_excluded_table_needs_to_be_readable(scores: str, write_table: WriteTable) -> None:
    """Its ids are unknown: they would be selected once more without a word."""
    table = write_table("known", plain_rows(3))
    (Path(table) / "z.parquet").touch()
    with pytest.raises(InputError, match=r"known: expected only readable files to exclude, found z\.parquet: empty"):
        select(scores, budget=5, exclude=(table,))
    assert not (Path(scores).parent / "selection").exists()


def test_an_unfinished_table_is_not_excluded_by_half(scores: str, tmp_path: Path) -> None:
    begin_run(locate(str(tmp_path / "known")), {})
    with pytest.raises(InputError, match="found an unfinished"):
        select(scores, budget=5, exclude=(str(tmp_path / "known"),))


def test_running_again_rewrites_nothing(scores: str) -> None:
    first = record_of(scores, budget=5)
    folder = Path(scores).parent / "selection"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert record_of(scores, budget=5) == {**first, "was_done": True}
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_other_options_are_another_run(scores: str) -> None:
    record_of(scores, budget=5)
    with pytest.raises(InputError, match=r"differing: budget \(was 5, is 6\)"):
        record_of(scores, budget=6)


def test_an_excluded_table_that_has_grown_is_another_run(scores: str, write_table: WriteTable) -> None:
    table = write_table("known/night=1", plain_rows(3))
    known = str(Path(table).parent)
    record_of(scores, budget=5, exclude=(known,))
    write_table("known/night=2", plain_rows(3, start=3))
    with pytest.raises(InputError, match="differing: excluded_fingerprints"):
        record_of(scores, budget=5, exclude=(known,))


def test_scores_of_another_pool_are_another_run(scores: str, publish_scores: PublishScores) -> None:
    record_of(scores, budget=5)
    (Path(scores) / "run.json").unlink()
    publish_scores("scores", made_up_scores(), pool_fingerprint="other")
    with pytest.raises(InputError, match=r"differing: pool_fingerprint \(was 'pool', is 'other'\)"):
        record_of(scores, budget=5)


def test_the_record_names_bundle_and_pool(scores: str) -> None:
    record = record_of(scores, budget=5)
    assert (record["kind"], record["bundle_id"], record["pool_fingerprint"]) == ("selection", "bundle", "pool")
    assert (record["strategy"], record["num_excluded_ids"]) == ("loss", 0)


def test_scores_without_a_scored_row_are_refused(publish_scores: PublishScores) -> None:
    scores = publish_scores("scores", scores_table([None, None]))
    with pytest.raises(InputError, match="expected at least one scored row, found 2 rows with errors"):
        record_of(scores, budget=5)
    assert not (Path(scores).parent / "selection").exists()


def test_unpublished_scores_are_refused(tmp_path: Path) -> None:
    begin_run(locate(str(tmp_path / "scores")), {})
    with pytest.raises(InputError, match="expected finished scores, found an unfinished run"):
        record_of(str(tmp_path / "scores"), budget=5)


def test_an_unpublished_selection_is_not_read(scores: str) -> None:
    select(scores, budget=5)
    (Path(scores).parent / "selection" / "run.json").unlink()
    with pytest.raises(InputError, match="expected finished selection, found an unfinished run"):
        read_selection(locate(str(Path(scores).parent / "selection")))
