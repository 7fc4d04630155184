"""The real Label Studio: what is drawn in it comes back by id, is trained on, and decides on the next champion.

LOSSIGHT_LABEL_STUDIO names a virtual environment of its own with `pip install label-studio`: it can't live beside ours.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from picked import make_bundle, make_pool, publish

from distributed.ingest.returned import read_returned
from distributed.schema import labelled
from distributed.storage.champion import find_bundle
from distributed.storage.location import locate
from distributed.tables.parquet import write_rows
from jobs.cli import main
from model.skeleton import LSP
from model.synthetic import Sample

ENVIRONMENT = os.environ.get("LOSSIGHT_LABEL_STUDIO", "")
TOKEN = "0" * 40
NUM = 12
START_S = 600

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        not (Path(ENVIRONMENT) / "bin" / "label-studio").exists(),
        reason="LOSSIGHT_LABEL_STUDIO names no virtual environment with label-studio",
    ),
]


class Server:
    """Calls of a running Label Studio."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer; bytes where it is none."""
        request = urllib.request.Request(  # noqa: S310
            self.address + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
            data = answer.read()
        try:
            return json.loads(data)
        except ValueError:
            return data


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server on a free port, with a data base of its own, and the folder that it serves files from."""
    base, files = tmp_path_factory.mktemp("label-studio"), tmp_path_factory.mktemp("files")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(base),
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(files),
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
    }
    environment.pop("PYTHONPATH", None)
    where = ["--internal-host", "127.0.0.1", "--port", str(port), "--no-browser"]
    user = ["--username", "a@example.org", "--password", "only-here-1", "--user-token", TOKEN]
    with (base / "log").open("wb") as log:
        command = [f"{ENVIRONMENT}/bin/label-studio", "start", *where, *user]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        until = time.monotonic() + START_S
        while time.monotonic() < until and process.poll() is None:
            try:
                server.call("GET", "/api/projects/")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        else:
            pytest.fail(f"Label Studio did not start: {(base / 'log').read_text()[-2000:]}")
        yield server, files
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def points_of(result: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(each for each in result if each["value"].get("keypointlabels") == [name])


def annotate(server: Server, tasks: list[dict[str, Any]]) -> None:
    """By rank: moved, occluded, deleted, confirmed, skipped, rejected with a pose, a draft, twice, rejected without.

    Then moved and rejected, and an annotation that the server makes of the prediction.
    """

    def predicted(place: int) -> list[dict[str, Any]]:
        return copy.deepcopy(tasks[place]["predictions"][0]["result"])

    def submit(place: int, result: list[dict[str, Any]], **more: Any) -> None:
        body = {"result": result, "lead_time": 1.0, **more}
        server.call("POST", f"/api/tasks/{tasks[place]['id']}/annotations/", body)

    def choice(name: str, value: str) -> dict[str, Any]:
        return {"id": "c", "from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [value]}}

    moved = predicted(0)
    points_of(moved, "neck")["value"].update(x=40.0, y=25.5)
    submit(0, moved)
    occluded = predicted(1)
    neck = points_of(occluded, "neck")
    place = {side: neck["value"][side] for side in ("x", "y", "width")}
    submit(
        1,
        [
            *occluded,
            {**neck, **choice("visibility", "occluded"), "id": neck["id"]}
            | {"value": {**place, "choices": ["occluded"]}},
        ],
    )
    submit(2, [each for each in predicted(2) if each["value"].get("keypointlabels") != ["head_top"]])
    submit(3, predicted(3))
    submit(4, [], was_cancelled=True)
    submit(5, [*predicted(5), choice("rejected", "no person")])
    server.call("POST", f"/api/tasks/{tasks[6]['id']}/drafts", {"result": predicted(6), "lead_time": 1})
    submit(7, predicted(7))
    second = predicted(7)
    points_of(second, "neck")["value"]["x"] = 90.0
    submit(7, second)
    submit(8, [choice("rejected", "blurred or dark")])
    changed = predicted(9)
    points_of(changed, "neck")["value"]["x"] = 90.0
    submit(9, [*changed, choice("rejected", "blurred or dark")])
    project, number = tasks[10]["project"], tasks[10]["id"]
    all_at_once = f"/api/dm/actions/?id=predictions_to_annotations&project={project}"
    server.call("POST", all_at_once, {"selectedItems": {"all": False, "included": [number]}})


def train_and_promote(folder: Path, samples: list[Sample], returned: set[str]) -> None:
    """The returned rows join FOLDER/labelled; a bundle trained on them and one from before compete for the pointer."""
    for name, own in {"labelled": samples[NUM:30], "held-out": samples[30:]}.items():
        rows = [
            {
                "sample_id": f"{name}/{i}",
                "image": each.image,
                "keypoints": each.keypoints.ravel(),
                "visibility": each.visibility,
            }
            for i, each in enumerate(own)
        ]
        schema = labelled(LSP.num_keypoints, skeleton=LSP.name)
        columns = [{column: row.get(column) for column in schema.names} for row in rows]
        write_rows(locate(str(folder / name)), columns, schema)
    small = ["--estimator", "tiny_poses:tiny", "--epochs", "3", "--batch-size", "4", "--workers", "0"]
    table = ["train", "--labelled", f"{folder}/labelled", *small]
    assert main([*table, "--out", f"{folder}/model-1"]) == 0
    shutil.copytree(folder / "back", folder / "labelled" / "back-1")
    assert main([*table, "--out", f"{folder}/model-2"]) == 0
    trained = [
        {*pq.read_table(folder / f"model-{number}" / "trained_ids.parquet")["sample_id"].to_pylist()}
        for number in (1, 2)
    ]
    assert trained[1] - trained[0] == returned

    pointer = folder / "champion.json"
    promote = ["promote", "--champion", str(pointer), "--on"]
    assert main([*promote, f"{folder}/held-out", "--challenger", f"{folder}/model-1"]) == 0
    challenge = ["--challenger", f"{folder}/model-2"]
    assert main([*promote, f"{folder}/back", *challenge]) == 2  # what came back is trained on
    outcome = main([*promote, f"{folder}/held-out", *challenge])
    [record] = [
        found
        for place in (folder / "promotions").glob("*/run.json")
        if (found := json.loads(place.read_text()))["champion"] is not None
    ]
    assert outcome == (0 if record["is_no_worse"] else 5)
    assert find_bundle(str(pointer)).path == f"{folder}/model-{2 if record['is_no_worse'] else 1}"
    [overall] = [each for each in record["tables"]["held-out"]["comparisons"] if each["column"] is None]
    assert overall["num_images"] == len(samples) - 30
    assert record["is_no_worse"] == (overall["interval"][0] >= -overall["margin"])


def test_what_is_drawn_in_label_studio_comes_back_by_id(
    served: tuple[Server, Path], samples: list[Sample], tmp_path: Path
) -> None:
    server, files = served
    rows = [
        {
            "sample_id": f"drive/{i} ü",
            "image": each.image,
            "group": each.group,
            "captured_at": each.captured_at,
            "camera": "c",
        }
        for i, each in enumerate(samples[:NUM])
    ]
    make_pool(tmp_path, rows)
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=NUM, control_share=0.25)
    places = ["--selection", f"{tmp_path}/selection"]
    export = ["export", "label-studio", *places, "--pool", f"{tmp_path}/pool", "--out", f"{files}/night-1"]
    assert main([*export, "--url-prefix", "/data/local-files/?d=night-1"]) == 0
    config = (files / "night-1" / "labelling.xml").read_text()
    project = server.call("POST", "/api/projects/", {"title": "night 1", "label_config": config})["id"]
    storage = {"project": project, "path": f"{files}/night-1/images", "title": "night 1", "use_blob_urls": True}
    server.call("POST", "/api/storages/localfiles/", storage)
    content = json.loads((files / "night-1" / "tasks.json").read_text())
    assert server.call("POST", f"/api/projects/{project}/import", content)["task_count"] == NUM
    found = server.call("GET", f"/api/tasks/?project={project}&page_size=100&fields=all")["tasks"]
    tasks = [server.call("GET", f"/api/tasks/{each['id']}/") for each in found]
    tasks.sort(key=lambda task: task["data"]["rank"])
    selected = pq.read_table(tmp_path / "selection" / "selection.parquet").to_pylist()
    images = {row["sample_id"]: row["image"] for row in rows}
    assert server.call("GET", tasks[0]["data"]["image"]) == images[selected[0]["sample_id"]]
    annotate(server, tasks)

    export_all = f"/api/projects/{project}/export?download_all_tasks=true&exportType="
    (tmp_path / "tasks.json").write_text(json.dumps(server.call("GET", f"{export_all}JSON")))
    (tmp_path / "coco.zip").write_bytes(server.call("GET", f"{export_all}COCO"))
    assert (
        main(["ingest", "label-studio", *places, "--source", f"{tmp_path}/tasks.json", "--out", f"{tmp_path}/back"])
        == 0
    )
    assert (
        main(["ingest", "coco", *places, "--source", f"{tmp_path}/coco.zip", "--out", f"{tmp_path}/coco"]) == 5
    )  # twice
    outcomes = [each["outcome"] for each in read_returned(locate(f"{tmp_path}/back"))]
    assert outcomes == [
        "labelled", "labelled", "partial", "confirmed", "skipped", "rejected", "draft", "labelled", "rejected",
        "rejected", "untouched", "unanswered",
    ]  # fmt: skip
    by_coco = [each["outcome"] for each in read_returned(locate(f"{tmp_path}/coco"))]
    assert by_coco == [
        "labelled", "untouched", "partial", "untouched", "absent", "untouched", "unanswered", "twice", "unanswered",
        "labelled", "untouched", "unanswered",
    ]  # fmt: skip
    back, rounded = (
        {row["sample_id"]: row for row in pq.read_table(tmp_path / name / "part-00000.parquet").to_pylist()}
        for name in ("back", "coco")
    )
    for place in (0, 2):  # the COCO export has whole pixels
        of_json, of_coco = (table[selected[place]["sample_id"]] for table in (back, rounded))
        assert of_coco["visibility"] == of_json["visibility"]
        np.testing.assert_allclose(of_coco["keypoints"], of_json["keypoints"], rtol=0, atol=0.51)
    neck = LSP.keypoint_names.index("neck")
    for place, task in enumerate(tasks[:4]):
        row = back[selected[place]["sample_id"]]
        assert row["image"] == images[row["sample_id"]]
        size = [task["predictions"][0]["result"][0][f"original_{side}"] for side in ("width", "height")]
        for index, name in enumerate(LSP.keypoint_names):
            if row["visibility"][index]:
                value = points_of(task["predictions"][0]["result"], name)["value"]
                drawn = (40.0, 25.5) if (place, index) == (0, neck) else (value["x"], value["y"])
                expected = np.array(drawn) / 100 * size
                np.testing.assert_allclose(row["keypoints"][2 * index : 2 * index + 2], expected, atol=0.01)
    evaluate = ["evaluate", *places, "--labelled", f"{tmp_path}/back", "--model", f"{tmp_path}/model"]
    assert main([*evaluate, "--out", f"{tmp_path}/evaluation"]) == 0
    measured = json.loads((tmp_path / "evaluation" / "run.json").read_text())["selection"]
    assert measured["rejected"] == {"no person": 1, "blurred or dark": 2}
    assert measured["num_selected"] + measured["num_random"] == len(back)
    train_and_promote(tmp_path, samples, {*back})
