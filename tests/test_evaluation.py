"""Evaluation against numbers worked out by hand, and with a model whose answers are known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from conftest import WriteTable
from torch import nn

from distributed.evaluation import evaluate as module
from distributed.evaluation.evaluate import PLOT_FILE
from distributed.evaluation.options import EvaluateOptions
from distributed.evaluation.rows import evaluate_rows, observed
from distributed.evaluation.summary import summarise
from distributed.ingest.fleet import row_of
from distributed.runs.record import begin_run, publish_run
from distributed.schema import SELECTION, labelled
from distributed.storage.bundles import write_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from model.bundle import Bundle, dump_bundle
from model.calibration import Calibration
from model.errors import InputError
from model.pose_model import Prediction, make_spec
from model.skeleton import LSP
from model.synthetic import Sample

SPEC = make_spec("hourglass-small", method="ll++conv", skeleton=LSP)


def evaluate(labelled: str, **options: Any) -> dict[str, Any]:
    return module.evaluate(EvaluateOptions(labelled=labelled, **options))


class CentreModel(nn.Module):
    """Sees every keypoint at the middle of its crop; the brighter the crop, the higher the loss it predicts."""

    spec = SPEC
    embedding_dim = 1

    def forward(self, pixels: torch.Tensor) -> Prediction:
        heatmaps = torch.zeros(len(pixels), 1, 14, SPEC.heatmap_size, SPEC.heatmap_size)
        heatmaps[..., SPEC.heatmap_size // 2, SPEC.heatmap_size // 2] = 0.75
        return Prediction(
            heatmaps,
            pixels.float().mean(dim=(1, 2, 3)),
            torch.full((len(pixels), 14), torch.nan),
            torch.zeros(len(pixels), 1),
        )


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
    return evaluate_rows(bundle, freeze_labelled(locate(uri), skeleton=LSP), batch_size=2)


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
    assert summary["pck_per_keypoint"]["left_hip"] == 0.0
    assert summary["pck_per_keypoint"]["right_ankle"] == 1.0
    assert summary["pck_per_keypoint"]["head_top"] == pytest.approx(1 / 3, abs=1e-6)
    # Neck and head top lie on one point or far from each other: of a and c alone no head has a length.
    assert summary["pckh_per_keypoint"]["right_ankle"] is None
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


@pytest.fixture
def table(write_table: WriteTable, samples: list[Sample]) -> str:
    return write_table("labelled", [row_of(sample) for sample in samples[:6]], is_labelled=True)


def test_a_published_evaluation_is_not_made_again(table: str, model_uri: str, tmp_path: Path) -> None:
    out = str(tmp_path / "metrics")
    first = evaluate(table, model=model_uri, out=out)
    before = (tmp_path / "metrics" / "run.json").read_bytes()
    assert json.loads(before) == first
    assert evaluate(table, model=model_uri, out=out, batch_size=3) == {
        **first,
        "was_done": True,
    }
    assert (tmp_path / "metrics" / "run.json").read_bytes() == before


def test_the_metrics_name_bundle_and_bad_files(table: str, model_uri: str, bundle: Bundle) -> None:
    (Path(table) / "z.parquet").touch()
    metrics = evaluate(table, model=model_uri)
    assert metrics["bundle_id"] == bundle.bundle_id
    assert metrics["bad_files"] == {"z.parquet": "empty file"}
    assert metrics["num_rows"] == 6


def selected(*ids: str) -> pa.Table:
    return pa.Table.from_pylist([{"rank": rank, "sample_id": name} for rank, name in enumerate(ids, 1)], SELECTION)


def test_a_selection_is_compared(table: str, model_uri: str, tmp_path: Path, samples: list[Sample]) -> None:
    out = locate(str(tmp_path / "selection"))
    begin_run(out, {})
    pq.write_table(selected(samples[0].sample_id, samples[3].sample_id), out.join("selection.parquet").path)
    publish_run(out, {"kind": "selection"})
    metrics = evaluate(table, model=model_uri, selection=out.uri)
    assert metrics["selection"]["num_selected"] == 2


def test_rows_of_several_files_and_batches_come_out_once_and_in_order(
    write_table: WriteTable, centre_bundle: Bundle
) -> None:
    rows = [grey_row(f"r{i:03d}", level=10, centred=i % 11) for i in range(300)]  # more than a batch of the reader
    rows[7]["image"] = rows[280]["image"] = b"none"
    uri = write_table("labelled", rows[:290], is_labelled=True)
    write_table("labelled/more", rows[290:], is_labelled=True)
    seen: list[tuple[int, int, int]] = []

    def progress(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        seen.append((done, total, num_errors))

    manifest = freeze_labelled(locate(uri), skeleton=LSP)
    evaluated = evaluate_rows(centre_bundle, manifest, progress=progress)
    assert sorted(evaluated["sample_id"].to_pylist()) == [row["sample_id"] for row in rows]
    assert evaluated["error"].drop_null().to_pylist() == ["undecodable"] * 2
    assert seen[-1] == (300, 300, 2)
    right = dict(zip(evaluated["sample_id"].to_pylist(), observed(evaluated).num_right.tolist(), strict=True))
    assert all(right[row["sample_id"]] == (0 if i in {7, 280} else i % 11) for i, row in enumerate(rows))


LINE = Calibration(
    predicted_loss=(-9.0, 9.0), true_loss=(0.0, 1.0), pck=(1.0, 0.0), failure_share=(0.0, 1.0), num_images=50
)


@pytest.fixture
def calibrated_uri(bundle: Bundle, table: str, tmp_path: Path) -> str:
    """A calibrated bundle that says it was trained on the table."""
    training = {"labelled_fingerprint": freeze_labelled(locate(table), skeleton=LSP).fingerprint}
    write_bundle(
        locate(str(tmp_path / "b")), dump_bundle(bundle.model, training=training, metrics={}, calibration=LINE)
    )
    return str(tmp_path / "b")


def test_a_calibrated_bundle_has_a_reliability_table(table: str, calibrated_uri: str, model_uri: str) -> None:
    metrics = evaluate(table, model=calibrated_uri)
    reliability = metrics["reliability"]
    assert reliability["num_images"] == sum(each["num_images"] for each in reliability["bins"]) == 6
    assert reliability["num_calibrated_on"] == 50
    observed_loss = [each["true_loss"]["observed"] * each["num_images"] for each in reliability["bins"]]
    assert sum(observed_loss) / 6 == pytest.approx(metrics["mean_true_loss"], rel=1e-5)
    distances = [abs(each["pck"]["expected"] - each["pck"]["observed"]) for each in reliability["bins"]]
    weights = [each["num_images"] for each in reliability["bins"]]
    error = reliability["expected_calibration_error"]["pck"]
    assert error == pytest.approx(np.average(distances, weights=weights), rel=1e-4)
    assert evaluate(table, model=model_uri)["reliability"] is None


def test_rows_of_the_training_and_of_its_validation_are_recognised(
    table: str, bundle: Bundle, tmp_path: Path, write_table: WriteTable
) -> None:
    validation = write_table("validation", [grey_row("a", level=10, centred=10)], is_labelled=True)
    other = write_table("other", [grey_row("b", level=10, centred=10)], is_labelled=True)
    training = {
        f"{name}_fingerprint": freeze_labelled(locate(rows), skeleton=LSP).fingerprint
        for name, rows in (("labelled", table), ("validation", validation))
    }
    model = str(tmp_path / "b")
    write_bundle(locate(model), dump_bundle(bundle.model, training=training, metrics={}, calibration=LINE))
    found = [evaluate(rows, model=model) for rows in (table, validation, other)]
    assert [metrics["is_training_data"] for metrics in found] == [True, False, False]
    assert [metrics["is_validation_data"] for metrics in found] == [False, True, False]


@pytest.mark.parametrize("num_rows", [1, 6])
@pytest.mark.parametrize("is_calibrated", [True, False])
def test_a_plot_lies_beside_the_metrics(
    num_rows: int,
    is_calibrated: bool,
    samples: list[Sample],
    model_uri: str,
    calibrated_uri: str,
    write_table: WriteTable,
    tmp_path: Path,
) -> None:
    rows = write_table("few", [row_of(sample) for sample in samples[:num_rows]], is_labelled=True)
    model = calibrated_uri if is_calibrated else model_uri
    metrics = evaluate(rows, model=model, out=str(tmp_path / "out"))
    assert metrics["plot"] == PLOT_FILE
    picture = cv2.imread(str(tmp_path / "out" / PLOT_FILE))
    assert picture is not None
    height, width, _ = picture.shape
    assert width > height > 800
    for top, left in itertools.product((0, height // 2), (0, width // 2)):
        panel = picture[top : top + height // 2, left : left + width // 2]
        assert (panel < 200).any(axis=2).mean() > 0.005  # ink


def test_without_a_judged_image_there_are_metrics_and_no_plot(
    write_table: WriteTable, model_uri: str, tmp_path: Path
) -> None:
    rows = [
        {**grey_row("a", level=9, centred=1), "image": b""},
        {**grey_row("b", level=9, centred=1), "keypoints": None},
    ]
    metrics = evaluate(write_table("bad", rows, is_labelled=True), model=model_uri, out=str(tmp_path / "out"))
    assert metrics["plot"] is None
    assert (metrics["num_rows"], metrics["errors"], metrics["num_evaluated"]) == (2, {"empty": 1}, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "run.json"]


def test_every_key_of_the_record_is_documented(table: str, calibrated_uri: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    metrics = evaluate(table, model=calibrated_uri)
    assert not [key for key in metrics if f"`{key}`" not in text]


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        (["weather"], "--slices weather: expected text, .* found no such column in"),
        (["image"], "--slices image: expected text, .* found a column of the tables' own in"),
    ],
)
def test_a_column_to_slice_by_that_is_none_is_refused_before_anything_is_written(
    table: str, model_uri: str, tmp_path: Path, slices: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(table, model=model_uri, slices=slices, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_table_of_another_skeleton_is_refused(tmp_path: Path, model_uri: str) -> None:
    (tmp_path / "mpii").mkdir()
    row = {"sample_id": "a", "image": b"", "keypoints": [0.0] * 32, "visibility": [2] * 16}
    pq.write_table(pa.Table.from_pylist([row], labelled(16)), tmp_path / "mpii" / "a.parquet")
    with pytest.raises(InputError, match=r"expected 14 keypoints \(lsp\), found 16 keypoints"):
        evaluate(str(tmp_path / "mpii"), model=model_uri)
