"""Selections against sorting everything and walking down; the same bytes however the scores lie."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import conftest
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import WriteTable, assert_one_line, plain_rows, scores_table

from distributed.options import parse_budget
from distributed.runs.record import begin_run
from distributed.schema import SELECTION
from distributed.selection.select import SELECTION_FILE, SelectionOptions, read_selection, select_samples
from distributed.storage.location import locate
from jobs.select import main
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
    """Publishes scores below a folder, their rows in an order of chance, without footers in run.json, as of old."""

    def publish(name: str, rows: pa.Table, *, num_parts: int = 1, **record: Any) -> str:
        shuffled = rows.take(pa.array(random.Random(num_parts).sample(range(len(rows)), len(rows))))  # noqa: S311
        record = {"part_footers": [], **record}
        return conftest.publish_scores(tmp_path / name, shuffled, num_parts=num_parts, **record)

    return publish


@pytest.fixture
def scores(publish_scores: PublishScores) -> str:
    return publish_scores("scores", made_up_scores())


def select(scores: str, name: str = "selection", **options: Any) -> list[dict[str, Any]]:
    record_of(scores, name, **options)
    found = read_selection(locate(str(Path(scores).parent / name)))
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


def reasons(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["reason"] for row in rows)


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


@pytest.mark.parametrize(("budget", "max_per_group"), [(1, 1), (7, 2), (25, 5), (1000, 1)])
def test_groups_are_capped(scores: str, budget: int, max_per_group: int) -> None:
    rows = select(scores, budget=budget, max_per_group=max_per_group)
    assert ids_of(rows) == walk_down(budget, max_per_group=max_per_group)


def test_a_budget_beyond_the_pool_takes_all_scored_rows(scores: str) -> None:
    record = record_of(scores, budget=1000)
    assert record["num_selected"] == record["num_scored"] == len(walk_down(1000))
    assert record["budget"] == 1000


@pytest.mark.parametrize("row_group_rows", [7, 32_768])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_per_group": 3},
        {"strategy": "random", "seed": 5},
        {"control_share": 0.3, "max_per_group": 2, "where": "confidence > 0", "max_loss": 0.9},
    ],
)
def test_the_selection_is_byte_identical_however_the_scores_lie(
    publish_scores: PublishScores, options: dict[str, Any], row_group_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = set()
    for num_parts in (1, 2, 5):
        scores = publish_scores(f"scores-{num_parts}", made_up_scores(), num_parts=num_parts)
        monkeypatch.setattr("distributed.tables.scores.ROW_GROUP_ROWS", row_group_rows)
        select(scores, name=f"selection-{num_parts}", budget=15, **options)
        files.add((Path(scores).parent / f"selection-{num_parts}" / SELECTION_FILE).read_bytes())
    assert len(files) == 1


def test_a_random_draw_depends_on_the_seed_alone(scores: str) -> None:
    draws = [
        select(scores, name=f"s{i}", budget=budget, strategy="random", seed=seed)
        for i, (budget, seed) in enumerate([(12, 0), (20, 0), (12, 1)])
    ]
    assert ids_of(draws[0]) == ids_of(draws[1])[:12] != ids_of(draws[2])
    assert set(ids_of(draws[1])) <= set(walk_down(1000))
    assert len(set(ids_of(draws[1]))) == 20
    assert reasons(draws[0]) == {"random": 12}
    capped = Counter(row["group"] for row in select(scores, budget=1000, strategy="random", max_per_group=2))
    assert all(capped[group] == 2 for group in "abcd")


def test_excluded_tables_and_earlier_selections_are_left_out(scores: str, write_table: WriteTable) -> None:
    rows = [{**row, "sample_id": sample_id} for row, sample_id in zip(plain_rows(4), walk_down(4), strict=True)]
    table = write_table("known", [*rows, *plain_rows(3, start=90)])
    without_table = select(scores, name="first", budget=6, exclude=(table,))
    assert ids_of(without_table) == walk_down(6, excluded=frozenset(walk_down(4)))
    earlier = str(Path(scores).parent / "first")
    record = record_of(scores, name="second", budget=6, exclude=(table, earlier))
    assert ids_of(read_selection(locate(str(Path(scores).parent / "second"))).to_pylist()) == walk_down(16)[10:]
    assert record["num_excluded_ids"] == 13
    assert record["num_by_reason"] == {"loss": 6}


def test_ids_of_a_csv_are_left_out(scores: str, tmp_path: Path) -> None:
    table = tmp_path / "labelled.csv"
    table.write_text("rank,sample_id\n" + "".join(f"{i},{each}\n" for i, each in enumerate(walk_down(4))))
    found = select(scores, budget=6, exclude=(str(table),))
    assert ids_of(found) == walk_down(6, excluded=frozenset(walk_down(4)))


def test_an_empty_selection_may_be_excluded_next_time(scores: str, write_table: WriteTable) -> None:
    rows = [{"sample_id": row["sample_id"], "image": b""} for row in SCORES_ROWS]
    assert select(scores, name="nothing", budget=5, exclude=(write_table("all", rows),)) == []
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


def test_running_again_rewrites_nothing_and_other_options_are_refused(scores: str) -> None:
    first = record_of(scores, budget=5)
    assert (first["kind"], first["bundle_id"], first["pool_fingerprint"]) == ("selection", "bundle", "pool")
    assert (first["strategy"], first["num_excluded_ids"]) == ("loss", 0)
    folder = Path(scores).parent / "selection"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert record_of(scores, budget=5) == {**first, "was_done": True}
    with pytest.raises(InputError, match=r"differing: budget \(was 5, is 6\)"):
        record_of(scores, budget=6)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_an_excluded_table_that_has_grown_is_another_run(scores: str, write_table: WriteTable) -> None:
    table = write_table("known/night=1", plain_rows(3))
    known = str(Path(table).parent)
    record_of(scores, budget=5, exclude=(known,))
    write_table("known/night=2", plain_rows(3, start=3))
    with pytest.raises(InputError, match="differing: excluded_fingerprints"):
        record_of(scores, budget=5, exclude=(known,))


def test_a_selection_takes_no_other_outputs_place(scores: str) -> None:
    before = sorted(Path(scores).rglob("*"))
    with pytest.raises(InputError, match=r"scores: expected selection or an empty folder, found another output"):
        select_samples(scores, out=scores, options=SelectionOptions(budget=3), config={"budget": 3})
    assert sorted(Path(scores).rglob("*")) == before


def test_scores_of_another_pool_are_another_run(scores: str, publish_scores: PublishScores) -> None:
    record_of(scores, budget=5)
    (Path(scores) / "run.json").unlink()
    publish_scores("scores", made_up_scores(), pool_fingerprint="other")
    with pytest.raises(InputError, match=r"differing: pool_fingerprint \(was 'pool', is 'other'\)"):
        record_of(scores, budget=5)


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


def test_a_control_arm_is_drawn_from_what_the_strategy_left(scores: str) -> None:
    rows = select(scores, budget=20, control_share=0.25, seed=2)
    assert ids_of(rows)[:15] == walk_down(15)
    assert [row["reason"] for row in rows] == ["loss"] * 15 + ["control"] * 5
    draw = ids_of(select(scores, name="draw", budget=1000, strategy="random", seed=2))
    assert ids_of(rows)[15:] == [sample_id for sample_id in draw if sample_id not in walk_down(15)][:5]


@pytest.mark.parametrize(
    ("budget", "share", "expected"), [(10, 0.05, 1), (10, 0.04, 0), (9, 0.5, 5), (30, 0.05, 2), (7, 1, 7), (1, 0.5, 1)]
)
def test_the_control_share_is_rounded_to_the_nearest_row(scores: str, budget: int, share: float, expected: int) -> None:
    assert reasons(select(scores, budget=budget, control_share=share))["control"] == expected


@pytest.mark.parametrize("max_per_group", [1, 2, 4])
def test_caps_count_both_arms_together(scores: str, max_per_group: int) -> None:
    rows = select(scores, budget=24, control_share=0.5, max_per_group=max_per_group)
    counts = Counter(row["group"] for row in rows if row["group"] is not None)
    assert max(counts.values()) <= max_per_group
    loss = [row["sample_id"] for row in rows if row["reason"] == "loss"]
    assert loss == walk_down(len(loss), max_per_group=max_per_group)
    assert len({row["sample_id"] for row in rows}) == len(rows)


def test_where_caps_leave_less_than_the_budget_the_control_arm_keeps_its_share(scores: str) -> None:
    most = len(walk_down(1000, max_per_group=1))
    rows = select(scores, budget=1000, control_share=0.25, max_per_group=1)
    assert len(rows) == most
    assert reasons(rows)["control"] == int(most * 0.25 + 0.5)
    everything = select(scores, name="all", budget=1000, control_share=0.1)
    assert sorted(ids_of(everything)) == sorted(walk_down(1000))
    assert reasons(everything)["control"] == int(len(everything) * 0.1 + 0.5)


def test_bounds_of_the_loss_hold_for_the_strategy_and_not_for_the_control_arm(scores: str) -> None:
    by_id = {row["sample_id"]: row["predicted_loss"] for row in SCORES_ROWS}
    rows = select(scores, budget=40, control_share=0.5, min_loss=0.5, max_loss=0.9)
    bounded = [sample_id for sample_id in walk_down(1000) if 0.5 <= by_id[sample_id] <= 0.9]
    assert [row["sample_id"] for row in rows if row["reason"] == "loss"] == bounded[:20]
    control = [row["predicted_loss"] for row in rows if row["reason"] == "control"]
    assert len(control) == 20
    assert min(control) < 0.5


def test_a_condition_and_exclusions_hold_for_both_arms(scores: str, write_table: WriteTable) -> None:
    known = write_table("known", [{"sample_id": sample_id, "image": b""} for sample_id in walk_down(1000)[::2]])
    rows = select(scores, budget=1000, control_share=0.5, where="group in ('a', 'b')", exclude=(known,))
    wanted = {row["sample_id"] for row in SCORES_ROWS if row["group"] in ("a", "b")}
    assert set(ids_of(rows)) == wanted & set(walk_down(1000)[1::2])
    assert reasons(rows)["control"] > 0


def test_a_share_counts_the_rows_that_could_be_selected(scores: str, write_table: WriteTable) -> None:
    num_scored = len(walk_down(1000))
    record = record_of(scores, budget="10%")
    assert (record["num_eligible"], record["budget"]) == (num_scored, num_scored // 10)
    assert record_of(scores, name="least", budget="0.0001%")["num_selected"] == 1
    known = write_table("known", [{"sample_id": row["sample_id"], "image": b""} for row in SCORES_ROWS[:30]])
    record = record_of(scores, name="b", budget="50%", exclude=(known,), min_loss=0.5, where="group != 'a'")
    expected = [
        row
        for row in SCORES_ROWS[30:]
        if row["error"] is None and row["predicted_loss"] >= 0.5 and row["group"] not in (None, "a")
    ]
    assert (record["num_eligible"], record["num_selected"]) == (len(expected), len(expected) // 2)


def test_several_tables_are_ranked_together_and_a_sample_counts_once(publish_scores: PublishScores) -> None:
    losses: list[float | None] = [0.1, 0.2, 0.3, 0.4]
    night1 = publish_scores("night1", scores_table(losses, group=list("aabb")), pool_fingerprint="one")
    again = scores_table([0.15, 0.9, None, 0.05], sample_id=["a0009", "a0001", "a0003", "a0000"], group=list("aaba"))
    night2 = publish_scores("night2", again, pool_fingerprint="two")
    out = str(Path(night1).parent / "selection")
    found = []
    for number, tables in enumerate([(night1, night2), (night2, night1), (night1, night2, night1)]):
        options = SelectionOptions(budget=9)
        record = select_samples(tables, out=f"{out}{number}", options=options, config={})
        found.append((Path(f"{out}{number}") / SELECTION_FILE).read_bytes())
    rows = read_selection(locate(f"{out}0")).to_pylist()
    assert ids_of(rows) == ["a0001", "a0003", "a0002", "a0009", "a0000"]
    assert len(set(found)) == 1
    assert (record["bundle_id"], record["pool_fingerprint"]) == ("bundle", "one,two")


def test_scores_of_two_bundles_are_mixed_only_where_asked_to(publish_scores: PublishScores) -> None:
    tables = (
        publish_scores("old", scores_table([0.1, 0.2]), bundle_id="first"),
        publish_scores("new", scores_table([0.3, 0.4]), bundle_id="second"),
    )
    out = str(Path(tables[0]).parent / "selection")
    with pytest.raises(InputError, match=r"expected scores of one bundle, found first in .*old, second in .*new: "):
        select_samples(tables, out=out, options=SelectionOptions(budget=2), config={})
    record = select_samples(tables, out=out, options=SelectionOptions(budget=9), allow_mixed=True, config={})
    assert (record["bundle_id"], record["num_selected"]) == ("first,second", 2)


def test_tables_that_contradict_each_other_about_a_group_are_refused_under_a_cap(
    publish_scores: PublishScores,
) -> None:
    tables = tuple(publish_scores(name, scores_table([0.1, 0.2], group=[name] * 2)) for name in ("x", "y"))
    out = str(Path(tables[0]).parent / "selection")
    assert select_samples(tables, out=f"{out}1", options=SelectionOptions(budget=9), config={})["num_selected"] == 2
    with pytest.raises(InputError, match="expected one group and one captured_at a sample, found several of 'a000"):
        select_samples(tables, out=out, options=SelectionOptions(budget=9, max_per_group=5), config={})


def test_parts_that_no_run_published_are_not_read_and_counted(publish_scores: PublishScores) -> None:
    scores = publish_scores("scores", made_up_scores(), superseded=("parts/old.parquet",))
    parts = Path(scores) / "parts"
    for name in ("old", "unfinished"):
        pq.write_table(scores_table([1e9]), parts / f"{name}.parquet")
    record = record_of(scores, budget=10)
    assert record["num_uncommitted_parts"] == 1
    assert ids_of(read_selection(locate(str(Path(scores).parent / "selection"))).to_pylist()) == walk_down(10)


def test_a_cap_that_caps_nothing_is_warned_about(
    publish_scores: PublishScores, caplog: pytest.LogCaptureFixture
) -> None:
    scores = publish_scores("ungrouped", scores_table([0.1, 0.2, 0.3]))
    select(scores, budget=2, max_per_group=1)
    assert [record.getMessage() for record in caplog.records] == [
        "--max-per-group 1 capped nothing: no selected row has a group"
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "0"], "--budget: expected a number greater than or equal to 1, or a share"),
        (["--budget", "150%"], "--budget: expected a number .* or a share over 0% up to 100%, found '150%'"),
        (["--control-share", "1.5"], "--control-share: .*less than or equal to 1, found '1.5'"),
        (["--control-share", "-0.1"], "--control-share: .*greater than or equal to 0"),
        (["--control-share", "nan"], "--control-share: "),
        (["--min-distance", "inf"], "--min-distance: .*finite"),
        (["--control-share", "0.1", "--strategy", "random"], "--control-share: expected none with --strategy random"),
        (["--min-distance", "0.1", "--strategy", "random"], "--min-distance: expected none with --strategy random"),
        (["--min-loss", "2", "--max-loss", "1"], "--min-loss: expected at most --max-loss 1, found 2"),
        (["--where", "camera == 'front'"], "--where camera == 'front': expected a column"),
    ],
)
def test_options_that_make_no_sense_are_refused_and_nothing_is_written(
    scores: str, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(scores).parent / "selection"
    assert run("--scores", scores, "--out", out, "--budget", 5, *flags) == 2
    assert_one_line(capsys, message)
    assert not out.exists()


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_says_what_was_selected(
    scores: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_table: WriteTable
) -> None:
    num_scored = len(walk_down(1000))
    base = ("--scores", scores, "--seed", 1)
    assert run(*base, "--out", tmp_path / "a", "--budget", 10, "--control-share", 0.2) == 0
    assert f"10 selected of {num_scored} scored: 8 loss, 2 control" in capsys.readouterr().out
    assert run(*base, "--out", tmp_path / "b", "--budget", "10%", "--where", "group == 'a'") == 0
    num_a = sum(row["group"] == "a" and row["error"] is None for row in SCORES_ROWS)
    out = capsys.readouterr().out
    assert f"the budget is 10% of {num_a} that could be: {max(1, num_a // 10)}\n" in out
    known = [write_table(name, plain_rows(3, start=start)) for name, start in (("x", 0), ("y", 3))]
    arguments = ("--out", tmp_path / "c", "--budget", 999, "--exclude", known[0], "--exclude", known[1])
    assert run(*base, *arguments, "--exclude", tmp_path / "a") == 0
    assert (
        f"the budget is 999: caps, gaps, exclusions, conditions and the pool leave no more than {num_scored - 10}"
        in (capsys.readouterr().out)
    )


def test_the_command_takes_several_tables_by_repeating_the_flag_or_from_a_file(
    publish_scores: PublishScores, tmp_path: Path
) -> None:
    tables = [publish_scores(name, scores_table([0.1, 0.2]), bundle_id=name) for name in ("one", "two")]
    flags = [part for table in tables for part in ("--scores", table)]
    assert run(*flags, "--out", tmp_path / "a", "--budget", 1) == 2
    assert run(*flags, "--out", tmp_path / "a", "--budget", 1, "--allow-mixed") == 0
    config = tmp_path / "select.yaml"
    config.write_text(f"scores: {tables[0]}\nbudget: 50%\nmin-loss: 0.15\n")
    assert run("--config", config, "--out", tmp_path / "b") == 0
    assert len(read_selection(locate(str(tmp_path / "b")))) == 1


@pytest.mark.parametrize("budget", ["0", "-3", "0%", "101%", "5 percent", "1e3", "nan%", "%", "5%%", "", "2.5", "٣"])
def test_a_nonsense_budget_is_one_line(budget: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--scores", "s", "--out", "o", f"--budget={budget}") == 2
    assert_one_line(capsys, "--budget: .*expected a number greater than or equal to 1, or a share over 0% up to 100%")


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("7", 7),
        ("5%", Fraction(1, 20)),
        ("12.5 %", Fraction(1, 8)),
        ("100%", Fraction(1)),
        ("0.01%", Fraction(1, 10_000)),
    ],
)
def test_a_budget_is_rows_or_an_exact_share(text: str, budget: int | Fraction) -> None:
    assert parse_budget(text) == budget
    assert type(parse_budget(text)) is type(budget)
