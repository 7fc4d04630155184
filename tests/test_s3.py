"""The storage contract and the whole loop on a real S3 server."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.io
from conftest import plain_rows, read_scores

from distributed.ingest.fleet import row_of
from distributed.ingest.ingest import ingest
from distributed.ingest.options import IngestOptions
from distributed.runs.progress import silent
from distributed.runs.record import begin_run
from distributed.schema import POOL
from distributed.scoring.options import ScoringOptions
from distributed.scoring.score import score_pool
from distributed.selection.select import SelectionOptions, read_selection, select_samples
from distributed.storage.bundles import write_bundle
from distributed.storage.location import (
    Location,
    delete_files,
    list_files,
    locate,
    open_atomic,
    read_bytes,
    write_bytes,
)
from distributed.tables.manifest import freeze_pool
from distributed.tables.parquet import read_table, write_rows
from distributed.tables.reader import read_file
from model.errors import InputError, RunFailedError
from model.skeleton import COCO
from model.synthetic import Sample

pytestmark = pytest.mark.s3

CHECKOUT = Path(__file__).parent.parent


def names_below(location: Location) -> list[str]:
    return [info.path[len(location.path) + 1 :] for info in list_files(location, suffix="")]


def test_a_failing_block_leaves_nothing_behind(s3_uri: str) -> None:
    """Without care it would: pyarrow closes the stream, and a closed stream is an object."""
    folder = locate(f"{s3_uri}/failing")
    write_bytes(folder.join("other"), b"x")
    for num_bytes in (10, 12 * 2**20):  # one put; several parts
        with pytest.raises(ValueError, match="halfway"):
            fail_halfway(folder.join("x.parquet"), num_bytes)
        assert names_below(folder) == ["other"]


def fail_halfway(location: Location, num_bytes: int) -> None:
    with open_atomic(location) as stream:
        stream.write(bytes(num_bytes))
        raise ValueError("halfway")


def test_a_pickled_location_works_and_holds_no_secret(s3_uri: str) -> None:
    pickled = pickle.dumps(locate(f"{s3_uri}/pickled"))
    assert b"testsecret" not in pickled
    assert b"testkey" not in pickled
    write_bytes(pickle.loads(pickled).join("x"), b"there")  # noqa: S301
    assert read_bytes(locate(f"{s3_uri}/pickled/x")) == b"there"


def test_a_store_that_refuses_is_one_line_that_names_the_location(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RunFailedError, match=rf"^{s3_uri}/x: storage failed: .*AWS Error ACCESS_DENIED.*$"):
        locate(f"{s3_uri}/x").info()


def test_an_overwritten_file_is_not_read(s3_uri: str) -> None:
    pool = locate(f"{s3_uri}/changing")
    write_rows(pool, plain_rows(3), POOL)
    manifest = freeze_pool(pool)
    write_rows(pool, plain_rows(4), POOL)
    with pytest.raises(RunFailedError, match=r"part-00000\.parquet: expected the file of \d+ B that the run froze"):
        list(read_file(manifest, manifest.files[0], columns=["sample_id"]))


def test_a_single_object_is_a_pool(s3_uri: str) -> None:
    write_rows(locate(f"{s3_uri}/single"), plain_rows(3), POOL)
    manifest = freeze_pool(locate(f"{s3_uri}/single/part-00000.parquet"))
    assert [file.path for file in manifest.files] == ["part-00000.parquet"]
    assert len(list(read_file(manifest, manifest.files[0], columns=["sample_id"]))) == 1


def write_sources(folder: Path, samples: list[Sample]) -> None:
    """Two images, and what each kind of source says of them."""
    names, points = ["im00001.jpg", "im00002.jpg"], np.stack([np.arange(17) + 3.0, np.arange(17) + 9.0], axis=1)
    (folder / "images").mkdir()
    for name, sample in zip(names, samples, strict=False):
        (folder / "images" / name).write_bytes(sample.image)
    (folder / "images" / "ü=+% 1.jpg").write_bytes(samples[2].image)
    scipy.io.savemat(folder / "joints.mat", {"joints": np.tile(np.ones((14, 3, 1)), (1, 1, len(names)))})
    (folder / "photos.csv").write_text("path,group,box\nim00002.jpg,g,1 2 30 40\nü=+% 1.jpg,h,\n")
    values = [value for x, y in points.tolist() for value in (x, y, 2)]
    person = {"category_id": 1, "bbox": [1, 2, 30, 40], "keypoints": values}
    persons = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [{**person, "id": n, "image_id": n} for n in (0, 1)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.keypoint_names)}],
    }
    boxes = [{"image_id": n, "bbox": [1, 2, 30, 40], "score": 0.5} for n in (0, 1)]
    joints = [{"image": name, "joints": points[:16].tolist(), "joints_vis": [1] * 16} for name in names]
    for name, content in {"persons": persons, "boxes": boxes, "joints": joints}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "source", "options"),
    [
        ("folder", "/images", {"annotations": "/photos.csv"}),
        ("coco", "/images", {"annotations": "/persons.json", "as": "labelled"}),
        ("coco", "/images", {"annotations": "/boxes.json", "images": "/persons.json"}),
        ("mpii", "/images", {"annotations": "/joints.json", "as": "labelled"}),
        ("lspet", "", {"as": "labelled"}),
    ],
)
def test_sources_of_each_kind_give_on_the_store_what_they_give_on_the_disk(
    s3_uri: str, tmp_path: Path, samples: list[Sample], kind: str, source: str, options: dict[str, str]
) -> None:
    write_sources(tmp_path, samples)
    place = f"{s3_uri}/{tmp_path.name}"
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        write_bytes(locate(f"{place}/{path.relative_to(tmp_path)}"), path.read_bytes())
    found = []
    for root in (place, str(tmp_path)):
        places = {name: root + value if value.startswith("/") else value for name, value in options.items()}
        given = {"kind": kind, "source": root + source, "out": f"{root}/out", **places}
        record = ingest(IngestOptions.model_validate(given))
        assert ingest(IngestOptions.model_validate(given)) == {**record, "was_done": True}
        found.append(read_table(locate(f"{root}/out/part-00000.parquet")))
    assert found[0] == found[1]
    assert len(found[0]) == (3 if kind == "folder" else 2)


def run_loop(place: str, samples: list[Sample], bundle_files: dict[str, bytes]) -> tuple[pa.Table, pa.Table]:
    """The scores, by id, and the selection of a run in one place."""
    rows = [row_of(sample) for sample in samples]
    rows[5]["image"] = b""
    for part, chosen in (("1", rows[:30]), ("2", rows[30:])):
        write_rows(locate(f"{place}/pool/night={part}"), chosen, POOL, row_group_bytes=20_000)
    write_rows(locate(f"{place}/known"), rows[40:], POOL)
    write_bundle(locate(f"{place}/model"), bundle_files)
    arguments: dict[str, Any] = {"config": {}, "progress": silent, "options": ScoringOptions(debug=True)}
    first = score_pool(f"{place}/pool", model=f"{place}/model", out=f"{place}/scores", **arguments)
    again = score_pool(f"{place}/pool", model=f"{place}/model", out=f"{place}/scores", **arguments)
    assert again == {**first, "was_done": True}
    options = SelectionOptions(budget=10, max_per_group=6, min_gap=0, exclude=(f"{place}/known",))
    select_samples(f"{place}/scores", out=f"{place}/selection", options=options, config={})
    scores = pa.concat_tables(read_scores(locate(f"{place}/scores"))).sort_by("sample_id")
    return scores, read_selection(locate(f"{place}/selection"))


def test_the_whole_loop_gives_what_it_gives_on_the_disk(
    s3_uri: str, tmp_path: Path, samples: list[Sample], bundle_files: dict[str, bytes]
) -> None:
    remote = run_loop(f"{s3_uri}/loop", samples, bundle_files)
    local = run_loop(str(tmp_path), samples, bundle_files)
    assert len(remote[0]) == len(samples)
    assert len(remote[1]) == 10
    assert [table.to_pylist() for table in remote] == [table.to_pylist() for table in local]


@pytest.mark.ray
def test_actors_score_from_and_to_the_store(
    s3_uri: str, samples: list[Sample], bundle_files: dict[str, bytes], tmp_path: Path
) -> None:
    """In a process of its own: its workers have the store's credentials in their environment from the start."""
    place = f"{s3_uri}/actors"
    write_rows(locate(f"{place}/pool"), [row_of(sample) for sample in samples], POOL, row_group_bytes=20_000)
    write_bundle(locate(f"{place}/model"), bundle_files)
    options = ["--pool", f"{place}/pool", "--model", f"{place}/model", "--cpus-per-actor", "1", "--actors", "2"]
    for command in ([*options, "--out", f"{place}/scores"], [*options, "--out", str(tmp_path / "x"), "--debug"]):
        subprocess.run([sys.executable, "-m", "jobs.score", *command], cwd=CHECKOUT, check=True, capture_output=True)
    found = [
        pa.concat_tables(read_scores(locate(uri))).sort_by("sample_id") for uri in (f"{place}/scores", f"{tmp_path}/x")
    ]
    assert found[0].drop_columns(["predicted_loss", "confidence"]) == found[1].drop_columns(
        ["predicted_loss", "confidence"]
    )
    assert np.allclose(found[0]["predicted_loss"], found[1]["predicted_loss"], rtol=0, atol=1e-6)


def test_an_interrupted_run_on_the_store_starts_again(s3_uri: str) -> None:
    out = locate(f"{s3_uri}/interrupted")
    assert begin_run(out, {"budget": 3})
    assert begin_run(out, {"budget": 3})
    with pytest.raises(InputError, match=r"differing: budget \(was 3, is 4\)"):
        begin_run(out, {"budget": 4})
    write_bytes(locate(f"{s3_uri}/foreign/x.txt"), b"mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        begin_run(locate(f"{s3_uri}/foreign"), {})


def test_a_folder_that_was_emptied_is_a_place_for_a_run(s3_uri: str) -> None:
    """Some stores keep the folder; a roll-back removes what was in it."""
    out = locate(f"{s3_uri}/rolled-back")
    assert begin_run(out, {"kind": "night"})
    delete_files(out, ["config.json"])
    assert begin_run(out, {"kind": "selection"})
