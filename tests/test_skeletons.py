"""The skeleton of a labelled table: recorded, named or counted; refused in one line where they disagree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distributed.evaluation import evaluate as module
from distributed.evaluation.options import EvaluateOptions
from distributed.runs.progress import silent
from distributed.schema import labelled
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled, freeze_with_skeleton
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.errors import InputError
from model.skeleton import COCO, LSP, MPII, Skeleton, read_skeleton


def evaluate(labelled: str, **options: Any) -> dict[str, Any]:
    return module.evaluate(EvaluateOptions(labelled=labelled, **options))


def write(folder: Path, name: str, *, count: int, skeleton: str | None = None, start: int = 0) -> Path:
    """Four rows; each keypoint is labelled in each."""
    rows = [
        {"sample_id": f"r{i}", "image": b"x", "keypoints": [1.0] * 2 * count, "visibility": [2] * count}
        for i in range(start, start + 4)
    ]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, labelled(count, skeleton=skeleton)), folder / name)
    return folder


def choose(folder: Path, named: str | None = None) -> Skeleton:
    return freeze_with_skeleton(locate(str(folder)), named=named)[1]


@pytest.mark.parametrize(("skeleton", "count"), [(LSP, 14), (MPII, 16), (COCO, 17)])
def test_without_a_record_the_keypoints_are_counted(tmp_path: Path, skeleton: Skeleton, count: int) -> None:
    assert choose(write(tmp_path, "a.parquet", count=count)) is skeleton


def test_a_table_that_is_one_file_is_looked_into(tmp_path: Path) -> None:
    assert choose(write(tmp_path, "a.table", count=16) / "a.table") is MPII


def test_the_record_is_taken(tmp_path: Path) -> None:
    assert choose(write(tmp_path, "a.parquet", count=17, skeleton="coco")) is COCO


def own_file(folder: Path, *, name: str = "hand", count: int = 21) -> str:
    path = folder / "hand.json"
    path.write_text(json.dumps({"name": name, "keypoint_names": [f"k{i}" for i in range(count)]}))
    return str(path)


def test_a_file_says_what_no_data_set_does(tmp_path: Path) -> None:
    table = write(tmp_path / "t", "a.parquet", count=21)
    found = choose(table, own_file(tmp_path))
    assert (found.name, found.num_keypoints) == ("hand", 21)
    write(tmp_path / "t", "a.parquet", count=21, skeleton="hand")
    assert choose(table, own_file(tmp_path)) == found


def refusal(folder: Path, named: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        choose(folder, named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_count_of_no_skeleton_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "a.parquet", count=21))
    assert "21 keypoints: expected those of lsp 14, mpii 16, coco 17, or a --skeleton file; found none" in message


def test_a_count_that_disagrees_with_the_named_skeleton_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t", "a.parquet", count=17, skeleton="coco")
    assert "a.parquet: expected 16 keypoints (mpii), found 17 keypoints (coco)" in refusal(table, "mpii")
    assert "a.parquet: expected 21 keypoints (hand), found 17 keypoints (coco)" in refusal(table, own_file(tmp_path))


def test_a_record_of_another_skeleton_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t", "a.parquet", count=17, skeleton="coco")
    message = refusal(table, own_file(tmp_path, count=17))
    assert "a.parquet: expected the skeleton 'hand', found 'coco'" in message
    write(tmp_path / "t", "a.parquet", count=17, skeleton="hand")
    assert "written with the skeleton 'hand': give its file as --skeleton" in refusal(table)


def test_mixed_counts_among_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", count=14)
    table = write(tmp_path, "b.parquet", count=16, start=9)
    assert "b.parquet: expected 14 keypoints (lsp), found 16 keypoints" in refusal(table)


def test_mixed_records_among_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", count=14, skeleton="lsp")
    table = write(tmp_path, "b.parquet", count=14, skeleton="mine", start=9)
    assert "b.parquet: expected the skeleton 'lsp', found 'mine'" in refusal(table)


def test_files_that_cannot_be_read_are_left_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"broken")
    (tmp_path / "b.parquet").touch()
    assert "no readable file; a.parquet: damaged" in refusal(tmp_path)
    assert choose(write(tmp_path, "c.parquet", count=14)) is LSP


def test_a_table_that_is_not_there_or_not_labelled_is_refused(tmp_path: Path) -> None:
    assert "expected a file or a folder, found nothing" in refusal(tmp_path / "nowhere")
    pq.write_table(pa.table({"sample_id": ["a"]}), tmp_path / "a.parquet")
    assert "a.parquet: column 'visibility': expected fixed_size_list" in refusal(tmp_path)


@pytest.mark.parametrize("named", ["lps", "coco.yaml", ""])
def test_an_unknown_name_is_refused_with_the_choices(tmp_path: Path, named: str) -> None:
    table = write(tmp_path, "a.parquet", count=14)
    assert f"--skeleton: expected lsp, mpii, coco or a .json file, found '{named}'" in refusal(table, named)
    assert "expected a file, found nothing" in refusal(table, "nowhere.json")


def test_a_table_of_the_bundles_skeleton_passes(tmp_path: Path) -> None:
    freeze_labelled(locate(str(write(tmp_path, "a.parquet", count=14))), skeleton=LSP)
    with pytest.raises(InputError, match=r"a\.parquet: expected 17 keypoints \(coco\), found 14 keypoints"):
        freeze_labelled(locate(str(tmp_path)), skeleton=COCO)


# Where it is used


def train(table: Path, out: Path, **arguments: Any) -> dict[str, Any]:
    options = TrainingOptions(estimator="hourglass-small", workers="0", epochs=1, batch_size=4)
    return train_model(str(table), out=str(out), options=options, config={}, progress=silent, **arguments)


def test_training_refuses_mixed_counts_and_a_validation_of_another_skeleton(tmp_path: Path) -> None:
    lsp = write(tmp_path / "lsp", "a.parquet", count=14)
    mpii = write(tmp_path / "mpii", "a.parquet", count=16)
    with pytest.raises(InputError, match=r"a\.parquet: expected 14 keypoints \(lsp\), found 16 keypoints"):
        train(lsp, tmp_path / "out", validation=str(mpii))
    write(lsp, "b.parquet", count=16, start=9)
    with pytest.raises(InputError, match=r"b\.parquet: expected 14 keypoints \(lsp\), found 16 keypoints"):
        train(lsp, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_refuses_an_estimator_that_the_head_cannot_read_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write(tmp_path / "t", "a.parquet", count=14)
    (tmp_path / "one_scale.py").write_text(ONE_SCALE)
    (tmp_path / "one_scale-1.dist-info").mkdir()
    (tmp_path / "one_scale-1.dist-info" / "entry_points.txt").write_text("[lossight.estimators]\na = one_scale:net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "one_scale", raising=False)
    options = TrainingOptions(estimator="one_scale:net", method="ll++conv", workers="0", epochs=1, batch_size=4)
    with pytest.raises(InputError, match=r"method ll\+\+conv: expected of one_scale:net features of several scales"):
        train_model(str(table), out=str(tmp_path / "out"), options=options, config={}, progress=silent)
    assert not (tmp_path / "out").exists()


ONE_SCALE = """
from torch import nn
from model.estimator import PoseOutput, estimator

