"""Exports against what the tools' readers and documented formats say; names, formulas and images of hostile rows."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cv2
import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import assert_one_line
from picked import MISSES, make_bundle, make_pool, pose_of, publish
from pycocotools.coco import COCO

from distributed.ingest.options import IngestOptions
from distributed.ingest.returned import find_returned
from distributed.reporting import export as module
from distributed.reporting.export import export_selection
from distributed.reporting.formats import Exported, Item, coco_json, defused, safe_name, tasks_json
from distributed.reporting.labels import take_labels
from distributed.reporting.options import ExportOptions
from distributed.reporting.report import write_report
from distributed.runs.progress import silent
from distributed.storage.location import locate, read_bytes, write_bytes
from jobs.cli import main
from model.errors import InputError
from model.image import decode_image
from model.skeleton import LSP
from model.synthetic import Sample

ANNOTATIONS = "annotations/person_keypoints_default.json"
IDS = (
    "../x",
    "/etc/passwd",
    "a/b\\c",
    "CON",
    "con",
    "=1+1",
    "@cmd",
    "<script>",
    "ü" * 300,
    "..",
    "line\nbreak",
    "ok-1",
    "-2",
    "\t=3",
)


def pool_rows(samples: list[Sample]) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": sample_id,
            "image": sample.image,
            "box": [10.5, 20.5, 70.5, 120.5] if i % 2 else None,
            "group": f"+g{i}",
            "camera": f"s3://fleet/raw/{i}.jpg",
            "light": "=HYPERLINK(1)",
        }
        for i, (sample_id, sample) in enumerate(zip(IDS, samples, strict=False))
    ]


@pytest.fixture(scope="module")
def folder(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of hostile ids, all selected: ranks are the pool's order."""
    folder = tmp_path_factory.mktemp("picked")
    make_pool(folder, pool_rows(samples))
    make_bundle(folder / "model")
    publish(folder, budget=len(IDS))
    return folder


def export(folder: Path, out: Path, kind: Any, **options: Any) -> dict[str, Any]:
    places = {"selection": str(folder / "selection"), "pool": str(folder / "pool"), "out": str(out)}
    return export_selection(ExportOptions(kind=kind, **{**places, **options}), progress=silent)


def files_below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def test_coco_loads_with_pycocotools_and_holds_poses_boxes_and_scores(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    record = export(folder, tmp_path / "out", "coco")
    assert (record["num_exported"], record["num_missing"], record["poses"]) == (len(IDS), 0, "scores")
    coco = COCO(str(tmp_path / "out" / ANNOTATIONS))
    (category,) = coco.loadCats(coco.getCatIds())
    assert category["keypoints"] == list(LSP.keypoint_names)
    assert category["skeleton"] == [[a + 1, b + 1] for a, b in LSP.limbs]
    images = coco.loadImgs(coco.getImgIds())
    assert [image["sample_id"] for image in images] == list(IDS)
    for index, image in enumerate(images):
        (person,) = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        pose = np.array(pose_of(index)).reshape(-1, 3)
        assert np.array(person["keypoints"]).reshape(-1, 3).tolist() == [[x, y, 2] for x, y, _ in pose]
        assert person["keypoint_scores"] == pytest.approx(np.float16(pose[:, 2]).tolist(), abs=1e-4)
        assert person["score"] == pytest.approx(pose[:, 2].mean(), abs=1e-3)
        width, height = image["width"], image["height"]
        assert person["bbox"] == ([11, 21, 60, 100] if index % 2 else [0, 0, width, height])
        assert (tmp_path / "out" / "images/default" / image["file_name"]).read_bytes() == samples[index].image


def test_where_the_scores_know_misses_tools_and_report_get_what_they_leave_of_one(
    samples: list[Sample], tmp_path: Path
) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=4, with_misses=True)
    export(tmp_path, tmp_path / "out", "coco")
    people = json.loads((tmp_path / "out" / ANNOTATIONS).read_bytes())["annotations"]
    for person in people:
        assert person["keypoint_scores"] == pytest.approx((1 - MISSES).tolist())
        assert person["score"] == pytest.approx(float(1 - MISSES.mean()), abs=1e-3)
    export(tmp_path, tmp_path / "tasks", "label-studio")
    (task, *_) = json.loads((tmp_path / "tasks" / "tasks.json").read_bytes())
    points = [each for each in task["predictions"][0]["result"] if each["type"] == "keypointlabels"]
    assert [each["score"] for each in points] == pytest.approx((1 - MISSES).tolist())


