"""Evaluation against numbers worked out by hand, and with a model whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from conftest import WriteTable
from torch import nn

from distributed.evaluation.evaluate import compare_arms, evaluate, evaluate_rows, summarise
from distributed.runs.record import begin_run, publish_run
from distributed.schema import SELECTION, labelled
from distributed.storage.location import locate
from distributed.tables.fleet import row_of
from distributed.tables.labelled import freeze_labelled
from model.bundle import Bundle
from model.errors import InputError
from model.pose_model import Prediction, make_spec
from model.skeleton import LSP
from model.synthetic import Sample

NAN, INF = float("nan"), float("inf")
SPEC = make_spec("hourglass-small", head="conv", skeleton=LSP)


class CentreModel(nn.Module):
    """Sees every keypoint at the middle of its crop; the brighter the crop, the higher the loss it predicts."""

    spec = SPEC
    embedding_dim = 1

    def forward(self, pixels: torch.Tensor) -> Prediction:
        heatmaps = torch.zeros(len(pixels), 1, 14, SPEC.heatmap_size, SPEC.heatmap_size)
        heatmaps[..., SPEC.heatmap_size // 2, SPEC.heatmap_size // 2] = 0.75
        return Prediction(heatmaps, pixels.float().mean(dim=(1, 2, 3)), torch.zeros(len(pixels), 1))


@pytest.fixture
def centre_bundle() -> Bundle:
    return Bundle(model=CentreModel(), bundle_id="centre")  # type: ignore[arg-type]


def grey_row(sample_id: str, *, level: int, centred: int) -> dict[str, Any]:
    """A grey image whose first `centred` keypoints beside the torso lie at the middle of its box, the others far off.

    The torso's four corners are half a diagonal away from it: they are missed.
    """
    keypoints = np.full((14, 2), 32.0)
    keypoints[[2, 3, 8, 9]] = [(16, 48), (48, 48), (16, 16), (48, 16)]
    others = [k for k in range(14) if k not in {2, 3, 8, 9}]
    keypoints[others[centred:]] = (60.0, 60.0)
    return {
        "sample_id": sample_id,
        "image": simplejpeg.encode_jpeg(np.full((64, 64, 3), level, np.uint8)),
        "box": [16, 16, 48, 48],
        "keypoints": keypoints.ravel(),
        "visibility": [2] * 14,
    }


def rows_of(bundle: Bundle, uri: str) -> pa.Table:
    return evaluate_rows(bundle, freeze_labelled(locate(uri), expected_keypoints=14), batch_size=2)


def test_a_known_model_gives_known_numbers(write_table: WriteTable, centre_bundle: Bundle) -> None:
    rows = [
        grey_row("a", level=10, centred=10),
        grey_row("b", level=200, centred=3),
        grey_row("c", level=90, centred=5),
    ]
    evaluated = rows_of(centre_bundle, write_table("labelled", rows, is_labelled=True))
    summary = summarise(evaluated, spec=SPEC)
    assert evaluated["sample_id"].to_pylist() == ["a", "b", "c"]
    assert summary["pck"] == pytest.approx((10 + 3 + 5) / 42, abs=1e-6)
    assert summary["spearman"]["predicted_loss"] == 1.0  # the brighter, the worse
    assert summary["spearman"]["confidence"] is None  # it is always 0.75
    assert summary["pck_of_worst"]["predicted_loss"] == pytest.approx(3 / 14, abs=1e-6)
    assert evaluated["confidence"].to_pylist() == [0.75] * 3
    np.testing.assert_allclose(evaluated["keypoints"][0].as_py(), 32, atol=1)


def test_unreadable_and_unlabelled_rows_stay_rows(write_table: WriteTable, centre_bundle: Bundle) -> None:
    rows = [grey_row(name, level=10, centred=10) for name in "abcd"]
    rows[1]["image"] = b""
    rows[2]["visibility"] = [0] * 14
    rows[3]["keypoints"] = None
    evaluated = rows_of(centre_bundle, write_table("labelled", rows, is_labelled=True))
    assert evaluated["error"].to_pylist() == [None, "empty", None, None]
    assert np.isnan(evaluated["true_loss"].to_numpy()).tolist() == [False, True, True, True]
    summary = summarise(evaluated, spec=SPEC)
    counts = {key: summary[key] for key in ("num_rows", "num_errors", "num_evaluated")}
    assert counts == {"num_rows": 4, "num_errors": 1, "num_evaluated": 1}
    assert summary["pck"] == pytest.approx(10 / 14, abs=1e-6)


def evaluated_table(rows: Sequence[tuple[str, float, float, float, str | None, list[float]]]) -> pa.Table:
    names = ("sample_id", "predicted_loss", "confidence", "true_loss", "error")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    schema = {"sample_id": pa.string(), "error": pa.string()}
    arrays = {name: pa.array(values, schema.get(name, pa.float32())) for name, values in columns.items()}
    return pa.table({**arrays, "distances": pa.array([row[5] for row in rows], pa.list_(pa.float32(), 2))})


# id, predicted loss, confidence, true loss, error, distances
HAND_MADE = evaluated_table(
    [
        ("a", 10, 0.9, 1, None, [0.1, 0.3]),
        ("b", 20, 0.8, 2, None, [0.1, 0.1]),
        ("c", 30, 0.7, 3, None, [0.1, NAN]),
        ("d", 50, 0.5, 4, None, [0.3, 0.3]),
        ("e", 40, 0.6, 5, None, [0.19, 0.5]),
        ("f", NAN, NAN, NAN, "undecodable", [INF, INF]),
        ("g", 60, 0.1, NAN, None, [NAN, NAN]),  # nothing labelled
    ]
)


def test_the_summary_is_what_it_is_by_hand() -> None:
    summary = summarise(HAND_MADE, spec=SPEC)
    assert summary["num_rows"] == 7
    assert summary["num_errors"] == 1
    assert summary["num_evaluated"] == 5
    assert summary["pck"] == pytest.approx(5 / 9, abs=1e-6)
    assert summary["mean_true_loss"] == 3.0
    # Ranks 1 2 3 5 4 against 1 2 3 4 5: 1 - 6 * (1 + 1) / (5 * 24).
    assert summary["spearman"] == {"predicted_loss": 0.9, "confidence": 0.9}
    # Deviations -20 -10 0 20 10 and -2 -1 0 1 2: 90 / sqrt(1000 * 10).
    assert summary["pearson"]["predicted_loss"] == 0.9
    assert summary["pck_of_worst"] == {"predicted_loss": 0.0, "confidence": 0.0, "oracle": 0.5}


def test_a_summary_of_nothing_has_no_numbers() -> None:
    summary = summarise(HAND_MADE.slice(5), spec=SPEC)
    assert summary["num_evaluated"] == 0
    for name in ("pck", "mean_true_loss"):
        assert summary[name] is None
    for name in ("spearman", "pearson", "pck_of_worst"):
        assert set(summary[name].values()) == {None}
    json.dumps(summary, allow_nan=False)


def selected(*ids: str) -> pa.Table:
    rows = [{"rank": rank, "sample_id": sample_id} for rank, sample_id in enumerate(ids, 1)]
    return pa.Table.from_pylist(rows, SELECTION)


def test_the_arms_are_what_they_are_by_hand() -> None:
    arms = compare_arms(HAND_MADE, selected("d", "e"))
    assert arms["num_selected"] == 2
    assert arms["pck_selected"] == 0.25
    assert arms["pck_all"] == pytest.approx(5 / 9, abs=1e-6)
    assert compare_arms(HAND_MADE.slice(0, 2), selected("a", "b"))["pck_random"] == 0.75


def test_an_unreadable_row_counts_in_no_arm() -> None:
    arms = compare_arms(HAND_MADE, selected("e", "f"))
    assert arms["pck_selected"] == 0.5


def test_a_selection_from_elsewhere_is_refused() -> None:
    with pytest.raises(InputError, match="--selection: expected its 2 ids in the labelled table, found 1"):
        compare_arms(HAND_MADE, selected("a", "elsewhere"))


@pytest.fixture
def table(write_table: WriteTable, samples: list[Sample]) -> str:
    return write_table("labelled", [row_of(sample) for sample in samples[:6]], is_labelled=True)


def test_a_published_evaluation_is_not_made_again(table: str, model_uri: str, tmp_path: Path) -> None:
    out = str(tmp_path / "metrics")
    first = evaluate(table, model=model_uri, out=out, config={"batch_size": 64})
    before = (tmp_path / "metrics" / "run.json").read_bytes()
    assert json.loads(before) == first
    assert evaluate(table, model=model_uri, out=out, config={"batch_size": 3}, batch_size=3) == {
        **first,
        "was_done": True,
    }
    assert (tmp_path / "metrics" / "run.json").read_bytes() == before


def test_the_metrics_name_bundle_and_bad_files(table: str, model_uri: str, bundle: Bundle) -> None:
    (Path(table) / "z.parquet").touch()
    metrics = evaluate(table, model=model_uri, config={})
    assert metrics["bundle_id"] == bundle.bundle_id
    assert metrics["bad_files"] == {"z.parquet": "empty file"}
    assert metrics["num_rows"] == 6


def test_a_selection_is_compared(table: str, model_uri: str, tmp_path: Path, samples: list[Sample]) -> None:
    out = locate(str(tmp_path / "selection"))
    begin_run(out, {})
    pq.write_table(selected(samples[0].sample_id, samples[3].sample_id), out.join("selection.parquet").path)
    publish_run(out, {"kind": "selection"})
    metrics = evaluate(table, model=model_uri, selection=out.uri, config={})
    assert metrics["selection"]["num_selected"] == 2


def test_a_table_of_another_skeleton_is_refused(tmp_path: Path, model_uri: str) -> None:
    (tmp_path / "mpii").mkdir()
    row = {"sample_id": "a", "image": b"", "keypoints": [0.0] * 32, "visibility": [2] * 16}
    pq.write_table(pa.Table.from_pylist([row], labelled(16)), tmp_path / "mpii" / "a.parquet")
    with pytest.raises(InputError, match=r"'keypoints': expected fixed_size_list<.*>\[28\], found .*\[32\]"):
        evaluate(str(tmp_path / "mpii"), model=model_uri, config={})