class Net(nn.Conv2d):
    def forward(self, images):
        found = super().forward(images)
        return PoseOutput(found[:, None], (found,))

@estimator(input_size=16, heatmap_size=16)
def net(num_keypoints):
    return Net(3, num_keypoints, 1)
"""


def test_another_skeleton_file_of_the_same_name_is_another_run(tmp_path: Path) -> None:
    fields = {"name": "hand", "keypoint_names": ["a", "b"]}
    one, other = (tmp_path / name for name in ("one.json", "other.json"))
    one.write_text(json.dumps(fields))
    other.write_text(json.dumps({**fields, "limbs": [["a", "b"]]}))
    found = [read_skeleton(path.read_bytes(), where=path.name) for path in (one, one, other)]
    assert found[0].fingerprint == found[1].fingerprint != found[2].fingerprint


def test_evaluation_refuses_a_table_with_other_keypoints_than_the_bundle(tmp_path: Path, model_uri: str) -> None:
    table = write(tmp_path / "t", "a.parquet", count=17, skeleton="coco")
    with pytest.raises(InputError, match=r"expected 14 keypoints \(lsp\), found 17 keypoints \(coco\)"):
        evaluate(str(table), model=model_uri, out=str(tmp_path / "out"))
    write(tmp_path / "t", "a.parquet", count=14, skeleton="mine")
    with pytest.raises(InputError, match=r"expected the skeleton 'lsp', found 'mine'"):
        evaluate(str(table), model=model_uri, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
