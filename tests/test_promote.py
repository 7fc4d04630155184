"""Promotion: the pointer moves to what is no worse and to nothing else; no move is lost; one command goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import assert_one_line

import distributed.evaluation.promote as promotion
from distributed.evaluation.compare import SLICE_IMAGES, compare_rows
from distributed.evaluation.rows import Observed
from distributed.schema import labelled
from distributed.storage.bundles import write_bundle
from distributed.storage.champion import find_bundle, move_champion, read_champion
from distributed.storage.location import locate
from jobs.cli import main
from model.bundle import Bundle, dump_bundle
from model.errors import LeaseError
from model.pose_model import PoseModel, make_spec
from model.skeleton import COCO, LSP, Skeleton

K = LSP.num_keypoints
NUM_ROWS = 2 * SLICE_IMAGES
SCHEMA = pa.schema([*labelled(K), pa.field("light", pa.string())])

Right = Callable[[str], np.ndarray]  # a bundle's name -> (N,) keypoints right of each row


def judged(right: np.ndarray, *, is_error: np.ndarray | None = None) -> Observed:
    count = len(right)
    return Observed(
        predicted_loss=np.zeros(count),
        expected_pck=np.zeros(count),
        confidence=np.zeros(count),
        true_loss=np.zeros(count),
        is_error=np.zeros(count, bool) if is_error is None else is_error,
        num_right=right,
        num_judged=np.full(count, K),
    )


def test_the_interval_is_that_of_images_drawn_one_by_one() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, K + 1, 300), rng.integers(0, K + 1, 300)
    (found,) = compare_rows(judged(first), judged(second), columns={}, is_slice=False)
    draws = rng.integers(0, 300, (4000, 300))
    differences = (first[draws] - second[draws]).sum(axis=1) / (300 * K)
    assert found["interval"] == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.004)
    assert found["pck_difference"] == pytest.approx((first - second).mean() / K, abs=1e-6)


def test_images_are_paired_and_one_that_only_one_can_score_counts_against_the_other() -> None:
    right = np.arange(K)
    (same,) = compare_rows(judged(right), judged(right), columns={}, is_slice=False)
    assert (same["pck_difference"], same["interval"]) == (0, [0, 0])
    broken = np.arange(K) == K - 1
    (worse,) = compare_rows(judged(right, is_error=broken), judged(right), columns={}, is_slice=False)
    assert worse["pck_difference"] == pytest.approx(-(K - 1) / K**2, abs=1e-6)
    (neither,) = compare_rows(
        judged(right, is_error=broken), judged(right, is_error=broken), columns={}, is_slice=False
    )
    assert neither["num_images"] == K - 1


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Labelled rows r0000, r0001, …: those of even numbers by day, one more than half of them."""
    (tmp_path / "rows").mkdir()
    lights = ["day", "night"] * (NUM_ROWS // 2) + ["day"]
    table = [
        {
            "sample_id": f"r{i:04d}",
            "image": b"none",
            "keypoints": [0.0] * 2 * K,
            "visibility": [2] * K,
            "light": light,
        }
        for i, light in enumerate(lights)
    ]
    pq.write_table(pa.Table.from_pylist(table, SCHEMA), tmp_path / "rows" / "a.parquet")
    return str(tmp_path / "rows")


def make_bundle(place: Path, *, trained_on: tuple[str, ...] = (), skeleton: Skeleton = LSP) -> str:
    torch.manual_seed(0)
    model = PoseModel(make_spec("hourglass-small", method="ll++conv", skeleton=skeleton))
    write_bundle(locate(str(place)), dump_bundle(model, training={"name": place.name}, metrics={}))
    pq.write_table(pa.table({"sample_id": pa.array(trained_on, pa.string())}), place / "trained_ids.parquet")
    return str(place)


@pytest.fixture
def bundles(tmp_path: Path) -> dict[str, str]:
    return {name: make_bundle(tmp_path / name) for name in ("first", "better", "worse", "night-blind")}


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles have a known answer: how many keypoints are right says their name."""

    def evaluate_rows(bundle: Bundle, manifest: Any, **_: Any) -> pa.Table:
        count = manifest.num_rows
        right = np.full(count, {"first": 7, "better": 8, "worse": 6, "night-blind": 8}[bundle.training["name"]])
        if bundle.training["name"] == "night-blind":
            right[1::2] = 6
        distances = np.where(np.arange(K) < right[:, None], 0.1, 0.3).astype(np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(distances.ravel()), K)
        numbers = pa.array(np.linspace(0, 1, count))
        names = ("predicted_loss", "expected_pck", "confidence", "true_loss")
        columns = {**dict.fromkeys(names, numbers), "distances": lists, "head_distances": lists}
        return pa.table({**columns, "error": pa.nulls(count, pa.string())})

    monkeypatch.setattr(promotion, "evaluate_rows", evaluate_rows)


def run(pointer: Path, challenger: str, rows: str, *more: str) -> int:
    return main(["promote", "--champion", str(pointer), "--challenger", challenger, "--on", rows, *more])


def test_a_challenger_that_is_no_worse_takes_the_place_and_one_command_goes_back(
    bundles: dict[str, str], rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "models" / "champion.json"
    assert run(pointer, bundles["first"], rows) == 0
    assert "the first champion" in capsys.readouterr().out
    assert run(pointer, bundles["first"], rows) == 0
    assert "already the champion" in capsys.readouterr().out
    assert run(pointer, bundles["better"], rows, "--selection", rows) == 0
    assert "held-out: light: day" in (text := capsys.readouterr().out)
    assert "moved: " in text
    assert find_bundle(str(pointer)).path == bundles["better"]
    assert main(["promote", "--champion", str(pointer), "--back"]) == 0
    assert find_bundle(str(pointer)).path == bundles["first"]
    assert main(["promote", "--champion", str(pointer), "--back"]) == 2
    assert "expected a champion before" in capsys.readouterr().err
    history = json.loads(pointer.read_text())["history"]
    assert [(Path(move["bundle"]).name, move["why"]) for move in history] == [
        ("first", "promoted"),
        ("better", "promoted"),
        ("first", "rolled back"),
    ]
    record = json.loads((Path(history[1]["record"]) / "run.json").read_text())
    assert record["tables"]["selection"]["comparisons"][0]["margin"] == 0.03


def test_a_worse_challenger_is_refused_and_the_comparison_kept(
    bundles: dict[str, str], rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "champion.json"
    assert run(pointer, bundles["first"], rows) == 0
    before = pointer.read_bytes()
    for _ in range(2):
        assert run(pointer, bundles["worse"], rows) == 5
        assert f"held-out: all: the difference may be {-1 / K:.3f}, under -0.01" in capsys.readouterr().out
    assert pointer.read_bytes() == before
    assert len(list((tmp_path / "promotions").iterdir())) == 2  # of each challenger one


def test_one_slice_of_enough_images_refuses_and_a_smaller_one_does_not(
    bundles: dict[str, str], rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = tmp_path / "champion.json"
    assert run(pointer, bundles["first"], rows) == 0
    assert run(pointer, bundles["night-blind"], rows) == 5  # 200 rows of night, by 1/14 worse
    assert "held-out: light: night: the difference may be" in capsys.readouterr().out
    fewer = pq.read_table(rows).slice(0, NUM_ROWS - 1)
    pq.write_table(fewer, tmp_path / "fewer.parquet")
    assert run(pointer, bundles["night-blind"], str(tmp_path / "fewer.parquet")) == 0


def test_a_pointer_that_somebody_else_moves_meanwhile_stays_theirs(
    bundles: dict[str, str],
    rows: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pointer = locate(str(tmp_path / "champion.json"))
    assert run(tmp_path / "champion.json", bundles["first"], rows) == 0
    evaluate = promotion.evaluate_rows

    def and_meanwhile(*arguments: Any, **options: Any) -> pa.Table:
        monkeypatch.setattr(promotion, "evaluate_rows", evaluate)
        theirs = locate(bundles["worse"])
        move = {"bundle": theirs, "bundle_id": "0", "why": "promoted", "record": None}
        move_champion(pointer, read_champion(pointer), **move)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(promotion, "evaluate_rows", and_meanwhile)
    assert run(tmp_path / "champion.json", bundles["better"], rows) == 4
    assert "somebody else moved it meanwhile" in capsys.readouterr().err
    found = read_champion(pointer)
    assert found is not None
    assert [Path(move["bundle"]).name for move in found.history] == ["first", "worse"]


@pytest.mark.s3
def test_a_pointer_in_a_store_moves_back_and_loses_no_move(bundles: dict[str, str], rows: str, s3_uri: str) -> None:
    pointer = locate(f"{s3_uri}/promote/champion.json")
    on = ["promote", "--champion", pointer.uri, "--on", rows]
    assert main([*on, "--challenger", bundles["first"]]) == 0
    stale = read_champion(pointer)
    assert main([*on, "--challenger", bundles["better"]]) == 0
    with pytest.raises(LeaseError, match="somebody else moved it meanwhile"):
        move_champion(pointer, stale, bundle=locate(bundles["worse"]), bundle_id="0", why="promoted", record=None)
    assert find_bundle(pointer.uri).path == bundles["better"]
    assert main(["promote", "--champion", pointer.uri, "--back"]) == 0
    assert find_bundle(pointer.uri).path == bundles["first"]
    found = read_champion(pointer)
    assert found is not None
    assert [move["why"] for move in found.history] == ["promoted", "promoted", "rolled back"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("trained", "expected rows that are not trained on, found 1 of .*: \\['r0007'\\]"),
        ("skeleton", "expected the champion's skeleton 'lsp' of 14 keypoints, found 'coco' of 17"),
        ("empty", "no row|no file|expected"),
        ("folder", "expected the pointer to a champion, a file, found a folder"),
        ("foreign", "expected the pointer to a champion, found another file"),
        ("replaced", "expected the bundle .*, found .*: each bundle needs a place of its own"),
        ("both", "--back: expected --champion alone, found --challenger, --on"),
        ("nothing", "expected --challenger and --on, or --back, found neither"),
    ],
)
def test_bad_input_is_one_line_and_the_pointer_stays(
    bundles: dict[str, str],
    rows: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    message: str,
) -> None:
    pointer, challenger, arguments = tmp_path / "champion.json", bundles["better"], []
    assert run(pointer, bundles["first"], rows) == 0
    match case:
        case "trained":
            make_bundle(tmp_path / "first", trained_on=("x", "r0007"))
        case "skeleton":
            challenger = make_bundle(tmp_path / "coco", skeleton=COCO)
        case "empty":
            rows = str(tmp_path / "empty.parquet")
            pq.write_table(SCHEMA.empty_table(), rows)
        case "folder":
            pointer = tmp_path
        case "foreign":
            pointer = tmp_path / "first" / "bundle.json"
        case "replaced":
            write_bundle(locate(bundles["first"]), {"bundle.json": b"{}"})
        case "both":
            arguments = ["--back"]
    before = pointer.read_bytes() if pointer.is_file() else None
    if case == "nothing":
        assert main(["promote", "--champion", str(pointer)]) == 2
    else:
        assert run(pointer, challenger, rows, *arguments) == 2
    assert_one_line(capsys, message)
    assert before == (pointer.read_bytes() if pointer.is_file() else None)
