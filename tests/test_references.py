"""Rows that refer to their image's file: the same scores as with its bytes, and each failure one row's reason."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import freeze, read_scores
from faultproxy import FaultProxy

from distributed.evaluation.rows import evaluate_rows
from distributed.ingest.fleet import row_of
from distributed.schema import POOL, REFERENCE, labelled
from distributed.storage import disk, s3
from distributed.storage.location import locate, write_bytes
from distributed.tables import references
from distributed.tables.labelled import freeze_labelled
from distributed.tables.manifest import REFERENCE_BYTES, Segment
from distributed.tables.reader import plan_bins
from distributed.tables.references import find_below, with_images
from distributed.tables.shuffle import plan_chunks, read_chunk
from jobs.cli import main
from model.bundle import Bundle
from model.errors import RunFailedError
from model.skeleton import LSP
from model.synthetic import Sample

Row = dict[str, Any]
WITHOUT_IMAGE = pa.schema([*(each for each in POOL if each.name != "image"), *REFERENCE])
BOTH = pa.schema([*POOL, *REFERENCE])
SCORED = ["sample_id", "predicted_loss", "confidence", "error"]


def write(path: Path, rows: list[Row], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{n: row.get(n) for n in schema.names} for row in rows], schema), path)


def referring(samples: list[Sample], root: Path) -> list[Row]:
    """Rows that refer to files which are written below the root, with their sizes."""
    rows = []
    for number, sample in enumerate(samples):
        (root / f"drive {number % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"drive {number % 2}" / f"{number}.jpg").write_bytes(sample.image)
        uri = f"drive {number % 2}/{number}.jpg"
        rows.append({**row_of(sample), "image": None, "image_uri": uri, "image_size": len(sample.image)})
    return rows


def score(pool: Path | str, model: str, out: Path | str, *more: str) -> tuple[int, dict[str, Row]]:
    code = main(["score", "--pool", str(pool), "--model", model, "--out", str(out), *more])
    tables = read_scores(locate(str(out))) if code in (0, 5) else iter(())
    return code, {row["sample_id"]: row for table in tables for row in table.select(SCORED).to_pylist()}


@pytest.mark.parametrize(
    ("uri", "below"),
    [
        ("a.jpg", "a.jpg"),
        ("a b/100%.jpg", "a b/100%.jpg"),
        ("{root}/a/b.jpg", "a/b.jpg"),
        ("../other/a.jpg", None),
        ("a/../../other.jpg", None),
        ("a/../b.jpg", None),
        ("{root}/../other/a.jpg", None),
        ("{root}2/a.jpg", None),
        ("/etc/hostname", None),
        ("file://{root}/a.jpg", None),
        ("http://127.0.0.1/a.jpg", None),
        ("s3://other/a.jpg", None),
        ("a//b.jpg", None),
        ("./a.jpg", None),
        ("a\0.jpg", None),
        ("\udcff", None),
    ],
)
@pytest.mark.parametrize("root", ["/pools/images", "s3://bucket/images"])
def test_a_reference_leads_below_the_root_or_nowhere(root: str, uri: str, below: str | None) -> None:
    place = find_below(locate(root), uri.replace("{root}", root).encode(errors="surrogateescape"))
    assert (place and place.uri) == (below and f"{root}/{below}")


def test_a_link_out_of_the_root_leads_nowhere_and_one_inside_is_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "in").symlink_to(root / "real")
    assert find_below(locate(str(root)), b"out/a.jpg") is None
    assert find_below(locate(str(root)), b"in/a.jpg") is not None


def test_scores_of_references_are_those_of_the_bytes_and_each_failure_is_a_reason(
    samples: list[Sample], tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root, samples = tmp_path / "images", samples[:14]
    rows = referring(samples, root)
    rows[1]["image_uri"] = str(root / rows[1]["image_uri"])
    rows[2] |= {"image": samples[2].image, "image_uri": "nowhere.jpg"}  # its own bytes come first
    faults = {
        3: ("missing", {"image_uri": "nowhere.jpg"}),
        4: ("changed", {"image_size": rows[4]["image_size"] + 1}),
        5: ("outside_root", {"image_uri": str(tmp_path / "pool" / "part.parquet")}),
        6: ("empty", {"image_uri": None}),
        7: ("empty", {"image_uri": "empty.jpg", "image_size": 0}),
        8: ("undecodable", {"image_uri": "notes.txt", "image_size": None}),
        9: ("missing", {"image_uri": "drive 0"}),
        10: ("missing", {"image_uri": "pipe"}),
        11: ("too_large", {"image_uri": "sparse.jpg", "image_size": None}),
        12: ("forbidden", {}),
    }
    for number, (_, change) in faults.items():
        rows[number] |= change
    (root / "empty.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("a note")
    os.mkfifo(root / "pipe")
    with (root / "sparse.jpg").open("wb") as stream:
        stream.truncate(references.MAX_IMAGE_BYTES + 1)
    read = disk.read

    def refuse(path: str, **options: Any) -> tuple[bytes, str] | None:
        if path.endswith("/12.jpg"):
            raise PermissionError(errno.EACCES, "denied", path)
        return read(path, **options)

    monkeypatch.setattr(disk, "read", refuse)
    write(tmp_path / "pool" / "part.parquet", rows[:10], BOTH)
    write(tmp_path / "pool" / "more.parquet", rows[10:], WITHOUT_IMAGE)
    write(tmp_path / "plain" / "part.parquet", [row_of(each) for each in samples], POOL)
    arguments = ("--max-error-rate", "1", "--image-root", str(root), "--metadata", "image_uri")
    code, found = score(tmp_path / "pool", model_uri, tmp_path / "out", *arguments)
    _, plain = score(tmp_path / "plain", model_uri, tmp_path / "plain-out")
    assert code == 0
    for number, sample in enumerate(samples):
        reason = faults[number][0] if number in faults else None
        assert found[sample.sample_id]["error"] == reason, number
        if reason is None:
            assert found[sample.sample_id] == plain[sample.sample_id]
    capsys.readouterr()
    other = ("--max-error-rate", "1", "--image-root", str(tmp_path / "pool"), "--metadata", "image_uri")
    assert score(tmp_path / "pool", model_uri, tmp_path / "out", *other)[0] == 2
    assert "differing: image_root (was 'local://" in capsys.readouterr().err


@pytest.mark.parametrize("root", ["nowhere", "a.txt"])
def test_a_root_that_is_no_folder_is_one_line(
    samples: list[Sample], tmp_path: Path, model_uri: str, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    write(tmp_path / "pool" / "a.parquet", referring(samples[:1], tmp_path / "pool"), WITHOUT_IMAGE)
    (tmp_path / "a.txt").write_text("x")
    assert score(tmp_path / "pool", model_uri, tmp_path / "out", "--image-root", str(tmp_path / root))[0] == 2
    assert f"--image-root {tmp_path / root}: expected a folder, found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("column", "kind"), [("image_uri", pa.int64()), ("image_size", pa.string())])
def test_a_reference_of_another_type_is_refused(tmp_path: Path, column: str, kind: pa.DataType) -> None:
    schema = WITHOUT_IMAGE.set(WITHOUT_IMAGE.get_field_index(column), pa.field(column, kind))
    write(tmp_path / "a.parquet", [{"sample_id": "a"}], schema)
    with pytest.raises(Exception, match=f"column '{column}': expected .*, found {kind}"):
        freeze(tmp_path)


def test_one_bad_answer_is_no_loss(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each file the first answer is short, nothing, or a refusal."""
    rows = referring(samples[:6], tmp_path)
    seen: set[str] = set()
    read = disk.read

    def fail_once(path: str, **options: Any) -> tuple[bytes, str] | None:
        found = read(path, **options)
        if path in seen or found is None:
            return found
        seen.add(path)
        match len(seen) % 3:
            case 0:
                return found[0][:-10], found[1]
            case 1:
                return None
        raise PermissionError(errno.EACCES, "denied", path)

    monkeypatch.setattr(disk, "read", fail_once)
    table = pa.Table.from_pylist([{n: row.get(n) for n in BOTH.names} for row in rows], BOTH)
    (found,) = with_images(table, locate(str(tmp_path)), columns=POOL.names)
    assert len(seen) == len(rows)
    assert found["image"].to_pylist() == [sample.image for sample in samples[:6]]


