"""Labels that come back from a labelling tool, by id: every column of the pool, and nothing that nobody touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_one_line
from picked import PICKED_POOL, make_bundle, make_pool, publish

from distributed.ingest.answers import Answer, Point
from distributed.ingest.options import IngestOptions
from distributed.ingest.returned import read_returned
from distributed.ingest.settle import Rules, settle
from distributed.reporting.export import export_selection
from distributed.reporting.labels import take_labels
from distributed.reporting.options import ExportOptions
from distributed.runs.progress import silent
from distributed.schema import skeleton_name
from distributed.storage.location import locate
from jobs.cli import main
from model.errors import InputError
from model.skeleton import LSP
from model.synthetic import Sample

NUM = 12
K = LSP.num_keypoints
NAMES = LSP.keypoint_names


@pytest.fixture(scope="module")
def folder(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of odd ids, all but two of it selected, and the selection's COCO and Label Studio exports."""
    folder = tmp_path_factory.mktemp("back")
    make_pool(
        folder,
        [
            {
                "sample_id": f"drive/{i} ü",
                "image": sample.image,
                "box": [1.25, 2.5, 60.75, 90.5] if i % 2 else None,
                "group": f"g{i}",
                "captured_at": sample.captured_at,
                "camera": None if i == 3 else f"c{i}",
                "light": "day",
            }
            for i, sample in enumerate(samples[: NUM + 2])
        ],
    )
    make_bundle(folder / "model")
    publish(folder, budget=NUM)
    for kind in ("coco", "label-studio"):
        options = ExportOptions.model_validate(
            {"kind": kind, "selection": f"{folder}/selection", "pool": f"{folder}/pool", "out": f"{folder}/{kind}"}
        )
        export_selection(options, progress=silent)
    return folder


def take(folder: Path, out: Path, tool: Any, content: Any, **options: Any) -> dict[str, Any]:
    out.parent.mkdir(exist_ok=True)
    source = out.parent / f"{out.name}.export"
    source.write_text(content if isinstance(content, str) else json.dumps(content))
    given = {"kind": tool, "selection": f"{folder}/selection", "source": str(source), "out": str(out), **options}
    return take_labels(IngestOptions.model_validate(given), progress=silent)


def rows_of(place: Path) -> dict[str, dict[str, Any]]:
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(place.glob("*.parquet"))).to_pylist()
    return {row["sample_id"]: row for row in rows}


def coco_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "coco" / "annotations" / "person_keypoints_default.json").read_text())


def ids(folder: Path) -> list[str]:
    return pq.read_table(folder / "selection" / "selection.parquet")["sample_id"].to_pylist()


def test_own_coco_comes_back_with_every_column_and_to_a_hundredth_of_a_pixel(folder: Path, tmp_path: Path) -> None:
    content = coco_of(folder)
    record = take(folder, tmp_path / "out", "coco", content, take="all")
    assert record["outcomes"] == {"accepted": NUM}
    found, pool = rows_of(tmp_path / "out"), rows_of(folder / "pool")
    assert sorted(found) == sorted(ids(folder))
    schema = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert schema.names == [*PICKED_POOL.names[:5], "keypoints", "visibility", "camera", "light"]
    assert skeleton_name(schema) == "lsp"
    for sample_id, row in found.items():
        assert {name: row[name] for name in PICKED_POOL.names} == pool[sample_id]
        assert row["visibility"] == [2] * K
    for person in content["annotations"]:
        row = found[ids(folder)[person["id"] - 1]]
        points = np.reshape(person["keypoints"], (-1, 3))[:, :2]
        np.testing.assert_allclose(np.reshape(row["keypoints"], (-1, 2)), points, rtol=0, atol=0.01)


