"""The report of a selection: what it says, that nothing of the data runs in it, and what is missing is told."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_one_line
from picked import CALIBRATION, losses_of, make_bundle, make_pool, publish

from distributed.evaluation.options import EvaluateOptions, PromoteOptions
from distributed.ingest.options import IngestOptions
from distributed.reporting.options import ExportOptions, ReportOptions
from distributed.reporting.origin import read_origin
from distributed.reporting.report import write_report
from distributed.reporting.words import next_steps
from distributed.runs.progress import silent
from distributed.runs.record import begin_run, publish_run
from distributed.schema import HISTORY
from distributed.storage.location import locate
from distributed.tables.parquet import Row
from jobs.cli import main
from jobs.options import parse_options
from model.errors import InputError
from model.synthetic import Sample

HOSTILE = "<script>document.title='taken'</script>\"'&lt;"
NUM_ROWS = 24
DAY = datetime.timedelta(days=1)


def pool_rows(samples: list[Sample]) -> list[Row]:
    return [
        {
            "sample_id": f"s{i:02d}{HOSTILE if i % 5 == 0 else ''}",
            "image": sample.image,
            "box": sample.box,
            "group": f"{HOSTILE}{i // 8}",
            "camera": HOSTILE if i % 2 else "front",
            "light": ("day", "night", "dusk")[i % 3],
        }
        for i, sample in enumerate(samples[:NUM_ROWS])
    ]


@pytest.fixture(scope="module")
def folder(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of 24 rows, two of them unreadable, 12 of them selected, two as a control."""
    folder = tmp_path_factory.mktemp("picked")
    make_pool(folder, pool_rows(samples))
    make_bundle(folder / "model")
    publish(folder, budget=12, failed=2, control_share=0.2)
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage; its records name the original's places."""
    shutil.copytree(folder, tmp_path / "copy")
    for config in (tmp_path / "copy").glob("*/*.json"):
        config.write_text(config.read_text().replace(str(folder), str(tmp_path / "copy")))
    return tmp_path / "copy"