def test_a_machine_without_the_root_ends_the_run(samples: list[Sample], tmp_path: Path) -> None:
    table = pa.Table.from_pylist(referring(samples[:1], tmp_path), BOTH)
    with pytest.raises(RunFailedError, match="nowhere: expected the folder that images lie in, found none"):
        [*with_images(table, locate(str(tmp_path / "nowhere")), columns=POOL.names)]


def test_a_disk_that_fails_is_no_reason_of_a_row(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.Table.from_pylist(referring(samples[:1], tmp_path), BOTH)

    def fail(path: str, **_: Any) -> None:
        raise OSError(errno.EIO, "input/output error", path)

    monkeypatch.setattr(disk, "read", fail)
    with pytest.raises(RunFailedError, match=r"storage failed: .*input/output error"):
        [*with_images(table, locate(str(tmp_path)), columns=POOL.names)]


def test_persons_of_one_image_share_a_read_and_few_images_are_in_memory(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = referring(samples[:1], tmp_path) * (references.FETCH_ROWS + 1)
    count = 0
    read = disk.read

    def counted(path: str, **options: Any) -> tuple[bytes, str] | None:
        nonlocal count
        count += 1
        return read(path, **options)

    monkeypatch.setattr(disk, "read", counted)
    found = with_images(pa.Table.from_pylist(rows, BOTH), locate(str(tmp_path)), columns=POOL.names)
    assert [len(each) for each in found] == [references.FETCH_ROWS, 1]
    assert count == 2


def test_a_row_group_of_references_is_work_for_many(tmp_path: Path) -> None:
    rows = [{"sample_id": f"{number:04d}", "image_uri": f"{number}.jpg"} for number in range(1000)]
    write(tmp_path / "a.parquet", rows, WITHOUT_IMAGE)
    (file,) = freeze(tmp_path).files
    assert file.row_group_rows == (1000,)
    bins = plan_bins([Segment(file, 10, 1000)], max_bytes=256 * REFERENCE_BYTES)
    assert [bin_.num_rows for bin_ in bins] == [256, 256, 256, 222]
    assert [bin_.num_rows for bin_ in plan_bins([Segment(file, 10, 1000)], reference_bytes=1)] == [990]


def test_labelled_references_evaluate_and_train_as_their_bytes(
    samples: list[Sample], tmp_path: Path, bundle: Bundle
) -> None:
    schema = labelled(LSP.num_keypoints)
    rows = referring(samples[:10], tmp_path / "images")
    rows[3]["image_uri"] = "nowhere.jpg"
    plain = [row_of(sample) for sample in samples[:10]]
    write(tmp_path / "refs" / "a.parquet", rows, pa.schema([*schema, *REFERENCE]))
    write(tmp_path / "plain" / "a.parquet", plain, schema)
    root = locate(str(tmp_path / "images"))
    tables = [
        freeze_labelled(locate(str(tmp_path / name)), skeleton=LSP, image_root=each)
        for name, each in (("refs", root), ("plain", None))
    ]
    found, expected = (evaluate_rows(bundle, table) for table in tables)
    assert found["error"].to_pylist() == [None] * 3 + ["missing"] + [None] * 6
    is_same = np.arange(10) != 3
    np.testing.assert_array_equal(found["true_loss"].to_numpy()[is_same], expected["true_loss"].to_numpy()[is_same])
    (chunk,) = plan_chunks(tables[0], seed=0)
    read = read_chunk(tables[0].location, chunk, columns=schema.names, images=root)
    images = dict(zip(read["sample_id"].to_pylist(), read["image"].to_pylist(), strict=True))
    assert images == {row["sample_id"]: row["image"] for row in plain} | {plain[3]["sample_id"]: None}


def test_report_and_export_fetch_the_same_images(samples: list[Sample], tmp_path: Path, model_uri: str) -> None:
    rows = referring(samples[:12], tmp_path / "images")
    write(tmp_path / "pool" / "a.parquet", rows, WITHOUT_IMAGE)
    scores, chosen, out = (str(tmp_path / name) for name in ("scores", "selection", "export"))
    code, _ = score(tmp_path / "pool", model_uri, scores, "--image-root", str(tmp_path / "images"))
    assert code == 0
    select = ["select", "--scores", scores, "--out", chosen, "--budget", "12", "--min-gap", "0"]
    assert main(select) == 0
    (tmp_path / "images" / rows[0]["image_uri"]).unlink()
    assert main(["report", "--run", chosen]) in (0, 5)
    page = (tmp_path / "selection" / "report.html").read_text()
    assert "the image can&#39;t be read: missing" in page or "the image can't be read: missing" in page
    export = ["export", "coco", "--selection", chosen, "--pool", str(tmp_path / "pool"), "--out", out]
    assert main(export) in (0, 5)
    written = {path.read_bytes() for path in Path(out, "images", "default").iterdir()}
    assert written == {sample.image for sample in samples[1:12]}


@pytest.fixture
def store(s3_proxy: FaultProxy, samples: list[Sample], tmp_path: Path) -> tuple[str, Path, FaultProxy]:
    """Six images in a store, and a pool on the disk that refers to them by ETag."""
    root = locate(f"{s3_proxy.uri}/{tmp_path.name}/images")
    rows = []
    for number, sample in enumerate(samples[:6]):
        place = root.join(f"a b {number}.jpg")
        write_bytes(place, sample.image)
        stored = place.stat()
        assert stored is not None
        uri = place.absolute_uri if number % 2 else place.path.removeprefix(f"{root.path}/")
        etag = "another" if number == 4 else f'"{stored.version}"'
        rows.append({**row_of(sample), "image_uri": uri, "image_size": stored.size, "image_etag": etag})
    rows[5]["image_uri"] = "nowhere.jpg"
    write(tmp_path / "pool" / "a.parquet", rows, WITHOUT_IMAGE)
    return root.absolute_uri, tmp_path, s3_proxy


@pytest.mark.s3
def test_references_into_a_store(store: tuple[str, Path, FaultProxy], samples: list[Sample], model_uri: str) -> None:
    root, folder, proxy = store
    proxy.fail("access_denied", on="GET", path="a%20b%203")
    proxy.fail("slow_down", on="GET", path="a%20b%200", times=2)
    more = ("--image-root", root, "--max-error-rate", "1")
    code, found = score(folder / "pool", model_uri, folder / "out", *more)
    assert code == 0
    reasons = [found[sample.sample_id]["error"] for sample in samples[:6]]
    assert reasons == [None, None, None, "forbidden", "changed", "missing"]
    write(folder / "plain" / "a.parquet", [row_of(sample) for sample in samples[:3]], POOL)
    _, plain = score(folder / "plain", model_uri, folder / "plain-out")
    assert all(found[sample.sample_id] == plain[sample.sample_id] for sample in samples[:3])


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["slow_down", "expired_token"])
def test_a_store_that_fails_ends_the_run_and_publishes_nothing(
    store: tuple[str, Path, FaultProxy], model_uri: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    root, folder, proxy = store
    monkeypatch.setattr(s3, "ATTEMPTS", 2)
    monkeypatch.setattr(s3, "_clients", {})
    proxy.fail(kind, on="GET", path="a%20b%201")
    assert score(folder / "pool", model_uri, folder / "out", "--image-root", root)[0] == 3
    assert not (folder / "out" / "run.json").exists()
    proxy.heal()
    assert score(folder / "pool", model_uri, folder / "out", "--image-root", root, "--max-error-rate", "1")[0] == 0


def test_the_table_of_the_page_is_scored(
    samples: list[Sample], tmp_path: Path, model_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    referring(samples[:4], tmp_path / "work" / "frames")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "references.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})  # noqa: S102
    code, found = score("work/by-reference", model_uri, "scores", "--image-root", "work/frames")
    assert (code, sorted(found)) == (0, ["drive 0/0.jpg", "drive 0/2.jpg", "drive 1/1.jpg", "drive 1/3.jpg"])