def test_ten_rounds_of_coco_out_and_in_change_nothing(samples: list[Sample], tmp_path: Path) -> None:
    """The labels of each round are the predictions of the next. Scores keep them as float16, hence the first round."""
    fields = ("sample_id", "image", "group", "captured_at")
    rows = [{**{name: getattr(each, name) for name in fields}, "camera": "c"} for each in samples[:3]]
    poses = [np.random.default_rng(i).uniform(0, 90, (K, 2)) for i in range(3)]
    first: dict[str, dict[str, Any]] = {}
    for number in range(11):
        place = tmp_path / str(number)
        make_bundle(place / "model")
        make_pool(place, rows)
        publish(place, budget=3, pose=lambda i, of=poses: np.insert(of[i], 2, 0.5, axis=1).ravel().tolist())
        options = {"kind": "coco", "selection": f"{place}/selection", "pool": f"{place}/pool", "out": f"{place}/coco"}
        export_selection(ExportOptions.model_validate(options), progress=silent)
        take(place, place / "out", "coco", coco_of(place), take="all")
        found = rows_of(place / "out")
        first = first or found
        for sample_id, row in found.items():
            keypoints = first[sample_id]["keypoints"]
            np.testing.assert_allclose(row["keypoints"], keypoints, rtol=0, atol=0.01)
            assert {**row, "keypoints": keypoints} == first[sample_id]
        rows = [{name: row[name] for name in PICKED_POOL.names} for row in found.values()]
        poses = [np.reshape(row["keypoints"], (K, 2)) for row in found.values()]


def test_what_nobody_touched_is_no_label_and_what_was_moved_is(folder: Path, tmp_path: Path) -> None:
    content = coco_of(folder)
    moved, hidden, deleted = content["annotations"][:3]
    moved["keypoints"][0] += 5
    hidden["keypoints"][5] = 1
    deleted["keypoints"][6:9] = [0, 0, 0]
    content["annotations"][3]["keypoints"][0] = -4.0  # outside
    del content["annotations"][4]
    del content["images"][5]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 6]
    record = take(folder, tmp_path / "out", "coco", content)
    assert record["outcomes"] == {"absent": 1, "labelled": 3, "partial": 1, "unanswered": 1, "untouched": NUM - 6}
    assert record["keypoints_outside"] == 1
    found = rows_of(tmp_path / "out")
    rank = ids(folder)
    assert sorted(found) == sorted(rank[:4])
    assert found[rank[0]]["keypoints"][0] == pytest.approx(moved["keypoints"][0])
    assert found[rank[1]]["visibility"] == [2, 1, *[2] * (K - 2)]
    assert found[rank[2]]["visibility"] == [2, 2, 0, *[2] * (K - 3)]
    assert found[rank[3]]["visibility"][0] == 0
    outcomes = [each["outcome"] for each in read_returned(locate(str(tmp_path / "out")))]
    assert outcomes == [*["labelled"] * 2, "partial", "labelled", "unanswered", "absent", *["untouched"] * (NUM - 6)]
    assert take(folder, tmp_path / "whole", "coco", content, take="complete")["outcomes"]["incomplete"] == 1


def test_keypoints_are_ordered_by_name_and_another_skeleton_is_refused(folder: Path, tmp_path: Path) -> None:
    content = coco_of(folder)
    order = [*range(1, K), 0]
    content["categories"][0]["keypoints"] = [NAMES[i] for i in order]
    for person in content["annotations"]:
        person["keypoints"] = np.reshape(person["keypoints"], (-1, 3))[order].ravel().tolist()
    take(folder, tmp_path / "out", "coco", content, take="all")
    take(folder, tmp_path / "plain", "coco", coco_of(folder), take="all")
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "plain")
    content["categories"][0]["keypoints"][0] = "tail"
    with pytest.raises(InputError, match="expected the 14 keypoints of lsp, found 'tail', which it has not"):
        take(folder, tmp_path / "other", "coco", content, take="all")
    assert not (tmp_path / "other").exists()


