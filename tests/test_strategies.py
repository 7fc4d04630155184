"""Strategies on published scores: each against its kernel on the whole table, and what to expect of a selection."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import publish_scores, scores_table

from distributed.selection.diversity import load_shard
from distributed.selection.k_centre import k_centre
from distributed.selection.select import read_selection, select_samples
from distributed.selection.strategies import SelectionOptions
from distributed.storage.location import locate
from jobs.select import main
from model.calibration import Calibration
from model.errors import InputError

NUM_ROWS, DIM = 200, 4
CALIBRATION = Calibration(
    predicted_loss=(0.0, 1.0), true_loss=(0.1, 0.2), pck=(1.0, 0.0), failure_share=(0.0, 1.0), num_images=100
)


def made_up(*, with_embeddings: bool = True) -> pa.Table:
    """200 rows in 20 groups; a tenth has failed and has no embedding."""
    rng = np.random.default_rng(0)
    losses = [None if row % 10 == 9 else float(rng.random()) for row in range(NUM_ROWS)]
    rows = scores_table(losses, group=[f"g{row // 10}" for row in range(NUM_ROWS)])
    if not with_embeddings:
        return rows
    points = (rng.normal(size=(NUM_ROWS // 2, DIM)).repeat(2, axis=0) + rng.normal(size=(NUM_ROWS, DIM)) / 50).tolist()
    vectors = [None if loss is None else point for loss, point in zip(losses, points, strict=True)]
    return rows.append_column("embedding", pa.array(vectors, pa.list_(pa.float16(), DIM)))


ROWS = made_up()


def publish(folder: Path, rows: pa.Table, *, num_parts: int = 3, calibration: Calibration | None = None) -> str:
    if calibration:
        expected = calibration.expected_pck(rows["predicted_loss"].to_numpy())
        index = rows.schema.get_field_index("expected_pck")
        rows = rows.set_column(index, "expected_pck", pa.array(expected, pa.float32(), from_pandas=True))
    said = calibration and dataclasses.asdict(calibration)
    return publish_scores(folder, rows, num_parts=num_parts, calibration=said)


def select(scores: str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = str(Path(scores).parent / "selection")
    record = select_samples(scores, out=out, options=SelectionOptions(**options), config={})
    return read_selection(locate(out)).to_pylist(), record


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["sample_id"] for row in rows]


@pytest.mark.parametrize("num_parts", [1, 3, 40])
def test_coreset_picks_what_the_kernel_picks_from_the_whole_table(tmp_path: Path, num_parts: int) -> None:
    rows, _ = select(publish(tmp_path / "scores", ROWS, num_parts=num_parts), budget=25, strategy="coreset")
    assert ids(rows) == k_centre([load_shard(lambda: ROWS)], k=25).keys
    assert {row["reason"] for row in rows} == {"diverse"}


def test_a_sample_of_several_tables_is_picked_once_by_coreset_with_its_highest_loss(tmp_path: Path) -> None:
    shifted = ROWS.set_column(
        ROWS.schema.get_field_index("embedding"),
        "embedding",
        pa.array(
            [None if row is None else [x + 5 for x in row] for row in ROWS["embedding"].to_pylist()],
            pa.list_(pa.float16(), DIM),
        ),
    )
    halved = shifted.set_column(
        ROWS.schema.get_field_index("predicted_loss"),
        "predicted_loss",
        pa.array([None if loss is None else loss / 2 for loss in ROWS["predicted_loss"].to_pylist()], pa.float32()),
    )
    both = [publish(tmp_path / "scores", ROWS), publish(tmp_path / "more", halved.slice(0, 150))]
    out = locate(str(tmp_path / "selection"))
    options = SelectionOptions(budget=NUM_ROWS, strategy="coreset")
    for uris in (both, both[::-1]):
        select_samples(uris, out=out.uri, options=options, config={})
        rows = read_selection(out).to_pylist()
        Path(out.path).rename(tmp_path / f"done-{len(list(tmp_path.iterdir()))}")
        losses = dict(zip(ROWS["sample_id"].to_pylist(), ROWS["predicted_loss"].to_pylist(), strict=True))
        assert len(rows) == len(set(ids(rows))) == NUM_ROWS - NUM_ROWS // 10
        assert all(row["predicted_loss"] == losses[row["sample_id"]] for row in rows)


def test_what_is_excluded_is_a_centre_of_coreset(tmp_path: Path) -> None:
    scores = publish(tmp_path / "scores", ROWS)
    first, _ = select(scores, budget=10, strategy="coreset")
    (tmp_path / "selection").rename(tmp_path / "earlier")
    second, _ = select(scores, budget=10, strategy="coreset", exclude=(str(tmp_path / "earlier"),))
    (tmp_path / "selection").rename(tmp_path / "later")
    both, _ = select(scores, budget=20, strategy="coreset")
    assert [*ids(first), *ids(second)] == ids(both)


def test_hybrid_without_diversity_is_loss_order_and_with_it_is_not(tmp_path: Path) -> None:
    scores = publish(tmp_path / "scores", ROWS)
    found = {}
    for name, options in {
        "loss": {},
        "none": {"strategy": "hybrid", "diversity": 0.0},
        "some": {"strategy": "hybrid", "diversity": 0.5, "max_per_group": 3},
    }.items():
        found[name], _ = select(scores, budget=30, **options)
        (tmp_path / "selection").rename(tmp_path / name)
    assert ids(found["none"]) == ids(found["loss"])
    assert ids(found["some"]) != ids(found["loss"])
    assert {row["reason"] for row in found["some"]} == {"loss", "diverse"}
    groups = [row["group"] for row in found["some"]]
    assert max(groups.count(group) for group in groups) == 3


def test_near_duplicates_are_passed_over_in_loss_order(tmp_path: Path) -> None:
    """Rows 2i and 2i + 1 lie within 0.3 of each other, and all others farther apart than that."""
    rows, _ = select(publish(tmp_path / "scores", ROWS), budget=NUM_ROWS, min_distance=0.3)
    numbers = [int(sample_id[1:]) for sample_id in ids(rows)]
    assert len({number // 2 for number in numbers}) == len(numbers) >= 80
    assert [row["predicted_loss"] for row in rows] == sorted((row["predicted_loss"] for row in rows), reverse=True)


def test_a_control_arm_stands_beside_every_strategy(tmp_path: Path) -> None:
    scores = publish(tmp_path / "scores", ROWS)
    for strategy in ("loss", "coreset", "hybrid"):
        rows, record = select(scores, budget=20, strategy=strategy, control_share=0.25)
        (tmp_path / "selection").rename(tmp_path / strategy)
        assert [row["reason"] for row in rows[15:]] == ["control"] * 5
        assert len(set(ids(rows))) == 20
        assert record["num_by_reason"]["control"] == 5


@pytest.mark.parametrize("options", [{"strategy": "coreset"}, {"strategy": "hybrid"}, {"min_distance": 0.1}])
def test_scores_without_embeddings_are_refused_and_it_says_how_to_get_them(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    scores = publish(tmp_path / "scores", made_up(with_embeddings=False))
    with pytest.raises(InputError, match=r"column 'embedding': expected one, found none: score the pool with --embedd"):
        select(scores, budget=5, **options)
    assert not (tmp_path / "selection").exists()


def test_a_calibrated_bundle_says_what_to_expect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = publish(tmp_path / "scores", ROWS, calibration=CALIBRATION)
    rows, record = select(scores, budget=50)
    assert all(row["expected_pck"] == pytest.approx(1 - row["predicted_loss"], abs=1e-6) for row in rows)
    assert record["expected_failures"] == pytest.approx(sum(row["predicted_loss"] for row in rows), abs=0.06)
    everywhere = float(np.mean(ROWS["predicted_loss"].drop_null().to_numpy()))
    assert record["expected_failures_at_random"] == pytest.approx(50 * everywhere, rel=0.02)
    assert main(["--scores", scores, "--out", str(tmp_path / "again"), "--budget", "50"]) == 0
    said = capsys.readouterr().out
    assert "are expected below PCK 0.5; a random draw of as many would hold" in said


def test_without_a_calibration_nothing_is_expected(tmp_path: Path) -> None:
    rows, record = select(publish(tmp_path / "scores", ROWS), budget=5)
    assert {row["expected_pck"] for row in rows} == {None}
    assert record["expected_failures"] is None