def test_an_image_that_cannot_be_read_is_counted(samples: list[Sample], tmp_path: Path) -> None:
    rows = pool_rows(samples)
    make_pool(tmp_path, [{**row, "image": b"no image"} if i == 1 else row for i, row in enumerate(rows)])
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=len(IDS))
    record = export(tmp_path, tmp_path / "out", "coco")
    assert (record["num_exported"], record["num_missing"]) == (len(IDS) - 1, 1)
    assert record["missing"] == {"undecodable": 1}


@pytest.mark.parametrize("kind", ["coco", "cvat", "label-studio", "csv"])
def test_whatever_the_ids_nothing_is_written_beside_the_images(kind: Any, folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "deep" / "out", kind)
    assert files_below(tmp_path) == {f"deep/out/{name}" for name in files_below(tmp_path / "deep" / "out")}
    names = [name for name in files_below(tmp_path / "deep" / "out") if name.startswith("images/")]
    assert len(names) == (0 if kind == "cvat" else len(IDS))
    assert all(re.fullmatch(r"images/(default/)?[A-Za-z0-9][A-Za-z0-9._-]{0,110}\.jpg", name) for name in names)
    assert len({name.lower() for name in names}) == len(names)


def test_names_keep_what_is_safe_of_an_id_and_differ_where_ids_do() -> None:
    names = [safe_name(sample_id, b"\xff\xd8\xff") for sample_id in IDS]
    assert names[0].startswith("x-")
    assert names[11].startswith("ok-1-")
    assert len({name.lower() for name in names}) == len(IDS)
    assert safe_name("a", b"\x89PNG\r\n\x1a\n").endswith(".png")


def test_cvat_gets_the_zip_that_its_coco_keypoints_import_reads(
    folder: Path, samples: list[Sample], tmp_path: Path
) -> None:
    export(folder, tmp_path / "out", "cvat")
    assert files_below(tmp_path / "out") == {"config.json", "cvat.zip", "labels.json", "run.json"}
    with zipfile.ZipFile(tmp_path / "out" / "cvat.zip") as archive:
        assert archive.testzip() is None
        (annotations,) = [name for name in archive.namelist() if name.startswith("annotations/")]
        assert annotations == "annotations/person_keypoints_default.json"
        found = json.loads(archive.read(annotations))
        stored = {name for name in archive.namelist() if name != annotations}
        assert stored == {f"images/default/{image['file_name']}" for image in found["images"]}
        assert archive.read(f"images/default/{found['images'][3]['file_name']}") == samples[3].image
        (tmp_path / "annotations.json").write_bytes(archive.read(annotations))
    coco = COCO(str(tmp_path / "annotations.json"))
    assert len(coco.getAnnIds()) == len(IDS)
    assert sorted(stored) == [f"images/default/{image['file_name']}" for image in found["images"]]  # by rank
    assert found["images"][8]["file_name"].startswith("0009-")
    label, tag = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert (tag["name"], tag["type"], tag["attributes"][0]["name"]) == ("rejected", "tag", "reason")
    assert (label["name"], label["type"]) == ("person", "skeleton")
    assert [sublabel["name"] for sublabel in label["sublabels"]] == list(LSP.keypoint_names)
    drawn = ET.fromstring(f"<svg>{label['svg']}</svg>")  # noqa: S314
    nodes = {node.get("data-node-id"): node.get("data-label-name") for node in drawn.iter("circle")}
    assert nodes == {str(i + 1): name for i, name in enumerate(LSP.keypoint_names)}
    edges = [(int(line.get("data-node-from", 0)), int(line.get("data-node-to", 0))) for line in drawn.iter("line")]
    assert edges == [(a + 1, b + 1) for a, b in LSP.limbs]