def renamed(content: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    for image in content["images"]:
        image["file_name"] = rename(image["file_name"])
        for key in ("sample_id", "rank", "metadata", "group"):
            image.pop(key, None)
    return content


def test_rows_are_found_by_the_images_name_whatever_a_tool_puts_around_it(folder: Path, tmp_path: Path) -> None:
    content = renamed(coco_of(folder), lambda name: f"upload/1/0a1b2c3d-{Path(name).stem}.png")
    assert take(folder, tmp_path / "out", "coco", content, take="all")["outcomes"] == {"accepted": NUM}
    content = renamed(coco_of(folder), lambda name: f"frame_{abs(hash(name))}.jpg")
    with pytest.raises(InputError, match=r"expected images of the selection .* or its images were renamed"):
        take(folder, tmp_path / "renamed", "coco", content, take="all")


def test_what_is_at_fault_is_left_out_and_named(folder: Path, tmp_path: Path, capsys: Any) -> None:
    content = coco_of(folder)
    images, persons = content["images"], content["annotations"]
    for person in persons:
        person["keypoints"][0] += 3
    images[0]["width"] += 1
    images[1]["sample_id"] = ids(folder)[2]  # edited by hand
    images[3]["sample_id"] = "stran\x1b[2Jger"
    images[3]["file_name"] = "images/stranger.jpg"
    images.append({**images[4], "id": 99})
    persons.append({**persons[4], "id": 99, "image_id": 99, "keypoints": persons[5]["keypoints"]})
    persons.append({**persons[6], "id": 98})
    images.append({**images[7], "id": 97})  # the same twice is no fault
    persons.append({**persons[7], "id": 97, "image_id": 97})
    (tmp_path / "export.json").write_text(json.dumps(content))
    arguments = ["--selection", f"{folder}/selection", "--source", f"{tmp_path}/export.json"]
    assert main(["ingest", "coco", *arguments, "--out", str(tmp_path / "out")]) == 5
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    rank = ids(folder)
    assert record["faults"] == {
        "other_size": [rank[0]],
        "other_id": [f"the id {rank[2]!r} beside the image {images[1]['file_name']}"],
        "not_selected": ["stran\x1b[2Jger"],
        "twice": [rank[4]],
        "unclear": [rank[6]],
    }
    assert record["outcomes"] == {"absent": 2, "labelled": NUM - 5, "other_size": 1, "twice": 1, "unclear": 1}
    said = capsys.readouterr().out
    assert f"left out, for the export has them twice: {rank[4]}" in said
    assert r"left out, for they were never selected: 'stran\x1b[2Jger'" in said


# Label Studio


def annotation(task: dict[str, Any], **change: Any) -> dict[str, Any]:
    values = {
        "id": 1,
        "completed_by": 1,
        "result": json.loads(json.dumps(task["predictions"][0]["result"])),
        "was_cancelled": False,
        "lead_time": 4.5,
        "updated_at": "2026-11-28T08:00:00Z",
    }
    return {**values, **change}


def move(result: list[dict[str, Any]], name: str, *, x: float) -> list[dict[str, Any]]:
    for each in result:
        if each["value"].get("keypointlabels") == [name]:
            each["value"]["x"] = x
    return result


def test_label_studio_tells_moved_confirmed_partial_skipped_rejected_and_drafts(folder: Path, tmp_path: Path) -> None:
    tasks = json.loads((folder / "label-studio" / "tasks.json").read_text())
    for number, task in enumerate(tasks):
        task.update(id=number, annotations=[annotation(task)], drafts=[])
    moved, hidden, deleted, _, skipped, rejected, draft, untouched, empty = tasks[:9]
    move(moved["annotations"][0]["result"], "neck", x=40.0)
    neck = next(each for each in hidden["annotations"][0]["result"] if each["value"].get("keypointlabels") == ["neck"])
    occluded = {**neck, "type": "choices", "from_name": "visibility", "value": {"choices": ["occluded"]}}
    hidden["annotations"][0]["result"].append(occluded)
    deleted["annotations"][0]["result"].pop()
    skipped["annotations"][0]["was_cancelled"] = True
    rejected["annotations"][0]["result"].append(
        {"id": "r", "type": "choices", "from_name": "rejected", "to_name": "image", "value": {"choices": ["no person"]}}
    )
    draft.update(annotations=[], drafts=[annotation(draft)])
    untouched["annotations"] = []
    empty["annotations"][0]["result"] = []
    tasks[9]["annotations"][0].update(parent_prediction=1, lead_time=None)  # by the server, for many at once
    record = take(folder, tmp_path / "out", "label-studio", tasks[:10])
    assert record["outcomes"] == {
        "absent": NUM - 10,
        "confirmed": 1,
        "draft": 1,
        "labelled": 2,
        "partial": 1,
        "rejected": 1,
        "skipped": 1,
        "unanswered": 2,
        "untouched": 1,
    }
    assert record["confirmed_seconds"] == 4.5
    assert record["rejected"] == {"no person": 1}
    assert record["faults"] == {}
    found, rank = rows_of(tmp_path / "out"), ids(folder)
    assert sorted(found) == sorted(rank[:4])
    index = NAMES.index("neck")
    width = moved["annotations"][0]["result"][0]["original_width"]
    assert found[rank[0]]["keypoints"][2 * index] == pytest.approx(0.4 * width)
    assert found[rank[1]]["visibility"][index] == 1
    assert found[rank[2]]["visibility"][-1] == 0


def test_of_two_annotators_the_newest_counts_or_what_both_agree_on(folder: Path, tmp_path: Path) -> None:
    tasks = json.loads((folder / "label-studio" / "tasks.json").read_text())[:2]
    for number, task in enumerate(tasks):
        task["id"] = number
        late = annotation(task, completed_by=2, updated_at="2026-11-28T09:00:00Z")
        task["annotations"] = [late, annotation(task)]
    move(tasks[0]["annotations"][0]["result"], "neck", x=90.0)
    record = take(folder, tmp_path / "newest", "label-studio", tasks)
    rank = ids(folder)
    assert record["faults"] == {"annotators_disagree": [rank[0]]}
    index = NAMES.index("neck")
    width = tasks[0]["annotations"][0]["result"][0]["original_width"]
    assert rows_of(tmp_path / "newest")[rank[0]]["keypoints"][2 * index] == pytest.approx(0.9 * width)
    take(folder, tmp_path / "both", "label-studio", tasks, annotators="consensus")
    found = rows_of(tmp_path / "both")
    assert found[rank[0]]["visibility"] == [0 if i == index else 2 for i in range(K)]
    assert found[rank[1]]["visibility"] == [2] * K


def answer(**change: Any) -> Answer:
    points = {name: Point(10.0 * i, 5.0 * i, 2) for i, name in enumerate(NAMES)}
    return replace(Answer(entry="1", image="a", verdict="pose", points=points, size=(200, 100)), **change)


def test_a_rejection_and_a_pose_of_one_row_are_no_consensus() -> None:
    both = [answer(annotator="a", at="1"), answer(annotator="b", at="2", verdict="rejected", why="dark", points={})]
    rules = Rules(skeleton=LSP, annotators="consensus")
    found = settle(both, size=(200, 100), predicted=None, rules=rules)
    assert (found.outcome, found.why, found.disagree, found.annotators) == (
        "disagree",
        "pose, rejected",
        True,
        ("a", "b"),
    )
    newest = settle(both, size=(200, 100), predicted=None, rules=replace(rules, annotators="newest"))
    assert (newest.outcome, newest.why) == ("rejected", "dark")


# CVAT


def cvat_xml(folder: Path, *, version: str = "1.1") -> str:
    """Annotations as CVAT writes them: two decimals, an element for each joint."""
    content = coco_of(folder)
    persons = {person["image_id"]: person for person in content["annotations"]}
    images = []
    for image in content["images"]:
        points = np.reshape(persons[image["id"]]["keypoints"], (-1, 3))
        joints = "".join(
            f'<points label="{name}" source="manual" outside="0" occluded="0" points="{x + (i == 0):.2f},{y:.2f}"/>'
            for i, (name, (x, y, _)) in enumerate(zip(NAMES, points, strict=True))
        )
        images.append(
            f'<image id="{image["id"] - 1}" name={quoteattr(Path(image["file_name"]).name)} width="{image["width"]}" '
            f'height="{image["height"]}"><skeleton label="person" source="manual">{joints}</skeleton></image>'
        )
    return f"<annotations><version>{version}</version>{''.join(images)}</annotations>"


def test_cvats_xml_comes_back_with_its_flags_and_rejections(folder: Path, tmp_path: Path) -> None:
    text = cvat_xml(folder, version="1.9")
    text = text.replace('outside="0" occluded="0"', 'outside="1" occluded="0"', 1)
    text = text.replace('outside="0" occluded="0"', 'outside="0" occluded="1"', 1)
    tag = '<tag label="rejected" source="manual"><attribute name="reason">dark</attribute></tag></image>'
    text = tag.join(text.rsplit("</image>", 1))
    record = take(folder, tmp_path / "out", "cvat", text)
    assert record["outcomes"] == {"labelled": NUM - 2, "partial": 1, "rejected": 1}
    assert record["rejected"] == {"dark": 1}
    assert record["notes"] == ["tried version 1.9 of CVAT's XML, which is not known: version 1.1 is"]
    found, rank = rows_of(tmp_path / "out"), ids(folder)
    assert found[rank[0]]["visibility"] == [0, 1, *[2] * (K - 2)]
    expected = np.reshape(coco_of(folder)["annotations"][1]["keypoints"], (-1, 3))[:, :2]
    expected[0, 0] += 1
    np.testing.assert_allclose(np.reshape(found[rank[1]]["keypoints"], (-1, 2)), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("tool", "content", "message"),
    [
        ("coco", "", "expected a tool's export, found an empty file"),
        ("coco", "{}", "expected the lists"),
        ("coco", "PK\x03\x04", "expected a zip, found a damaged one"),
        ("label-studio", "[]", "found an empty export"),
        ("label-studio", '[{"id": 1, "image": "a.jpg"}]', "JSON-MIN"),
        ("label-studio", '{"images": []}', "found COCO: use `ingest coco`"),
        ("label-studio", '[{"data": {}, "annotations": [{"result": [{"type": "keypointlabels"}]}]}]', "KeyError"),
        ("cvat", "<annotations/>", "found an empty export"),
        ("cvat", "<annotations><track/></annotations>", "export in that format"),
        ("cvat", "<annotations><image/></annotations>", "KeyError: 'name'"),
        ("cvat", "<a", "expected CVAT's XML"),
    ],
)
def test_an_export_that_cannot_be_used_is_one_line_and_leaves_nothing(
    tool: str, content: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export").write_text(content)
    arguments = ["--selection", f"{folder}/selection", "--source", f"{tmp_path}/export", "--out", f"{tmp_path}/out"]
    assert main(["ingest", tool, *arguments]) == 2
    assert_one_line(capsys, message)
    assert not (tmp_path / "out").exists()


def test_an_export_that_nobody_touched_gives_no_table(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"found none: {NUM} untouched; --take all takes untouched predictions"):
        take(folder, tmp_path / "out", "coco", coco_of(folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cvat", "--source", "x"), "--selection: expected the selection that was exported to cvat, found none"),
        (("mpii", "--source", "x", "--selection", "s"), "--selection: expected coco, cvat or label-studio"),
        (("coco", "--source", "x", "--selection", "s", "--limit", "3"), "--limit: expected none beside --selection"),
        (("folder", "--source", "x", "--skeleton", "lsp"), "--skeleton: expected none for folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


# Exports of the real Label Studio 1.23.2, after the annotations of `annotate` in test_label_studio_real.py.

EXPORTS = Path(__file__).parent / "exports"


def test_a_real_label_studio_export_gives_what_was_drawn(folder: Path, tmp_path: Path) -> None:
    record = take(folder, tmp_path / "out", "label-studio", (EXPORTS / "label_studio_1.23.2.json").read_text())
    assert record["outcomes"] == {
        "confirmed": 1,
        "draft": 1,
        "labelled": 3,
        "partial": 1,
        "rejected": 2,
        "skipped": 1,
        "unanswered": 3,
    }
    assert record["rejected"] == {"no person": 1, "blurred or dark": 1}
    rank = ids(folder)
    assert record["faults"] == {"annotators_disagree": [rank[7]]}
    found = rows_of(tmp_path / "out")
    neck = NAMES.index("neck")
    assert found[rank[0]]["keypoints"][2 * neck : 2 * neck + 2] == pytest.approx([0.4 * 256, 0.255 * 256], abs=0.01)
    assert found[rank[1]]["visibility"][neck] == 1
    assert found[rank[2]]["visibility"][-1] == 0
    exported = np.reshape(coco_of(folder)["annotations"][3]["keypoints"], (-1, 3))[:, :2]
    np.testing.assert_allclose(np.reshape(found[rank[3]]["keypoints"], (-1, 2)), exported, rtol=0, atol=0.01)


def test_a_real_coco_export_of_label_studio_counts_only_where_a_pose_was_changed(folder: Path, tmp_path: Path) -> None:
    record = take(folder, tmp_path / "out", "coco", (EXPORTS / "label_studio_1.23.2_coco.json").read_text())
    assert record["outcomes"] == {"absent": 1, "labelled": 1, "partial": 1, "twice": 1, "unanswered": 5, "untouched": 3}
    assert "rounds keypoints to whole pixels" in record["notes"][0]


def test_rows_that_came_back_are_known_to_evaluate_exclude_and_training(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = coco_of(folder)
    for person in content["annotations"][:8]:
        person["keypoints"][0] += 3
    take(folder, tmp_path / "labels" / "back", "coco", content)
    places = ["--selection", f"{folder}/selection", "--labelled", f"{tmp_path}/labels", "--model", f"{folder}/model"]
    assert main(["evaluate", *places, "--out", f"{tmp_path}/evaluation"]) == 0
    arms = json.loads((tmp_path / "evaluation" / "run.json").read_text())["selection"]
    assert (arms["num_selected"], arms["num_not_labelled"], arms["random_arm"]) == (8, NUM - 8, "none")
    assert arms["outcomes"] == {"selected": {"labelled": 8, "untouched": NUM - 8}, "control": {}}
    options = ["--scores", f"{folder}/scores", "--out", f"{tmp_path}/next", "--budget", "100"]
    assert main(["select", *options, "--exclude", f"{tmp_path}/labels"]) == 0
    chosen = pq.read_table(tmp_path / "next" / "selection.parquet")["sample_id"].to_pylist()
    assert len(chosen) == NUM + 2 - 8
    assert not {*chosen} & {*rows_of(tmp_path / "labels" / "back")}
    report = ["report", "--run", f"{folder}/selection", "--out", f"{tmp_path}/r.html"]
    assert main([*report, "--evaluation", f"{tmp_path}/evaluation"]) == 0
    assert "came back without labels" in (tmp_path / "r.html").read_text()
    take(folder, tmp_path / "validation", "coco", coco_of(folder), take="all")
    tables = ["--labelled", f"{tmp_path}/labels", "--validation", f"{tmp_path}/validation"]
    capsys.readouterr()
    assert main(["train", *tables, "--out", f"{tmp_path}/m", "--workers", "0"]) == 2
    assert "expected rows that are not trained on" in capsys.readouterr().err
