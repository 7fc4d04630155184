"""COCO and MPII as published into tables, a row a person; the tiny data sets are made here, joint by joint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import simplejpeg

from distributed.ingest.ingest import ingest
from distributed.ingest.options import IngestOptions
from distributed.schema import POOL, check_schema, labelled, skeleton_name
from distributed.storage.location import locate
from distributed.tables.manifest import freeze_pool
from jobs.cli import main
from model.errors import InputError
from model.skeleton import COCO, MPII

WIDTH, HEIGHT = 200, 160


def jpeg(shade: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), shade, np.uint8))


def write_images(folder: Path, names: list[str]) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(40 * shade))


def run(name: Any, folder: Path, annotations: str, *, table: Any = "labelled", **options: Any) -> dict[str, Any]:
    places = {"source": folder / "images", "annotations": folder / annotations, "out": folder / "out"}
    given = {"kind": name, **{key: str(place) for key, place in places.items()}, "as": table, **options}
    return ingest(IngestOptions.model_validate(given))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(pq.read_table(path) for path in sorted((folder / "out").glob("*.parquet"))).to_pylist()


# COCO

COCO_POINTS = np.stack([10 + 3 * np.arange(17), 20 + 2 * np.arange(17), np.arange(17) % 3], axis=1)  # x, y, visibility


def person(number: int, image: int, **change: Any) -> dict[str, Any]:
    values = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": 11,
        "keypoints": COCO_POINTS.ravel().tolist(),
        "bbox": [8, 18, 60, 40],
        "area": 2400,
    }
    return {key: value for key, value in {**values, **change}.items() if value is not None}


def coco_json() -> dict[str, Any]:
    """Two images; of six annotations one is a crowd and one has no labelled keypoint."""
    return {
        "images": [
            {"id": 7, "file_name": "val/b.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 3, "file_name": "val/a.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            person(30, 3),
            person(12, 7),
            person(31, 7, iscrowd=1, keypoints=[0] * 51, num_keypoints=0),
            person(11, 7, bbox=[0, 0, 0, 0]),
            person(13, 7, keypoints=[0] * 51, num_keypoints=0, bbox=[1, 2, 3, 4]),
            person(14, 7, keypoints=None, bbox=None, num_keypoints=None),
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names), "skeleton": []}],
    }


WriteCoco = Callable[[Any], Path]


@pytest.fixture
def write_coco(tmp_path: Path) -> WriteCoco:
    write_images(tmp_path / "images", ["val/a.jpg", "val/b.jpg"])

    def write(content: Any) -> Path:
        (tmp_path / "persons.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


@pytest.fixture
def coco(write_coco: WriteCoco) -> Path:
    return write_coco(coco_json())


def test_a_row_is_a_person_with_box_keypoints_and_the_bytes_of_the_image(coco: Path) -> None:
    record = run("coco", coco, "persons.json")
    rows = rows_of(coco)
    assert [row["sample_id"] for row in rows] == ["coco-val/b-11", "coco-val/b-12", "coco-val/a-30"]
    assert [row["image"] for row in rows] == [jpeg(40), jpeg(40), jpeg(0)]
    assert [row["group"] for row in rows] == ["val/b.jpg", "val/b.jpg", "val/a.jpg"]
    assert rows[1]["box"] == [7.5, 17.5, 67.5, 57.5]  # x, y, width, height counted from the image's corner
    for row in rows:
        assert row["keypoints"] == COCO_POINTS[:, :2].astype(float).ravel().tolist()
        assert row["visibility"] == COCO_POINTS[:, 2].tolist()
    assert (record["num_rows"], record["images"]) == (3, 2)
    assert record["skipped"] == {"unlabelled": 2, "crowd": 1}


def test_a_box_without_area_is_that_of_the_labelled_keypoints(coco: Path) -> None:
    run("coco", coco, "persons.json")
    assert rows_of(coco)[0]["box"] == [13, 22, 10 + 3 * 16, 20 + 2 * 16]  # joint 0 is not labelled


def test_the_table_says_its_skeleton(coco: Path) -> None:
    run("coco", coco, "persons.json")
    schema = pq.read_schema(coco / "out" / "part-00000.parquet")
    assert skeleton_name(schema) == "coco"
    check_schema(schema, labelled(17), where="here")


def test_a_pool_has_persons_without_keypoints_if_they_have_a_box_and_no_crowds(coco: Path) -> None:
    record = run("coco", coco, "persons.json", table="pool")
    assert [row["sample_id"] for row in rows_of(coco)] == [f"coco-val/{i}" for i in ("b-11", "b-12", "b-13", "a-30")]
    assert rows_of(coco)[2]["box"] == [0.5, 1.5, 3.5, 5.5]
    assert record["skipped"] == {"crowd": 1, "no_box": 1}
    assert pq.read_schema(coco / "out" / "part-00000.parquet").names == POOL.names
    assert freeze_pool(locate(str(coco / "out"))).num_rows == 4


def test_start_and_limit_count_persons(coco: Path) -> None:
    run("coco", coco, "persons.json", start=1, limit=1)
    assert [row["sample_id"] for row in rows_of(coco)] == ["coco-val/b-12"]


def test_ids_do_not_depend_on_the_order_of_the_annotations(write_coco: WriteCoco) -> None:
    content = coco_json()
    content["annotations"].reverse()
    folder = write_coco(content)
    run("coco", folder, "persons.json")
    assert [row["sample_id"] for row in rows_of(folder)] == ["coco-val/b-11", "coco-val/b-12", "coco-val/a-30"]


def test_other_categories_are_left_out(write_coco: WriteCoco) -> None:
    content = coco_json()
    content["categories"].append({"id": 2, "name": "dog"})
    content["annotations"].append({"id": 90, "image_id": 3, "category_id": 2, "bbox": [0, 0, 9, 9]})
    folder = write_coco(content)
    assert run("coco", folder, "persons.json")["skipped"]["other_category"] == 1


def test_keypoints_that_are_no_numbers_count_as_not_labelled(write_coco: WriteCoco) -> None:
    points = COCO_POINTS.astype(float)
    points[1, 0] = np.nan
    points[2, 1] = np.inf
    content = coco_json()
    content["annotations"] = [person(1, 3, keypoints=points.ravel().tolist())]
    folder = write_coco(content)
    run("coco", folder, "persons.json")
    assert rows_of(folder)[0]["visibility"] == [0, 0, 0, *COCO_POINTS[3:, 2].tolist()]


def changed(key: str, value: Any) -> dict[str, Any]:
    return {**coco_json(), key: value}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected COCO's JSON, found b''"),
        ('{"images": 3}', r"expected the lists .*, found \['images'\]"),
        ({"images": []}, r"expected the lists .*, found \['images'\]"),
        (
            changed("annotations", [person(1, 3, keypoints=[0] * 42)]),
            "annotation 1: keypoints: expected 51 .* found 42",
        ),
        (changed("annotations", [person(1, 3, keypoints=[3] * 51)]), "annotation 1: visibility: expected 0, 1 or 2"),
        (changed("annotations", [person(1, 3, keypoints=["x"] * 51)]), "could not convert"),
        (changed("annotations", [person(1, 3, keypoints=[None] * 51)]), "visibility: expected 0, 1 or 2"),
        (changed("annotations", [person(1, 3, bbox=[1, 2])]), "annotation 1: bbox: expected x, y, width and height"),
        (changed("annotations", [person(1, 99)]), "found entries that fail with KeyError: 99"),
        (changed("annotations", [person(1, 3, id=None)]), "KeyError: 'id'"),
        (changed("annotations", ["person"]), "found entries that fail with TypeError"),
        (changed("images", [{"id": 3}]), "KeyError: 'file_name'"),
        (changed("categories", [{"id": 1, "name": "person"}]), "expected a category with keypoints, found none"),
        (changed("categories", [{"id": 1, "keypoints": ["a", "b"]}]), "keypoints: expected 6 numbers, found 51"),
    ],
)
def test_annotations_that_are_not_cocos_are_refused_in_one_line(
    write_coco: WriteCoco, content: Any, message: str
) -> None:
    folder = write_coco(content)
    with pytest.raises(InputError, match=rf"persons\.json: .*{message}") as caught:
        run("coco", folder, "persons.json")
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()


def test_a_table_without_a_labelled_person_is_refused(write_coco: WriteCoco) -> None:
    folder = write_coco(changed("annotations", [person(1, 3, iscrowd=1), person(2, 3, keypoints=[0] * 51)]))
    expected = r"expected persons from number 0 on, found 0 persons in all \(left out: {'crowd': 1, 'unlabelled': 1}\)"
    with pytest.raises(InputError, match=expected):
        run("coco", folder, "persons.json")


def test_an_image_that_is_missing_is_named_before_anything_is_written(coco: Path) -> None:
    (coco / "images" / "val" / "a.jpg").unlink()
    with pytest.raises(
        InputError, match=r"val/a\.jpg: expected an image named by .*persons\.json, found none \(1 miss"
    ):
        run("coco", coco, "persons.json")
    assert not (coco / "out").exists()
    assert run("coco", coco, "persons.json", limit=2)["num_rows"] == 2  # the others are there


def test_names_of_images_never_lead_out_of_the_source(write_coco: WriteCoco, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    content = coco_json()
    content["images"][0]["file_name"] = "../secret.jpg"
    with pytest.raises(InputError, match=r"secret\.jpg: expected an image named by"):
        run("coco", write_coco(content), "persons.json")


def test_an_unreadable_image_is_kept(coco: Path) -> None:
    (coco / "images" / "val" / "b.jpg").write_bytes(b"broken")
    assert run("coco", coco, "persons.json")["num_rows"] == 3
    assert [row["image"] for row in rows_of(coco)][:2] == [b"broken"] * 2


def test_an_annotation_that_occurs_twice_is_refused(write_coco: WriteCoco) -> None:
    folder = write_coco(changed("annotations", [person(1, 3), person(1, 3)]))
    with pytest.raises(InputError, match=r"expected unique values, found 'coco-val/a-1' twice"):
        run("coco", folder, "persons.json")


def test_other_annotations_are_another_run(write_coco: WriteCoco) -> None:
    folder = write_coco(coco_json())
    run("coco", folder, "persons.json")
    assert run("coco", folder, "persons.json")["was_done"]
    write_coco(changed("annotations", [person(n, 3) for n in range(3)]))
    with pytest.raises(InputError, match="holds another run; differing: annotations_fingerprint"):
        run("coco", folder, "persons.json")


# COCO's boxes


def test_boxes_of_instances_make_a_pool_with_the_ids_of_person_keypoints(write_coco: WriteCoco) -> None:
    content = coco_json()
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    content["annotations"] = [
        person(12, 7, keypoints=None),
        person(5, 3, category_id=18),
        person(6, 3, bbox=[1, 1, 0, 3]),
    ]
    folder = write_coco(content)
    record = run("coco", folder, "persons.json", table="pool")
    assert [(row["sample_id"], row["box"]) for row in rows_of(folder)] == [("coco-val/b-12", [7.5, 17.5, 67.5, 57.5])]
    assert pq.read_schema(folder / "out" / "part-00000.parquet").names == POOL.names
    assert record["skipped"] == {"no_box": 1, "other_category": 1}
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]
    with pytest.raises(InputError, match=r"persons.json: expected a category 'person', found \['cat', 'dog'\]"):
        run("coco", write_coco(content), "persons.json", table="pool")


def detection(image: Any, score: float = 0.5, **change: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": [8, 18, 60, 40], "score": score, **change}


@pytest.fixture
def detections(write_coco: WriteCoco, tmp_path: Path) -> WriteCoco:
    write_images(tmp_path / "images", ["000000000139.jpg", "val/COCO_val2014_000000000042.jpg"])
    return write_coco


def test_a_detectors_boxes_are_found_by_name_or_number_with_ids_that_stay(detections: WriteCoco) -> None:
    found = [
        detection(139, 0.25),
        detection(139, 0.75, bbox=[1.4, 2.6, 30, 40.5]),
        detection("val/a.jpg"),
        detection("b"),
        detection(42),
        detection(42, 0.125),  # the same box again
        detection(139, 0.0625, bbox=[0, 0, 9, 9]),
        detection(9999, category_id=18),
        detection(42, bbox=[0, 0, 0, 9]),
    ]
    folder = detections(found)
    record = run("coco", folder, "persons.json", table="pool", min_box_score=0.1)
    rows = [(row["sample_id"], row["group"], row["box_score"]) for row in rows_of(folder)]
    assert rows == [
        ("coco-000000000139-1-3-30-40", "000000000139.jpg", 0.75),
        ("coco-000000000139-8-18-60-40", "000000000139.jpg", 0.25),
        ("coco-val/COCO_val2014_000000000042-8-18-60-40", "val/COCO_val2014_000000000042.jpg", 0.5),
        ("coco-val/COCO_val2014_000000000042-8-18-60-40-2", "val/COCO_val2014_000000000042.jpg", 0.125),
        ("coco-val/a-8-18-60-40", "val/a.jpg", 0.5),
        ("coco-val/b-8-18-60-40", "val/b.jpg", 0.5),
    ]
    assert rows_of(folder)[1]["box"] == [7.5, 17.5, 67.5, 57.5]
    assert record["skipped"] == {"low_score": 1, "no_box": 1, "other_category": 1}
    assert freeze_pool(locate(str(folder / "out"))).num_rows == len(rows)


def test_cocos_list_of_images_names_what_a_detector_numbers(detections: WriteCoco, tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(json.dumps({"images": coco_json()["images"]}))
    folder = detections([detection(7, category_id=0), detection(3, category_id=0)])  # a detector of persons alone
    run("coco", folder, "persons.json", table="pool", images=str(tmp_path / "info.json"))
    assert [row["group"] for row in rows_of(folder)] == ["val/a.jpg", "val/b.jpg"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            [],
            {"table": "labelled"},
            "--as: expected a pool of .*persons.json, which has boxes without keypoints, found la",
        ),
        ([], {"skeleton": "coco"}, "--skeleton: expected a pool of .*, found coco"),
        ([], {}, "expected persons from number 0 on, found 0 persons"),
        ([3], {}, r"entry 0: expected \['bbox', 'image_id', 'score'\], found int"),
        ([{"image_id": 1, "keypoints": []}], {}, r"entry 0: expected .*, found \['image_id', 'keypoints'\]"),
        ([detection(139), detection(139, bbox=[1])], {}, "entry 1: bbox: expected x, y, width and height"),
        ([detection(139, float("nan"))], {}, "entry 0: score: expected a number, found nan"),
        ([detection(7)], {}, "entry 0: image_id: expected the name of an image, or .*, found 7; --images takes"),
        ([detection([7])], {}, r"entry 0: image_id: expected the name .*, found \[7\]"),
        ([detection("same")], {}, "entry 0: image_id: expected one image 'same', found val/same.jpg and val/same.png"),
        ([detection(7)], {"images": "list"}, "entry 0: image_id: expected an image of --images, found 7"),
        ([detection(7, category_id=c) for c in (4, 2)], {}, r"category_id: expected 1, COCO's person, .*\['2', '4'\]"),
        (coco_json(), {"min_box_score": 0.5}, "--min-box-score: expected the results of a detector beside it"),
    ],
)
def test_results_that_cannot_be_used_are_refused_in_one_line(
    detections: WriteCoco, tmp_path: Path, content: Any, options: dict[str, Any], message: str
) -> None:
    write_images(tmp_path / "images", ["val/same.jpg", "val/same.png"])
    if "images" in options:
        (tmp_path / "list.json").write_text('{"images": []}')
        options = {"images": str(tmp_path / "list.json")}
    with pytest.raises(InputError, match=message) as caught:
        run("coco", detections(content), "persons.json", **{"table": "pool", **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# MPII

MPII_POINTS = np.stack([10.0 + 3 * np.arange(16), 20.0 + 2 * np.arange(16)], axis=1)  # numbered from 1


def joint(number: int, *, is_visible: Any = 1) -> dict[str, Any]:
    return {"x": MPII_POINTS[number, 0], "y": MPII_POINTS[number, 1], "id": number, "is_visible": is_visible}


def struct_of(joints: list[dict[str, Any]], *, centre: tuple[int, int] | None, scale: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"x1": 1, "annopoints": {"point": joints} if joints else np.empty((0, 0))}
    if centre:
        found["objpos"] = {"x": centre[0], "y": centre[1]}
    return found if scale is None else {**found, "scale": scale}


def struct_array(items: list[dict[str, Any]]) -> np.ndarray:
    """An array of structs as MATLAB saves it: all fields of all, empty where one lacks it."""
    names = list(dict.fromkeys(name for item in items for name in item))
    found = np.empty((1, len(items)), dtype=[(name, object) for name in names])
    for index, item in enumerate(items):
        for name in names:
            value = item.get(name, np.empty((0, 0)))
            if name == "annopoints" and isinstance(value, dict):
                value = {"point": struct_array(value["point"])}
            found[name][0, index] = value
    return found


ALL = [joint(n, is_visible=[0, 1, np.empty((0, 0)), "0", "1"][n % 5]) for n in range(16)]
ALL_VISIBILITY = [[1, 2, 2, 1, 2][n % 5] for n in range(16)]


def write_mat(path: Path) -> None:
    """Image a: two persons; b: none; c: a single one with one joint and no scale; d: a test image's, unlabelled."""
    persons = [
        struct_array(
            [struct_of(ALL, centre=(60, 50), scale=0.5), struct_of([joint(6), joint(2)], centre=(30, 40), scale=0.25)]
        ),
        np.empty((0, 0)),
        struct_array([struct_of([joint(9)], centre=None, scale=None)]),
        struct_array([struct_of([], centre=(70, 80), scale=0.3)]),
    ]
    annolist = np.empty((1, 4), dtype=[("image", object), ("annorect", object)])
    for index, (name, annorect) in enumerate(zip("abcd", persons, strict=True)):
        annolist["image"][0, index] = {"name": f"{name}.jpg"}
        annolist["annorect"][0, index] = annorect
    scipy.io.savemat(path, {"RELEASE": {"annolist": annolist, "img_train": np.array([[1, 1, 1, 0]])}})