class Reader(HTMLParser):
    """The texts of a page, its elements, and what the page's script reads."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.text, self.tags, self._inside = "", list[str](), ""
        self.data: dict[str, Any] = {}
        self.policy = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self._inside = "data" if values.get("id") == "data" else tag
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data" and data.strip():
            self.data = json.loads(data)
            self._inside = ""
        elif self._inside not in {"script", "style"}:
            self.text += data


def report(folder: Path, **options: Any) -> tuple[dict[str, Any], Reader]:
    out = folder / "report.html"
    record = write_report(str(folder / "selection"), out=str(out), progress=silent, **options)
    return record, Reader(out.read_bytes())


def test_it_shows_each_selected_image_with_its_pose_and_reason(folder: Path) -> None:
    record, page = report(folder)
    assert {name: record[name] for name in ("num_selected", "num_pictures", "num_poses", "num_missing", "poses")} == {
        "num_selected": 12,
        "num_pictures": 12,
        "num_poses": 12,
        "num_missing": 0,
        "poses": "scores",
    }
    selected = pq.read_table(folder / "selection" / "selection.parquet")
    assert page.data["ids"] == selected["sample_id"].to_pylist()
    assert [page.data["reasons"][code] for code in page.data["reason"]] == selected["reason"].to_pylist()
    assert all(page.data["pictures"])
    assert len({*page.data["poses"]}) > 1


def test_the_headline_says_what_is_expected_and_what_chance_would_find(folder: Path) -> None:
    record = json.loads((folder / "selection" / "run.json").read_text())
    _, page = report(folder)
    assert f"≈ {record['expected_failures']:.0f}" in page.text
    assert f"{record['expected_failures'] / record['expected_failures_at_random']:.1f}×" in page.text  # noqa: RUF001
    assert "calibration on 500 images, not measured" in page.text
    assert "A doubt about the bundle." in page.text


def test_without_calibration_it_says_that_failures_are_not_known(samples: list[Sample], tmp_path: Path) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model", calibration=None)
    publish(tmp_path, budget=5)
    _, page = report(tmp_path)
    assert "not known" in page.text
    assert "is not calibrated" in page.text
    assert "≈" not in page.text


def test_nothing_of_the_data_becomes_an_element_or_a_script(folder: Path) -> None:
    _, page = report(folder)
    raw = (folder / "report.html").read_text()
    assert raw.count("<script") == 2  # the data and the page's own
    assert page.tags.count("script") == 2
    assert HOSTILE in page.text  # as text: the camera's slice
    assert any(HOSTILE in name for name in page.data["ids"])


def test_its_policy_lets_nothing_in_and_names_its_own_script(folder: Path) -> None:
    _, page = report(folder)
    raw = (folder / "report.html").read_text()
    assert page.policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in page.policy
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", raw)
    assert not re.search(r"\son\w+=|\sstyle=", re.sub(r"<script.*?</script>", "", raw, flags=re.DOTALL))


def test_the_same_inputs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(str(folder / "selection"), out=str(tmp_path / name), progress=silent)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_poses_are_predicted_where_the_scores_have_none(samples: list[Sample], tmp_path: Path) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=6, with_keypoints=False)
    record, page = report(tmp_path)
    assert (record["poses"], record["num_poses"]) == ("predicted", 6)
    assert "predicted again for this report" in page.text


def test_without_the_bundle_no_pose_is_drawn_and_it_says_so(copied: Path) -> None:
    shutil.rmtree(copied / "model")
    record, page = report(copied)
    assert record["num_pictures"] == 12
    assert page.data["limbs"] == []
    assert "bundle that made the scores is gone" in page.text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.unlink(), "the file is gone"),
        (lambda file: file.write_bytes(b""), "damaged"),
        (lambda file: file.write_bytes(b"PAR1" + file.read_bytes()[4:-8] + b"12345678"), "damaged"),
        (lambda file: pq.write_table(pq.read_table(file).slice(1), file), "has changed since it was scored"),
    ],
)
def test_a_pool_file_that_is_gone_or_another_gives_placeholders(copied: Path, damage: Any, reason: str) -> None:
    (file,) = (copied / "pool").glob("*.parquet")
    damage(file)
    record, page = report(copied)
    assert (record["num_pictures"], record["num_missing"]) == (0, 12)
    assert all(reason in text for text in record["missing"])
    assert len(page.data["absent"]) == 12
    assert "12 selected images are not in the pool" in page.text


def test_rows_are_found_by_number_and_compared_by_id_where_nothing_says_what_the_file_was(copied: Path) -> None:
    (copied / "scores" / "manifest.json").unlink()
    (file,) = (copied / "pool").glob("*.parquet")
    table = pq.read_table(file)
    ids = ["another" if i == 0 else name for i, name in enumerate(table["sample_id"].to_pylist())]
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(ids)), file, row_group_size=5)
    record, _ = report(copied)
    assert record["num_pictures"] == 11
    assert [*record["missing"].values()] == [1]
    assert "another sample is in its place" in next(iter(record["missing"]))


def test_slices_compare_shares_of_pool_and_selection(folder: Path) -> None:
    _, page = report(folder)
    selected = pq.read_table(folder / "selection" / "selection.parquet")["sample_id"].to_pylist()
    lights = [("day", "night", "dusk")[int(name[1:3]) % 3] for name in selected]
    share = lights.count("night") / len(lights)
    assert re.search(rf"night33\.3%{share:.1%}", page.text)


def test_slices_are_counted_in_the_pool_where_the_scores_keep_no_metadata(
    samples: list[Sample], tmp_path: Path
) -> None:
    make_pool(tmp_path, pool_rows(samples))
    make_bundle(tmp_path / "model")
    publish(tmp_path, budget=6, with_metadata=False)
    _, page = report(tmp_path)
    assert "by the metadata of the pool" in page.text
    assert re.search(r"day33\.3%33\.3%", page.text)


def test_errors_are_listed_by_reason_with_ids(folder: Path) -> None:
    _, page = report(folder)
    assert re.search(r"undecodable2s22, s23", page.text)


def test_provenance_names_bundle_pool_and_commands(folder: Path) -> None:
    _, page = report(folder)
    record = json.loads((folder / "selection" / "run.json").read_text())
    for words in (record["bundle_id"], record["pool_fingerprint"], str(folder / "pool"), record["versions"]["torch"]):
        assert words in page.text
    options = "--budget 12 --control-share 0.2 --min-gap 0"
    assert f"lossight select {options} --out {folder}/selection --scores {folder}/scores" in page.text


def write_history(folder: Path, nights: list[tuple[datetime.date, str, list[str]]]) -> None:
    counts = {field.name: 0 for field in HISTORY if not field.nullable}
    found = {**counts, "slices": [], "loss_quantiles": [0.0, 0.5], "psi": 0.1}
    rows = [{**found, "night": night, "bundle_id": bundle_id, "drift": drift} for night, bundle_id, drift in nights]
    pq.write_table(pa.Table.from_pylist(rows, HISTORY), folder / "history.parquet")


def test_earlier_nights_of_the_same_bundle_and_drift_come_from_the_history(copied: Path) -> None:
    record = json.loads((copied / "selection" / "run.json").read_text())
    bundle_id = record["bundle_id"]
    (copied / "selection" / "run.json").write_text(json.dumps({**record, "night": "2026-11-24"}))
    day = datetime.date(2026, 11, 24)
    write_history(
        copied,
        [(day, bundle_id, [f"camera {HOSTILE}: PSI 0.4"]), (day - DAY, bundle_id, []), (day - 2 * DAY, "other", [])],
    )
    out = copied / "report.html"
    write_report(str(copied / "selection"), out=str(out), history=str(copied / "history.parquet"), progress=silent)
    page = Reader(out.read_bytes())
    assert "earlier nights (1)" in page.text
    assert f"camera {HOSTILE}: PSI 0.4" in page.text


def test_a_history_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: expected a history table, found nothing"):
        write_report(
            str(folder / "selection"), out=str(tmp_path / "o"), history=str(tmp_path / "nowhere"), progress=silent
        )


def test_a_history_without_its_columns_is_refused(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"night": [1]}), tmp_path / "history.parquet")
    with pytest.raises(InputError, match=r"history.parquet: column 'night': expected date32\[day\], found int64"):
        write_report(
            str(folder / "selection"),
            out=str(tmp_path / "o"),
            history=str(tmp_path / "history.parquet"),
            progress=silent,
        )
    assert not (tmp_path / "o").exists()


ARMS = {
    "num_selected": 10,
    "num_random": 2,
    "random_arm": "control",
    "failures_selected": 0.7,
    "failures_random": 0.2,
    "lift": 3.5,
    "lift_interval": [1.25, None],
    "pck_difference": -0.3,
    "pck_difference_interval": [-0.4, -0.2],
}


def publish_evaluation(place: Path, fingerprint: str) -> str:
    begin_run(locate(str(place)), {"by": "hand"})
    publish_run(locate(str(place)), {"kind": "evaluation", "selection_fingerprint": fingerprint, "selection": ARMS})
    return str(place)


def fingerprint_of(selection: Path) -> str:
    ids = pq.read_table(selection / "selection.parquet")["sample_id"].to_pylist()
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def test_what_an_evaluation_measured_stands_first(folder: Path, tmp_path: Path) -> None:
    fingerprint = fingerprint_of(folder / "selection")
    _, page = report(folder, evaluation=publish_evaluation(tmp_path / "evaluation", fingerprint))
    assert "70.0%" in page.text
    assert "3.5×" in page.text  # noqa: RUF001
    assert "95 % interval -0.400 to -0.200" in page.text


def test_an_evaluation_of_another_selection_is_refused(folder: Path, tmp_path: Path) -> None:
    other = publish_evaluation(tmp_path / "evaluation", "another")
    with pytest.raises(InputError, match="expected an evaluation of this selection, found one of something else"):
        report(folder, evaluation=other)


def test_an_earlier_report_is_replaced_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    report(folder)
    report(folder)
    (tmp_path / "mine.html").write_text("<!doctype html>mine")
    for out, found in ((tmp_path / "mine.html", "another file"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"found {found}"):
            write_report(str(folder / "selection"), out=str(out), progress=silent)
    assert (tmp_path / "mine.html").read_text() == "<!doctype html>mine"


def test_a_run_that_was_made_with_relative_paths_is_followed_from_anywhere(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = Path("work")
    work.mkdir()
    make_pool(work, pool_rows(samples))
    make_bundle(work / "model")
    publish(work, budget=4)
    monkeypatch.chdir("/")
    record, _ = report(tmp_path / "work")
    assert (record["num_pictures"], record["num_poses"]) == (4, 4)


def test_a_record_of_an_earlier_version_is_one_line(copied: Path) -> None:
    record = copied / "selection" / "run.json"
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in fields.items() if key != "scores"}))
    with pytest.raises(InputError, match="found one of an earlier version: select into a new --out"):
        report(copied)


def test_the_command_writes_beside_the_run_and_says_what_it_found(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--run", str(copied / "selection")]) == 0
    assert (copied / "selection" / "report.html").read_bytes().startswith(b"<!doctype html>")
    assert "12 of 12 selected images have a picture, 12 a pose" in capsys.readouterr().out


def test_a_night_of_triage_stands_for_its_selection_its_history_and_what_labels_said(copied: Path) -> None:
    night = datetime.date(2026, 11, 24)
    place, selection = copied / "nights" / f"{night}", copied / "selections" / f"{night}"
    (copied / "selections").mkdir()
    (copied / "selection").rename(selection)
    record = json.loads((selection / "run.json").read_text())
    (selection / "run.json").write_text(json.dumps({**record, "night": f"{night}", "triage": str(copied)}))
    publish_run(locate(str(place)), {"kind": "night", "night": f"{night}", "selection": str(selection)})
    write_history(copied, [(night - 2 * DAY, "other", []), (night - DAY, "b", ["camera=rear"]), (night, "b", [])])
    for days in (1, 2):  # of the second, the evaluation is of another selection
        earlier = f"{night - days * DAY}"
        shutil.copytree(selection, copied / "selections" / earlier)
        publish_evaluation(copied / "nights" / earlier / "evaluation", fingerprint_of(selection) if days == 1 else "x")
    assert main(["report", "--run", str(place)]) == 0
    page = Reader((place / "report.html").read_bytes())
    assert "Selection 2026-11-24" in page.text
    assert "2026-11-2400.0%0none–2026-11-2300.0%01 found3.5× (1.25 and more)2026-11-2200.0%0none–" in page.text  # noqa: RUF001
    assert "70.0%" not in page.text
    publish_evaluation(place / "evaluation", fingerprint_of(selection))
    assert main(["report", "--run", str(place)]) == 0
    page = Reader((place / "report.html").read_bytes())
    assert "70.0%" in page.text
    assert "2026-11-2400.0%0none3.5× (1.25 and more)" in page.text  # noqa: RUF001


@pytest.mark.parametrize("is_night", [False, True])
def test_the_steps_after_it_are_commands_that_are_understood(folder: Path, is_night: bool) -> None:
    origin = read_origin(str(folder / "selection"))
    if is_night:
        origin.record.update(night="2026-11-24", triage=str(folder))
    kinds = [ExportOptions, IngestOptions, EvaluateOptions, ReportOptions, PromoteOptions]
    for kind, (_, command) in zip(kinds, next_steps(origin), strict=True):
        _, name, *arguments = shlex.split(command)
        options = parse_options(kind, arguments, prog=name)
        assert str(folder) in f"{options}" or kind is PromoteOptions


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("nowhere", "nowhere: expected a selection, or a night of triage, found nothing"),
        ("scores", "expected a selection, or a night of triage, found a run of another kind"),
        ("pool", "expected a selection, or a night of triage, found something else"),
    ],
)
def test_what_is_no_selection_is_one_line(
    folder: Path, run: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--run", str(folder / run)]) == 2
    assert_one_line(capsys, re.escape(message))


def test_scores_that_are_gone_are_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "scores")
    assert main(["report", "--run", str(copied / "selection")]) == 2
    assert "scores: expected scores with a run.json, found nothing" in capsys.readouterr().err
    assert not (copied / "selection" / "report.html").exists()


def test_the_arms_are_summed_up_by_reason(folder: Path) -> None:
    _, page = report(folder)
    best = np.array(losses_of(NUM_ROWS)[:10])
    failures = CALIBRATION.failure_probability(best).sum()
    assert re.search(
        rf"loss10{np.median(best):.3g}{CALIBRATION.expected_pck(best).mean():.2f}{failures:.0f} ", page.text
    )