# Source: labelstud.io, "Import pre-annotated data into Label Studio" and "KeyPointLabels".
LABEL_STUDIO = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["data", "predictions"],
        "properties": {
            "data": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}},
            "predictions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["model_version", "result"],
                    "properties": {
                        "score": {"type": "number", "minimum": 0, "maximum": 1},
                        "result": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": [
                                    "id",
                                    "type",
                                    "from_name",
                                    "to_name",
                                    "original_width",
                                    "original_height",
                                    "value",
                                ],
                                "properties": {
                                    "type": {"enum": ["keypointlabels", "rectanglelabels"]},
                                    "value": {
                                        "type": "object",
                                        "required": ["x", "y", "width"],
                                        "properties": {
                                            "x": {"type": "number", "minimum": 0, "maximum": 100},
                                            "y": {"type": "number", "minimum": 0, "maximum": 100},
                                            "rectanglelabels": {"const": ["person"]},
                                            "keypointlabels": {"type": "array", "minItems": 1, "maxItems": 1},
                                        },
                                    },
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_label_studio_gets_tasks_of_its_format_and_the_configuration_they_belong_to(
    folder: Path, tmp_path: Path
) -> None:
    export(folder, tmp_path / "out", "label-studio")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    jsonschema.validate(tasks, LABEL_STUDIO)
    config = ET.fromstring((tmp_path / "out" / "labelling.xml").read_text())  # noqa: S314
    (image,), (labels,), (boxes,) = (config.findall(tag) for tag in ("Image", "KeyPointLabels", "RectangleLabels"))
    assert [each.get("name") for each in config.findall("Choices")] == ["visibility", "rejected"]
    assert image.get("value") == "$image"
    assert [label.get("value") for label in labels] == list(LSP.keypoint_names)
    assert [label.get("model_index") for label in labels] == [str(i) for i in range(LSP.num_keypoints)]
    for index, task in enumerate(tasks):
        path = task["data"]["image"].removeprefix("/data/local-files/?d=")
        assert (tmp_path / "out" / path).exists()
        box, *points = task["predictions"][0]["result"]
        assert (box["from_name"], box["to_name"]) == (boxes.get("name"), image.get("name"))
        assert len({box["id"], *(point["id"] for point in points)}) == 1 + len(points) == 1 + LSP.num_keypoints
        for point, (x, y, _), name in zip(points, np.reshape(pose_of(index), (-1, 3)), LSP.keypoint_names, strict=True):
            assert (point["from_name"], point["to_name"]) == (labels.get("name"), image.get("name"))
            assert point["value"]["keypointlabels"] == [name]
            assert point["value"]["x"] == pytest.approx(x / point["original_width"] * 100, abs=1e-6)
            assert point["value"]["y"] == pytest.approx(y / point["original_height"] * 100, abs=1e-6)


def test_no_cell_of_the_csv_is_a_formula_and_numbers_stay_numbers(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "csv")
    with (tmp_path / "out" / "selection.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sample_id"].removeprefix("'") for row in rows] == list(IDS)
    for row in rows:
        for name, cell in row.items():
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), name
            assert not cell.startswith("-") or float(cell) < 0
    assert rows[5]["sample_id"] == "'=1+1"
    assert rows[0]["light"] == "'=HYPERLINK(1)"
    assert float(rows[-1]["predicted_loss"]) == -1.0
    assert (tmp_path / "out" / rows[0]["image"]).exists()
    assert float(rows[1]["neck_x"]) == pose_of(1)[3 * LSP.keypoint_names.index("neck")]


@pytest.mark.parametrize(
    ("cell", "safe"),
    [
        (" =1", "' =1"),
        ("\ufeff=1", "'\ufeff=1"),
        ("\xa0=1", "'\xa0=1"),
        ("\uff1d1", "'\uff1d1"),
        ("\uff0b1", "'\uff0b1"),
        ("a=1", "a=1"),
        ("\xe9=1", "\xe9=1"),
        (-1.5, -1.5),
        (None, None),
        ("", ""),
    ],
    ids=ascii,
)
def test_only_texts_that_begin_like_a_formula_are_defused(cell: Any, safe: Any) -> None:
    assert defused(cell) == safe


def test_fiftyone_gets_a_coco_folder_with_a_person_for_each_image(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "fiftyone")
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [person["sample_id"] for person in labels["annotations"]] == list(IDS)
    assert [person["rank"] for person in labels["annotations"]] == [*range(1, len(IDS) + 1)]
    for image, person in zip(labels["images"], labels["annotations"], strict=True):
        assert (tmp_path / "out" / "data" / image["file_name"]).exists()
        assert person["image_id"] == image["id"]
        assert len(person["keypoint_scores"]) == LSP.num_keypoints