@pytest.fixture
def mpii(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    write_mat(tmp_path / "mpii.mat")
    return tmp_path


def test_the_mat_has_a_row_a_person_with_zero_based_keypoints_and_the_box_of_centre_and_scale(mpii: Path) -> None:
    record = run("mpii", mpii, "mpii.mat")
    rows = rows_of(mpii)
    assert [row["sample_id"] for row in rows] == ["mpii-a-60-50", "mpii-a-30-40", "mpii-c"]
    assert [row["group"] for row in rows] == ["a.jpg", "a.jpg", "c.jpg"]
    assert rows[0]["keypoints"] == (MPII_POINTS - 1).ravel().tolist()
    assert rows[0]["visibility"] == ALL_VISIBILITY
    # 100 px high around (59, 49), moved down by 15 * 0.5
    assert rows[0]["box"] == [9, 6.5, 109, 106.5]
    assert [n for n in range(16) if rows[1]["visibility"][n]] == [2, 6]
    assert rows[2]["box"] is None  # neither a scale, nor two joints to take a box from
    assert record["skipped"] == {"unlabelled": 1}
    assert (record["num_rows"], record["images"]) == (3, 2)
    assert skeleton_name(pq.read_schema(mpii / "out" / "part-00000.parquet")) == "mpii"


def test_a_pool_has_the_persons_of_test_images(mpii: Path) -> None:
    record = run("mpii", mpii, "mpii.mat", table="pool")
    assert [row["sample_id"] for row in rows_of(mpii)] == ["mpii-a-60-50", "mpii-a-30-40", "mpii-c", "mpii-d-70-80"]
    assert record["skipped"] == {}


def mpii_json() -> list[dict[str, Any]]:
    """The same persons as in the .mat, and one more at the same place; those of an image apart from each other."""
    full = {"image": "a.jpg", "joints": MPII_POINTS.tolist(), "joints_vis": [1] * 16, "center": [60.0, 50.0]}
    two = {
        "image": "a.jpg",
        "joints": [list(MPII_POINTS[n]) if n in (2, 6) else [0, 0] for n in range(16)],
        "joints_vis": [int(n in (2, 6)) for n in range(16)],
        "center": [30.0, 40.0],
        "scale": 0.25,
    }
    one = {"image": "c.jpg", "joints": MPII_POINTS.tolist(), "joints_vis": [n == 9 for n in range(16)]}
    unlabelled = {"image": "d.jpg", "center": [70, 80], "scale": 0.3}
    return [{**full, "scale": 0.5}, one, two, unlabelled, {**full, "scale": -1}]


def test_the_json_gives_the_ids_and_boxes_of_the_mat(mpii: Path) -> None:
    (mpii / "train.json").write_text(json.dumps(mpii_json()))
    record = run("mpii", mpii, "train.json")
    rows = rows_of(mpii)
    assert [row["sample_id"] for row in rows] == ["mpii-a-60-50", "mpii-a-30-40", "mpii-a-60-50-2", "mpii-c"]
    assert rows[0]["keypoints"] == (MPII_POINTS - 1).ravel().tolist()
    assert [row["visibility"] for row in rows[:2]] == [[2] * 16, [2 * (n in (2, 6)) for n in range(16)]]
    assert rows[0]["box"] == [9, 6.5, 109, 106.5]
    assert rows[2]["box"] == [*(MPII_POINTS.min(axis=0) - 1), *(MPII_POINTS.max(axis=0) - 1)]  # scale -1 is none
    assert record["skipped"] == {"unlabelled": 1}
    assert record["images"] == 2  # image a was read once for its three persons


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (b"{}", "found dict"),
        (b"[3]", "found entry 0 without an image"),
        (b'[{"image": "a.jpg", "joints": [[1, 2]], "joints_vis": [1]}]', r"found entry 0 with joints \(1, 2\)"),
        (b'[{"image": "a.jpg", "center": 3}]', "found entry 0 with center 3"),
    ],
)
def test_json_that_is_not_mpiis_is_refused(mpii: Path, content: bytes, found: str) -> None:
    (mpii / "train.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"train\.json: expected a JSON list of image, joints, .*{found}"):
        run("mpii", mpii, "train.json")
    assert not (mpii / "out").exists()


def test_damaged_mat_files_are_refused(mpii: Path) -> None:
    whole = (mpii / "mpii.mat").read_bytes()
    for content in (b"", b"text" * 99, whole[:300]):
        (mpii / "mpii.mat").write_bytes(content)
        with pytest.raises(InputError, match=r"mpii\.mat: expected 'RELEASE' in a \.mat file: ."):
            run("mpii", mpii, "mpii.mat")
    scipy.io.savemat(mpii / "mpii.mat", {"joints": np.zeros(3)})
    with pytest.raises(InputError, match=r"mpii\.mat: expected 'RELEASE' in a \.mat file: 'RELEASE'"):
        run("mpii", mpii, "mpii.mat")


def test_a_joint_that_mpii_does_not_have_is_refused(mpii: Path) -> None:
    bad = {**joint(3), "id": 16}
    annolist = struct_array(
        [{"image": {"name": "a.jpg"}, "annorect": struct_array([{"annopoints": {"point": [bad]}}])}]
    )
    scipy.io.savemat(mpii / "mpii.mat", {"RELEASE": {"annolist": annolist}})
    with pytest.raises(InputError, match=r"found joint 16 in a\.jpg"):
        run("mpii", mpii, "mpii.mat")


# As a user meets it


def test_the_command_says_what_was_left_out_and_that_bytes_repeat(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ingest", "coco", "--source", coco / "images", "--annotations", coco / "persons.json"]
    assert main([str(each) for each in [*arguments, "--as", "labelled", "--out", coco / "table"]]) == 0
    told = capsys.readouterr().out
    assert "3 persons in 2 images; each row has its image's bytes" in told
    assert "persons left out: 1 crowd, 2 unlabelled" in told


@pytest.mark.parametrize(
    ("name", "annotations", "message"),
    [
        ("coco", None, "--annotations: expected the file with the persons of coco, found none"),
        ("mpii", None, "--annotations: expected the file with the persons of mpii, found none"),
        ("lsp", "persons.json", "--annotations: expected none for lsp, found persons.json"),
        ("mpii", "nowhere.mat", "nowhere.mat: expected a file, found nothing"),
    ],
)
def test_annotations_are_for_persons_only(tmp_path: Path, name: Any, annotations: str | None, message: str) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        ingest(IngestOptions(kind=name, source=str(tmp_path), annotations=annotations, out=out))
    assert not (tmp_path / "out").exists()


def test_joints_of_the_tables_are_the_skeletons() -> None:
    assert (len(COCO_POINTS), len(MPII_POINTS)) == (COCO.num_keypoints, MPII.num_keypoints)
