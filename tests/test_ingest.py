"""Raw data in its published layout into tables; the tiny data sets are made here, joint by joint."""

from __future__ import annotations

import csv
import datetime
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import simplejpeg

from distributed.ingest.ingest import ingest
from distributed.ingest.options import IngestOptions
from distributed.schema import POOL, check_schema, labelled
from distributed.storage.location import locate
from distributed.tables.manifest import freeze_pool
from jobs.cli import main
from model.errors import InputError
from model.image import image_size

WIDTH, HEIGHT, NUM_IMAGES = 40, 30, 5
JPEG = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))


def joints_of(flag: np.ndarray) -> np.ndarray:
    """(N, 14, 3): joint k of image i at (2k + 1, k + i), all inside the image."""
    k, i = np.meshgrid(np.arange(14), np.arange(NUM_IMAGES))
    return np.stack([2 * k + 1, k + i, flag], axis=2).astype(float)


# Every third joint of the even images has the flag.
FLAG = (np.arange(14)[None] % 3 == 0) & (np.arange(NUM_IMAGES)[:, None] % 2 == 0)
AXES = {"lsp": (2, 1, 0), "lspet": (1, 2, 0)}  # of (N, 14, 3), as published


def write_source(folder: Path, name: str, joints: np.ndarray) -> Path:
    (folder / "images").mkdir(parents=True)
    for i in range(len(joints)):
        (folder / "images" / (f"im{i + 1:04d}.jpg" if name == "lsp" else f"im{i + 1:05d}.jpg")).write_bytes(JPEG)
    scipy.io.savemat(folder / "joints.mat", {"joints": joints.transpose(AXES[name])})
    return folder


@pytest.fixture
def lsp(tmp_path: Path) -> Path:
    return write_source(tmp_path / "lsp", "lsp", joints_of(FLAG))


@pytest.fixture
def lspet(tmp_path: Path) -> Path:
    return write_source(tmp_path / "lspet", "lspet", joints_of(FLAG))


def run(name: str, source: Path, *, table: str = "labelled", **options: Any) -> dict[str, Any]:
    places = {"kind": name, "source": str(source), "out": str(source.parent / "out"), "as": table}
    return ingest(IngestOptions.model_validate({**places, **options}))