@pytest.mark.parametrize(
    ("prefix", "address"),
    [
        ("/data/local-files/?d=night-1", "/data/local-files/?d=night-1/images/"),
        ("/data/local-files/?d=", "/data/local-files/?d=images/"),
        ("s3://fleet/night 1/", "s3://fleet/night 1/images/"),
        ("https://a.example/x", "https://a.example/x/images/"),
    ],
)
def test_label_studio_opens_images_where_the_prefix_says(
    prefix: str, address: str, folder: Path, tmp_path: Path
) -> None:
    export(folder, tmp_path / "out", "label-studio", url_prefix=prefix)
    for task in json.loads((tmp_path / "out" / "tasks.json").read_text()):
        assert task["data"]["image"].startswith(address)
        assert (tmp_path / "out" / "images" / task["data"]["image"].removeprefix(address)).exists()


def test_tools_are_told_who_is_meant_and_which_keypoints_are_likely_wrong() -> None:
    pose = np.ones((LSP.num_keypoints, 3)) * [20, 30, 0.9]
    pose[[3, 5], 2] = 0.4, 0.1
    about = {"width": 100, "height": 200, "predicted_loss": 1.0, "expected_pck": None, "group": None, "reason": "loss"}
    items = [
        Item(
            rank=rank,
            sample_id="a",
            file_name="a",
            reference="a",
            box=(9.5, 19.5, 59.5, 119.5),
            pose=each,
            metadata={},
            **about,
        )
        for rank, each in ((1, pose), (2, None))
    ]
    exported = Exported(items=items, skeleton=LSP, bundle_id="b", knows_misses=True)
    first, second = json.loads(tasks_json(exported))
    assert first["data"]["likely_wrong"] == [LSP.keypoint_names[5], LSP.keypoint_names[3]]
    assert first["data"]["hint"] == "rank 1: the person in the box; likely wrong: left_ankle, left_hip"
    assert second["data"]["hint"] == "rank 2: the person in the box"
    (box,) = second["predictions"][0]["result"]
    assert [box["value"][side] for side in ("x", "y", "width", "height")] == [10, 10, 50, 50]
    assert json.loads(coco_json(exported))["annotations"][0]["likely_wrong"] == first["data"]["likely_wrong"]
    assert not Exported(items=items, skeleton=LSP, bundle_id="b").likely_wrong(items[0])  # a peak says nothing of it


def test_exported_images_show_their_pixels_as_stored_whatever_their_exif_says(
    samples: list[Sample], tmp_path: Path
) -> None:
    turned = [turn(samples[0].image, 6), turn(samples[1].image, 3)]
    rows = [{**row, "image": image} for row, image in zip(pool_rows(samples), turned, strict=False)]
    make_pool(tmp_path, rows)
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=2)
    assert export(tmp_path, tmp_path / "out", "coco")["num_exported"] == 2
    images = json.loads((tmp_path / "out" / ANNOTATIONS).read_text())["images"]
    for image, sample in zip(images, samples, strict=False):
        shown = cv2.imread(str(tmp_path / "out" / "images/default" / image["file_name"]))  # turned as browsers do
        assert shown.shape[:2] == (image["height"], image["width"])
        assert np.array_equal(shown[..., ::-1], decode_image(sample.image))
    record = export(tmp_path, tmp_path / "uris", "coco", images="reference", uri_column="camera")
    assert record["missing"] == {"turned by its EXIF orientation: use --images copy": 2}


def turn(jpeg: bytes, value: int) -> bytes:
    """The JPEG with an EXIF orientation."""
    entry = (0x0112).to_bytes(2, "big") + b"\0\3\0\0\0\1" + value.to_bytes(2, "big") + b"\0\0"
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + jpeg[2:]


def run(kind: str, folder: Path, out: Path, *more: str) -> int:
    places = ["--selection", str(folder / "selection"), "--pool", str(folder / "pool"), "--out", str(out)]
    return main(["export", kind, *places, *more])


def test_ids_of_a_csv_are_all_that_is_exported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, table = [IDS[7], IDS[3]], tmp_path / "kept.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["sample_id"], *([each] for each in wanted)])
    record = export(folder, tmp_path / "out", "coco", ids=str(table))
    assert (record["num_selected"], record["num_exported"]) == (2, 2)
    images = json.loads((tmp_path / "out" / ANNOTATIONS).read_text())["images"]
    assert [image["sample_id"] for image in images] == sorted(wanted, key=IDS.index)
    for text, message in (
        ("sample_id\nnobody\n", "found 1 others: \\['nobody'\\]"),
        ("sample_id\n", "found none"),
        ("id\na\n", "expected a CSV file with a column sample_id"),
        ("", "expected a CSV file with a column sample_id"),
    ):
        table.write_text(text)
        assert run("csv", folder, tmp_path / "none", "--ids", str(table)) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "none").exists()


def test_referenced_images_are_not_copied(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "rows", "coco", images="reference")
    assert files_below(tmp_path / "rows") == {ANNOTATIONS, "config.json", "run.json"}
    (file,) = (folder / "pool").glob("*.parquet")
    images = json.loads((tmp_path / "rows" / ANNOTATIONS).read_text())["images"]
    assert images[3]["file_name"] == f"{folder}/pool/{file.name}#row=3"
    export(folder, tmp_path / "uris", "label-studio", images="reference", uri_column="camera")
    tasks = json.loads((tmp_path / "uris" / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [f"s3://fleet/raw/{i}.jpg" for i in range(len(IDS))]
    export(folder, tmp_path / "frames", "cvat", images="reference", uri_column="camera")
    with zipfile.ZipFile(tmp_path / "frames" / "cvat.zip") as archive:
        assert archive.namelist() == ["annotations/person_keypoints_default.json"]
        assert json.loads(archive.read(archive.namelist()[0]))["images"][2]["file_name"] == "raw/2.jpg"


def test_poses_are_predicted_again_where_the_scores_have_none(samples: list[Sample], tmp_path: Path) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=3, with_keypoints=False)
    record = export(tmp_path, tmp_path / "out", "coco")
    people = json.loads((tmp_path / "out" / ANNOTATIONS).read_text())["annotations"]
    assert record["poses"] == "predicted"
    assert [person["num_keypoints"] for person in people] == [LSP.num_keypoints] * 3


def test_the_same_export_again_does_nothing_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    first = export(folder, tmp_path / "out", "coco")
    assert export(folder, tmp_path / "out", "coco") == {**first, "was_done": True}
    with pytest.raises(InputError, match=r"holds another run; differing: export \(was 'coco', is 'csv'\)"):
        export(folder, tmp_path / "out", "csv")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder or an earlier run"):
        export(folder, tmp_path / "other", "coco")
    assert files_below(tmp_path / "other") == {"notes.txt"}


def test_an_export_that_is_done_needs_its_pool_no_more(folder: Path, tmp_path: Path) -> None:
    first = export(folder, tmp_path / "out", "csv")
    assert export(folder, tmp_path / "out", "csv", pool="gone") == {**first, "was_done": True}


def test_a_selection_of_nothing_is_an_export_and_a_report_of_nothing(samples: list[Sample], tmp_path: Path) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=3, min_loss=5.0)
    for kind in ("coco", "cvat", "label-studio", "csv"):
        assert export(tmp_path, tmp_path / kind, kind)["num_exported"] == 0
    record = write_report(str(tmp_path / "selection"), out=str(tmp_path / "r.html"), progress=silent)
    assert (record["num_selected"], record["num_pictures"], record["num_missing"]) == (0, 0, 0)


def test_an_export_that_was_killed_is_done_again_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "coco_json", killed)
        with pytest.raises(KeyboardInterrupt):
            export(folder, tmp_path / "out", "coco")
    assert not {ANNOTATIONS, "run.json"} & files_below(tmp_path / "out")
    assert export(folder, tmp_path / "out", "coco")["num_exported"] == len(IDS)
    assert {ANNOTATIONS, "run.json"} <= files_below(tmp_path / "out")