def rows_of(source: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(
        pq.read_table(path) for path in sorted((source.parent / "out").glob("*.parquet"))
    ).to_pylist()


def test_the_published_layouts_are_what_is_tested(lsp: Path, lspet: Path) -> None:
    assert scipy.io.loadmat(lsp / "joints.mat")["joints"].shape == (3, 14, NUM_IMAGES)
    assert scipy.io.loadmat(lspet / "joints.mat")["joints"].shape == (14, 3, NUM_IMAGES)


def test_lsp_flags_occluded_joints(lsp: Path) -> None:
    run("lsp", lsp)
    assert [row["visibility"] for row in rows_of(lsp)] == np.where(FLAG, 1, 2).tolist()


def test_lspet_flags_labelled_joints(lspet: Path) -> None:
    run("lspet", lspet)
    assert [row["visibility"] for row in rows_of(lspet)] == np.where(FLAG, 2, 0).tolist()


def test_rows_hold_image_joints_box_and_id(lsp: Path) -> None:
    record = run("lsp", lsp)
    rows = rows_of(lsp)
    assert [row["sample_id"] for row in rows] == [f"lsp-im000{i}" for i in range(1, 6)]
    assert all(row["image"] == JPEG for row in rows)
    assert rows[2]["keypoints"] == joints_of(FLAG)[2, :, :2].ravel().tolist()
    assert [row["box"] for row in rows] == [[1, i, 27, 13 + i] for i in range(NUM_IMAGES)]
    assert (record["kind"], record["table"], record["num_rows"], record["images"]) == ("table", "labelled", 5, 5)
    check_schema(pq.read_schema(lsp.parent / "out" / "part-00000.parquet"), labelled(14), where="here")


def test_ids_of_the_extension_are_its_own(lspet: Path) -> None:
    run("lspet", lspet)
    assert [row["sample_id"] for row in rows_of(lspet)][:2] == ["lspet-im00001", "lspet-im00002"]


def test_the_box_is_that_of_the_labelled_joints(lspet: Path) -> None:
    run("lspet", lspet)
    boxes = [row["box"] for row in rows_of(lspet)]
    assert boxes[0] == [1, 0, 2 * 12 + 1, 12]  # joints 0, 3, …, 12
    assert boxes[1] is None  # none is labelled: the whole image


@pytest.mark.parametrize(("start", "limit", "ids"), [(0, 2, "12"), (3, None, "45"), (1, 3, "234"), (4, 9, "5")])
def test_start_and_limit_choose_images(lsp: Path, start: int, limit: int | None, ids: str) -> None:
    run("lsp", lsp, start=start, limit=limit)
    assert [row["sample_id"] for row in rows_of(lsp)] == [f"lsp-im000{i}" for i in ids]


def test_starting_behind_the_last_image_is_refused(lsp: Path) -> None:
    with pytest.raises(InputError, match="expected images from number 5 on, found 5 images in all"):
        run("lsp", lsp, start=5)
    assert not (lsp.parent / "out").exists()


def test_a_pool_holds_no_labels(lsp: Path) -> None:
    record = run("lsp", lsp, table="pool")
    assert pq.read_schema(lsp.parent / "out" / "part-00000.parquet").names == POOL.names
    assert record["table"] == "pool"
    assert freeze_pool(locate(str(lsp.parent / "out"))).num_rows == NUM_IMAGES


def test_joints_outside_the_image_count_as_not_labelled(tmp_path: Path) -> None:
    joints = joints_of(np.zeros_like(FLAG))
    joints[0, 0, :2] = (-0.6, 5)
    joints[0, 1, :2] = (-0.4, 5)  # still within the pixel at the edge
    joints[0, 2, :2] = (WIDTH - 0.4, 5)
    joints[0, 3, :2] = (5, HEIGHT - 0.6)
    joints[0, 4, :2] = (np.nan, 5)
    source = write_source(tmp_path / "lsp", "lsp", joints)
    record = run("lsp", source)
    assert rows_of(source)[0]["visibility"][:6] == [0, 2, 0, 2, 0, 2]
    assert record["keypoints_outside"] == 3


def test_unlabelled_joints_outside_are_not_counted(tmp_path: Path) -> None:
    joints = joints_of(np.zeros_like(FLAG))
    joints[:, :, :2] = -1
    source = write_source(tmp_path / "lspet", "lspet", joints)
    assert run("lspet", source)["keypoints_outside"] == 0


def test_an_unreadable_image_is_kept(lsp: Path) -> None:
    (lsp / "images" / "im0002.jpg").write_bytes(JPEG[:20])
    (lsp / "images" / "im0003.jpg").write_bytes(b"")
    assert run("lsp", lsp)["num_rows"] == NUM_IMAGES
    assert [row["image"] for row in rows_of(lsp)] == [JPEG, JPEG[:20], b"", JPEG, JPEG]
    assert rows_of(lsp)[1]["visibility"] == np.where(FLAG[1], 1, 2).tolist()


def test_a_missing_image_is_an_input_error_and_the_same_call_goes_on_later(lsp: Path) -> None:
    (lsp / "images" / "im0003.jpg").unlink()
    with pytest.raises(InputError, match=r"im0003\.jpg: expected a file, found nothing"):
        run("lsp", lsp)
    assert list((lsp.parent / "out").glob("*")) == [lsp.parent / "out" / "config.json"]
    (lsp / "images" / "im0003.jpg").write_bytes(JPEG)
    assert run("lsp", lsp)["num_rows"] == NUM_IMAGES


def test_missing_joints_are_an_input_error(lsp: Path) -> None:
    (lsp / "joints.mat").unlink()
    with pytest.raises(InputError, match=r"joints\.mat: expected a file, found nothing"):
        run("lsp", lsp)
    with pytest.raises(InputError, match=r"joints\.mat: expected a file, found nothing"):
        run("lsp", lsp.parent / "nowhere")


def saved(**variables: Any) -> bytes:
    stream = io.BytesIO()
    scipy.io.savemat(stream, variables)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 40, b"no matlab file " * 40, saved(j=np.zeros(3)), saved(joints=joints_of(FLAG))[:600]],
    ids=["empty", "zeros", "text", "no joints", "truncated"],
)
def test_damaged_joints_are_an_input_error(lsp: Path, content: bytes) -> None:
    (lsp / "joints.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"joints\.mat: expected 'joints' in a \.mat file: ."):
        run("lsp", lsp)


@pytest.mark.parametrize(("name", "other"), [("lsp", "lspet"), ("lspet", "lsp")])
def test_the_layout_of_the_other_data_set_is_refused(tmp_path: Path, name: str, other: str) -> None:
    source = write_source(tmp_path / "x", other, joints_of(FLAG))
    with pytest.raises(InputError, match=rf"joints\.mat: expected joints of {name}, found an array of \("):
        run(name, source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("b.jpg", "drive 1/a.JPEG", "drive 1/ü=+%20.png", "drive 1/night/c.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    for name in ("notes.txt", "more.TXT", "LICENSE"):
        (root / name).write_bytes(b"x")
    (root / ".thumbs").mkdir()
    (root / ".thumbs" / "b.jpg").write_bytes(b"x")
    return root


def test_a_folders_paths_are_ids_and_its_folders_groups(folder: Path) -> None:
    record = run("folder", folder, table="pool")
    rows = rows_of(folder)
    assert [(row["sample_id"], row["group"]) for row in rows] == [
        ("b.jpg", None),
        ("drive 1/a.JPEG", "drive 1"),
        ("drive 1/night/c.jpg", "drive 1/night"),
        ("drive 1/ü=+%20.png", "drive 1"),
    ]
    assert [row["image"].decode() for row in rows] == [row["sample_id"] for row in rows]
    assert record["num_rows"] == record["unreadable"] == 4
    assert record["skipped"] == {".txt": 2, "hidden": 1, "without ending": 1}


def test_a_folders_images_may_be_of_any_format_and_the_command_says_what_is_odd_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.full((30, 40, 3), 90, np.uint8)
    for number, ending in enumerate((".JPG", ".png", ".webp", ".tif", ".tiff", ".bmp")):
        (tmp_path / f"{number}{ending}").write_bytes(cv2.imencode(ending, pixels)[1].tobytes())
    (tmp_path / "pages.tif").write_bytes(cv2.imencodemulti(".tif", [pixels, pixels])[1].tobytes())
    (tmp_path / "damaged.webp").write_bytes(b"RIFF")
    (tmp_path / "x.gif").touch()
    assert main(["ingest", "folder", "--source", str(tmp_path), "--out", str(tmp_path.parent / "out")]) == 0
    told = capsys.readouterr().out
    assert "wrote: 8 rows" in told
    assert "files passed over: 1 .gif" in told
    assert "1 images can't be read; they are kept, and scoring says why" in told
    assert "1 images have further pages or frames: only the first counts" in told
    assert [image_size(row["image"]) for row in rows_of(tmp_path)[:6]] == [(40, 30)] * 6


TIME = datetime.datetime(2026, 11, 28, 17, 5, tzinfo=datetime.UTC)
SIDECAR_CSV = """path,group,captured_at,box,camera,speed,empty
b.jpg,g1,2026-11-28T18:05:00+01:00,"1, 2, 30.5, 40",left,3,
./drive 1/a.JPEG,,2026-11-28 17:05:00,[0 0 9 9],"right, up",,
{folder}/drive 1/night/c.jpg,g2,,,,7.5,
gone.jpg,g3,,,left,1,
"""


@pytest.mark.parametrize("is_parquet", [False, True])
def test_a_folders_table_gives_group_time_box_and_further_columns_by_path(
    folder: Path, capsys: pytest.CaptureFixture[str], is_parquet: bool
) -> None:
    place = folder.parent / "more.table"
    text = SIDECAR_CSV.format(folder=folder)
    if is_parquet:
        rows = [*csv.DictReader(io.StringIO(text))]
        columns = {name: [row[name] or None for row in rows] for name in rows[0]}
        columns["speed"] = [value and float(value) for value in columns["speed"]]
        columns["captured_at"] = [TIME, TIME.replace(tzinfo=None), None, None]
        columns["box"] = [[1, 2, 30.5, 40], [0, 0, 9, 9], None, None]
        pq.write_table(pa.table(columns), place)
    else:
        place.write_text(text)
    arguments = ["ingest", "folder", "--source", folder, "--annotations", place, "--out", folder.parent / "out"]
    assert main([*map(str, arguments)]) == 0
    names = ("sample_id", "group", "captured_at", "box", "camera", "speed", "empty")
    assert [tuple(row[name] for name in names) for row in rows_of(folder)] == [
        ("b.jpg", "g1", TIME, [1, 2, 30.5, 40], "left", 3, None),
        ("drive 1/a.JPEG", "drive 1", TIME, [0, 0, 9, 9], "right, up", None, None),
        ("drive 1/night/c.jpg", "g2", None, None, None, 7.5, None),
        ("drive 1/ü=+%20.png", "drive 1", None, None, None, None, None),
    ]
    assert freeze_pool(locate(str(folder.parent / "out"))).num_rows == 4
    told = capsys.readouterr().out
    assert "1 images have no row in" in told
    assert "1 rows of" in told
    assert "have no image, such as 'gone.jpg'" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a CSV or Parquet table, found none: Empty CSV file"),
        ("PAR1xx", "expected a CSV or Parquet table, found none"),
        ("path,group\nb.jpg\n", "expected a CSV or Parquet table, found none: .*Expected 2 columns, got 1"),
        ("file,group\nb.jpg,g\n", r"expected a column 'path', found \['file', 'group'\]"),
        ("path,image\nb.jpg,g\n", "expected metadata, found a column 'image'"),
        ("path,a,a\nb.jpg,1,2\n", "expected each column once, found a column 'a'"),
        ("path,a\nb.jpg,1\nx.jpg,2\n./b.jpg,3\n", r"row 3: path: expected each once, found '\./b\.jpg' again"),
        ("path,a\nb.jpg,1\n,2\n", "row 2: path: expected a path, found none"),
        ("path,captured_at\nb.jpg,28.11.2026\n", r"row 1: captured_at: expected ISO 8601 .*, found '28\.11\.2026'"),
        ("path,box\nb.jpg,\nx.jpg,1 2 3\n", "row 2: box: expected x0, y0, x1, y1 .*, found '1 2 3'"),
        ("path,box\nb.jpg,5 5 1 9\n", "row 1: box: .*, found '5 5 1 9'"),
        ("path,box\nb.jpg,5 5 nan 9\n", "row 1: box: .*, found '5 5 nan 9'"),
        ("path\nphotos/b.jpg\n", r"expected paths below .*photos, such as 'b\.jpg', found 1 others, such as 'photos/b"),
        ("path\n", ".*found 0 others"),
    ],
)
def test_a_folders_table_that_cannot_be_used_is_one_line(folder: Path, content: str, message: str) -> None:
    (folder.parent / "more.csv").write_text(content)
    with pytest.raises(InputError, match=rf"more\.csv: {message}") as caught:
        run("folder", folder, table="pool", annotations=str(folder.parent / "more.csv"))
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "out").exists()


def test_a_folder_has_no_labels(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--as: expected pool for a folder, found labelled"):
        run("folder", folder)
    assert not (folder.parent / "out").exists()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.gif").touch()
    with pytest.raises(
        InputError, match=r"photos: expected images \(\.jpg, .*\), found none \(passed over: {'\.gif': 1}\)"
    ):
        run("folder", tmp_path / "photos", table="pool")


def test_one_image_is_no_folder(folder: Path) -> None:
    with pytest.raises(InputError, match=r"b\.jpg: expected a folder of images, found a file"):
        run("folder", folder / "b.jpg", table="pool")


def test_running_again_changes_nothing(lsp: Path) -> None:
    first = run("lsp", lsp)
    before = {path: path.stat().st_mtime_ns for path in (lsp.parent / "out").iterdir()}
    assert run("lsp", lsp) == {**first, "was_done": True}
    assert {path: path.stat().st_mtime_ns for path in (lsp.parent / "out").iterdir()} == before


def test_other_options_are_refused(lsp: Path) -> None:
    run("lsp", lsp)
    with pytest.raises(InputError, match=r"holds another run; differing: limit \(was None, is 2\)"):
        run("lsp", lsp, limit=2)


def test_a_source_that_has_grown_is_another_run(folder: Path) -> None:
    run("folder", folder, table="pool")
    (folder / "new.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match=r"differing: num_source_images \(was 4, is 5\)"):
        run("folder", folder, table="pool")


def test_progress_is_told_of_every_image(lsp: Path) -> None:
    told = []

    def progress(stage: str, done: int, total: int, **_: Any) -> None:
        told.append((stage, done, total))

    ingest(IngestOptions(kind="lsp", source=str(lsp), out=str(lsp.parent / "out"), limit=3), progress=progress)
    assert told == [("ingest", 1, 3), ("ingest", 2, 3), ("ingest", 3, 3)]