def test_a_killed_cvat_export_leaves_no_zip(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cvat_labels", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(folder, tmp_path / "out", "cvat")
    assert files_below(tmp_path / "out") == {"config.json"}


def test_images_that_are_gone_are_left_out_counted_and_the_command_says_degraded(
    samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pool_rows(samples)
    make_pool(tmp_path, rows)
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=6)
    (tmp_path / "scores" / "manifest.json").unlink()
    (file,) = (tmp_path / "pool").glob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 4), file, row_group_size=2)
    assert run("coco", tmp_path, tmp_path / "out") == 5
    assert "degraded: left out 2" in capsys.readouterr().out
    assert len(COCO(str(tmp_path / "out" / ANNOTATIONS)).getImgIds()) == 4


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("coco", ("--selection", "nowhere"), "nowhere: expected selection"),
        ("coco", ("--pool", "{folder}/model"), "expected the pool of the selection .*, found none of its images"),
        ("label-studio", ("--images", "reference"), "--images reference: expected --uri-column"),
        ("coco", ("--uri-column", "camera"), "--uri-column: expected --images reference"),
        ("coco", ("--images", "reference", "--uri-column", "nothing"), "column 'nothing': expected a URI"),
        ("coco", ("--url-prefix", "s3://b"), "--url-prefix: expected label-studio and --images copy beside it"),
        ("yolo", (), "yolo"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_published(
    kind: str, more: tuple[str, ...], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(kind, folder, tmp_path / "out", *(word.format(folder=folder) for word in more)) == 2
    assert_one_line(capsys, message)
    assert not (tmp_path / "out" / "run.json").exists()


def test_another_bundle_in_the_models_place_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=3)
    make_bundle(tmp_path / "model", calibration=None)
    with pytest.raises(InputError, match=r"expected the bundle .* that made the scores"):
        export(tmp_path, tmp_path / "out", "coco")
    assert not (tmp_path / "out").exists()


@pytest.mark.s3
def test_reports_and_exports_go_from_a_store_to_a_store(folder: Path, s3_uri: str) -> None:
    place = f"{s3_uri}/handed-over"
    for path in (path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        moved = data.replace(str(folder).encode(), place.encode()) if path.suffix == ".json" else data
        write_bytes(locate(f"{place}/{path.relative_to(folder)}"), moved)
    record = write_report(f"{place}/selection", out=f"{place}/report.html", progress=silent)
    assert (record["num_pictures"], record["num_poses"]) == (len(IDS), len(IDS))
    assert read_bytes(locate(f"{place}/report.html")).startswith(b"<!doctype html>")
    for kind in ("cvat", "label-studio", "coco"):
        options = ExportOptions(kind=kind, selection=f"{place}/selection", pool=f"{place}/pool", out=f"{place}/{kind}")
        found = export_selection(options, progress=silent)
        assert found["num_exported"] == len(IDS)
    options = IngestOptions(
        kind="coco",
        selection=f"{place}/selection",
        source=f"{place}/coco/{ANNOTATIONS}",
        out=f"{place}/labels/back",
        take="all",
    )
    back = take_labels(options, progress=silent)
    assert back["outcomes"] == {"accepted": len(IDS)}
    found_rows = find_returned(locate(f"{place}/labels"), selection_fingerprint=back["selection_fingerprint"])
    assert [row["sample_id"] for row in found_rows or ()] == list(IDS)
    tasks = json.loads(read_bytes(locate(f"{place}/label-studio/tasks.json")))
    assert read_bytes(locate(tasks[0]["data"]["image"])) == pq.read_table(folder / "pool")["image"][0].as_py()
    with zipfile.ZipFile(io.BytesIO(read_bytes(locate(f"{place}/cvat/cvat.zip")))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == len(IDS) + 1


DATUMARO = Path(os.environ.get("LOSSIGHT_DATUMARO", "")) / "bin" / "python"
READ_BY_DATUMARO = """
import sys
from datumaro.components.dataset import Dataset
from datumaro.components.environment import Environment
print(*Environment().detect_dataset(sys.argv[1]))
for item in Dataset.import_from(sys.argv[1]):
    print(item.id, *item.media.data.shape[:2], *sorted(each.type.name for each in item.annotations))
"""


@pytest.mark.nightly
@pytest.mark.skipif(not DATUMARO.exists(), reason="LOSSIGHT_DATUMARO names no virtual environment with datumaro")
def test_datumaro_detects_a_coco_export_and_finds_each_image_with_its_person(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "coco")
    images = json.loads((tmp_path / "out" / ANNOTATIONS).read_text())["images"]
    command = [str(DATUMARO), "-c", READ_BY_DATUMARO, str(tmp_path / "out")]
    detected, *items = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert detected == "coco_person_keypoints"
    expected = [f"{Path(each['file_name']).stem} {each['height']} {each['width']} bbox points" for each in images]
    assert sorted(items) == sorted(expected)
