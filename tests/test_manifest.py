"""The frozen pool: what is in it, what is refused, and which files are bad and why."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import flipped, freeze, plain_rows, write_file

from distributed.runs.record import begin_run, publish_run
from distributed.schema import POOL, labelled
from distributed.storage.location import list_files, locate, write_bytes
from distributed.tables import manifest as manifest_module
from distributed.tables.manifest import PoolFile, freeze_pool, read_manifest
from distributed.tables.parquet import write_rows
from model.errors import InputError

Rows = list[dict[str, object]]


def test_the_manifest_lists_the_files_and_their_row_groups(three_files: Path) -> None:
    (three_files / "notes.txt").write_bytes(b"x")
    (three_files / "_SUCCESS").touch()
    manifest = freeze(three_files)
    assert [file.path for file in manifest.files] == ["a b=1/é.parquet", "b.parquet", "c.parquet"]
    assert [file.row_group_rows for file in manifest.files] == [(1,), (4, 4, 2), (4, 1)]
    assert [file.size for file in manifest.files] == [
        (three_files / file.path).stat().st_size for file in manifest.files
    ]
    assert manifest.num_rows == 16
    assert manifest.bad_files == ()


def test_of_given_files_only_those_are_looked_at_and_one_that_is_gone_is_bad(three_files: Path) -> None:
    listed = [file for file in list_files(locate(str(three_files)), suffix=".parquet") if file.base_name != "b.parquet"]
    (three_files / "c.parquet").unlink()
    manifest = freeze_pool(locate(str(three_files)), files=listed)
    assert [file.path for file in manifest.files] == ["a b=1/é.parquet"]
    assert [(file.path, file.reason) for file in manifest.bad_files] == [("c.parquet", "no longer there")]


def test_a_single_file_is_a_pool_whatever_its_name(three_files: Path, tmp_path: Path) -> None:
    renamed = (three_files / "b.parquet").rename(tmp_path / "_b c.pq")
    manifest = freeze(renamed)
    assert [(file.path, file.num_rows) for file in manifest.files] == [("_b c.pq", 10)]
    assert manifest.location.path == str(tmp_path)


def test_an_empty_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: expected a file or a folder, found nothing"):
        freeze(tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected Parquet files, found none"):
        freeze(tmp_path)
    write_file(tmp_path / "a.parquet", [])
    write_file(tmp_path / "b.parquet", [])
    with pytest.raises(InputError, match="expected at least one row, found none in 2 files"):
        freeze(tmp_path)
    assert freeze_pool(locate(str(tmp_path)), may_be_empty=True).segments == []


def test_a_pool_of_bad_files_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    (tmp_path / "b.parquet").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"no readable file; a\.parquet: empty file"):
        freeze(tmp_path)


def test_a_duplicate_within_a_file_or_across_files_is_named(three_files: Path, tmp_path: Path) -> None:
    write_file(tmp_path / "one" / "a.parquet", [*plain_rows(9), *plain_rows(1, start=3)])
    with pytest.raises(InputError, match=r"'sample_id': .* found 'p0003' twice \(a\.parquet, a\.parquet\)"):
        freeze(tmp_path / "one")
    write_file(three_files / "d.parquet", plain_rows(1, start=12))
    with pytest.raises(InputError, match=r"'sample_id': .* found 'p0012' twice \(c\.parquet, d\.parquet\)"):
        freeze(three_files)


def test_duplicates_far_apart_are_found_among_many(tmp_path: Path) -> None:
    """Beyond the ids that are read at once."""
    schema, count = pa.schema([POOL.field("sample_id")]), 70_000
    ids = [f"{number}" for number in range(count)]
    for name, values in (("a", ids), ("b", [f"b{number}" for number in range(count)]), ("c", ["69999"])):
        pq.write_table(pa.table([values], schema=schema), tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match=r"found '69999' twice \(a\.parquet, c\.parquet\)"):
        freeze_pool(locate(str(tmp_path)), schema=schema)


def test_an_id_that_is_too_long_is_refused_and_rows_that_share_it_are_never_held_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of some kB, whose ids would be 3 GB."""
    shared = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int32)), pa.array(["x" * 30_000]))
    schema = pa.schema([POOL.field("sample_id")])
    pq.write_table(pa.table([shared], names=schema.names), tmp_path / "a.parquet", store_schema=False)
    monkeypatch.setattr(manifest_module, "_READ_BYTES", 2**24)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(
            InputError, match=r"^a\.parquet: column 'sample_id': expected at most 4096 B, found 30000 B$"
        ):
            freeze_pool(locate(str(tmp_path)), schema=schema)
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 2**27


def test_ids_that_share_a_hash_are_no_duplicates(three_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "hash_ids", lambda ids: np.zeros(len(ids), np.uint64))
    assert freeze(three_files).num_rows == 16
    write_file(three_files / "d.parquet", plain_rows(1, start=12))
    with pytest.raises(InputError, match=r"found 'p0012' twice \(c\.parquet, d\.parquet\)"):
        freeze(three_files)


def test_of_files_that_are_as_an_earlier_manifest_has_them_none_is_opened(
    three_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, kept = locate(str(three_files)), locate(str(tmp_path / "manifest.json"))
    first = freeze_pool(pool)
    write_bytes(kept, first.as_bytes())
    opened = []
    inspect = manifest_module._inspect
    monkeypatch.setattr(
        manifest_module,
        "_inspect",
        lambda *given, **named: opened.append(given[1].base_name) or inspect(*given, **named),
    )
    earlier = read_manifest(kept, pool)
    assert freeze_pool(pool, earlier=earlier) == first
    assert opened == []
    (three_files / "c.parquet").unlink()
    (three_files / "e.parquet").write_bytes(b"no Parquet")
    assert [file.path for file in freeze_pool(pool, earlier=earlier).files] == ["a b=1/é.parquet", "b.parquet"]
    assert opened == ["e.parquet"]


def test_the_ids_of_new_files_are_compared_with_those_of_known_ones(three_files: Path) -> None:
    earlier = freeze(three_files)
    write_file(three_files / "0.parquet", plain_rows(1, start=90))
    grown = freeze_pool(locate(str(three_files)), earlier=earlier)
    assert grown == freeze(three_files)
    write_file(three_files / "d.parquet", plain_rows(1, start=12))
    with pytest.raises(InputError, match=r"found 'p0012' twice \(c\.parquet, d\.parquet\)"):
        freeze_pool(locate(str(three_files)), earlier=grown)


@pytest.mark.parametrize("content", [b"", b"no JSON", b"{}", b'{"files": [{"path": "a"}], "bad_files": []}'])
def test_a_manifest_of_another_version_is_none(tmp_path: Path, content: bytes) -> None:
    kept = locate(str(tmp_path / "manifest.json"))
    write_bytes(kept, content)
    assert read_manifest(kept, locate(str(tmp_path))) is None


def test_a_null_id_is_refused(tmp_path: Path) -> None:
    nullable = POOL.set(0, pa.field("sample_id", pa.string()))
    write_file(tmp_path / "a.parquet", [*plain_rows(2), {"sample_id": None}], schema=nullable)
    write_file(tmp_path / "b.parquet", plain_rows(2, start=2))
    with pytest.raises(InputError, match=r"a\.parquet: column 'sample_id': expected no nulls"):
        freeze(tmp_path)


def test_an_id_that_is_no_text_is_refused(tmp_path: Path) -> None:
    ids = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    columns = [ids, *(pa.nulls(1, field.type) for field in list(POOL)[1:])]
    pq.write_table(pa.table(columns, schema=POOL), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'sample_id': expected UTF-8, found b'a\\xffb'"):
        freeze(tmp_path)


def test_an_unfinished_ingest_is_refused(tmp_path: Path) -> None:
    begin_run(locate(str(tmp_path)), {"kind": "lsp"})
    write_file(tmp_path / "part-00000.parquet", plain_rows(3))
    with pytest.raises(InputError, match="expected a finished table, found an unfinished ingest: run it again"):
        freeze(tmp_path)
    publish_run(locate(str(tmp_path)), {"kind": "table"})
    assert freeze(tmp_path).num_rows == 3


def test_an_unfinished_ingest_below_the_pool_is_refused(three_files: Path) -> None:
    for night in ("night1", "night2"):
        begin_run(locate(str(three_files / night)), {})
    publish_run(locate(str(three_files / "night1")), {"kind": "table"})
    with pytest.raises(InputError, match=r"^.*pool/night2: expected a finished table, found an unfinished ingest"):
        freeze(three_files)


def reason_of(three_files: Path, name: str) -> str:
    """The reason why the one bad file is bad; the others of the three files are as they were."""
    manifest = freeze(three_files)
    assert [file.path for file in manifest.files] == ["a b=1/é.parquet", "b.parquet", "c.parquet"]
    assert manifest.num_rows == 16
    (bad,) = manifest.bad_files
    assert bad.path == name
    assert "\n" not in bad.reason
    assert str(three_files) not in bad.reason
    return bad.reason


def test_a_file_of_no_bytes_or_no_parquet_or_only_a_part_of_one_is_bad(three_files: Path) -> None:
    whole = (three_files / "b.parquet").read_bytes()
    footer = footer_start(whole)
    (three_files / "d.parquet").touch()
    assert reason_of(three_files, "d.parquet") == "empty file"
    for content in (
        b"<html>503 Slow Down</html>",
        b"PAR1" + bytes(100) + b"PAR1",
        *(whole[: int(len(whole) * share)] for share in (0.1, 0.5, 0.999)),
        whole[:footer] + bytes(20) + whole[footer + 20 :],
    ):
        (three_files / "d.parquet").write_bytes(content)
        assert reason_of(three_files, "d.parquet").startswith("damaged: ")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (POOL.set(0, pa.field("sample_id", pa.int64())), "column 'sample_id': expected string, found int64"),
        (POOL.remove(1), "column 'image': expected large_binary, found no such column"),
    ],
)
def test_a_file_of_another_schema_is_bad(three_files: Path, schema: pa.Schema, reason: str) -> None:
    write_file(three_files / "d.parquet", [{"sample_id": 1 if "int64" in reason else "x"}], schema=schema)
    assert reason_of(three_files, "d.parquet") == reason


def footer_start(whole: bytes) -> int:
    return len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")


def test_a_footer_that_contradicts_itself_is_bad(three_files: Path) -> None:
    """Footers have no checksum; pyarrow reads such a file with fewer rows, without an error."""
    path = write_file(three_files / "d.parquet", plain_rows(8, start=50))
    path.write_bytes(with_a_wrong_row_count(path.read_bytes()))
    assert reason_of(three_files, "d.parquet") == "damaged: the footer's row count is not that of its row groups"


def with_a_wrong_row_count(good: bytes) -> bytes:
    """The file with the first flip in its footer that changes nothing but the number of rows."""
    for position in range(footer_start(good), len(good)):
        bad = flipped(good, position, bit=3)
        try:
            footer = pq.read_metadata(pa.BufferReader(bad))
            num_rows = sum(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        except (OSError, pa.ArrowInvalid):
            continue
        if num_rows != footer.num_rows:
            return bad
    raise AssertionError("no such flip")


def test_a_file_whose_ids_are_damaged_is_bad_and_its_ids_are_nobodys(three_files: Path) -> None:
    """The second row group's: what was read of the first is not compared with the other files."""
    path = write_file(three_files / "d.parquet", plain_rows(8))  # the ids of b.parquet
    ids = pq.read_metadata(path).row_group(1).column(0)
    path.write_bytes(flipped(path.read_bytes(), ids.data_page_offset + ids.total_compressed_size // 2))
    assert reason_of(three_files, "d.parquet").startswith("damaged: ")


def test_a_file_whose_images_are_damaged_is_no_bad_file(three_files: Path) -> None:
    image = pq.read_metadata(three_files / "b.parquet").row_group(0).column(1)
    content = (three_files / "b.parquet").read_bytes()
    (three_files / "b.parquet").write_bytes(flipped(content, image.data_page_offset + image.total_compressed_size // 2))
    assert freeze(three_files).bad_files == ()


def test_the_fingerprint_is_that_of_the_files(three_files: Path) -> None:
    before = freeze(three_files).fingerprint
    assert freeze(three_files).fingerprint == before
    stat = (three_files / "b.parquet").stat()
    os.utime(three_files / "b.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    touched = freeze(three_files).fingerprint
    (three_files / "d.parquet").touch()
    with_bad_file = freeze(three_files).fingerprint
    assert len({before, touched, with_bad_file}) == 3


def test_a_file_keeps_its_id_while_others_come_and_go(three_files: Path) -> None:
    before = {file.path: file.file_id for file in freeze(three_files).files}
    assert len(set(before.values())) == 3
    (three_files / "c.parquet").unlink()
    write_file(three_files / "0.parquet", plain_rows(3, start=50))
    after = {file.path: file.file_id for file in freeze(three_files).files}
    assert after["b.parquet"] == before["b.parquet"]
    assert after["a b=1/é.parquet"] == before["a b=1/é.parquet"]


FILE = {"path": "a", "size": 9, "version": "v", "row_group_rows": (2, 3), "row_group_bytes": (5, 5), "footer": "f"}


@pytest.mark.parametrize("change", [{"path": "b"}, {"size": 8}, {"version": "w"}, {"row_group_rows": (3, 2)}])
def test_another_name_size_version_or_shape_is_another_file(change: dict[str, object]) -> None:
    file = PoolFile(**FILE)  # type: ignore[arg-type]
    assert PoolFile(**{**FILE, **change}).file_id != file.file_id  # type: ignore[arg-type]
    assert PoolFile(**FILE).file_id == file.file_id  # type: ignore[arg-type]


def test_a_labelled_table_is_frozen_by_its_own_schema(tmp_path: Path) -> None:
    rows = [{**row, "keypoints": [1.0] * 28, "visibility": [2] * 14} for row in plain_rows(3)]
    write_rows(locate(str(tmp_path)), rows, labelled(14))
    assert freeze_pool(locate(str(tmp_path)), schema=labelled(14)).num_rows == 3
    with pytest.raises(InputError, match=r"no readable file; part-00000\.parquet: column 'keypoints': expected"):
        freeze_pool(locate(str(tmp_path)), schema=labelled(16))


def test_metadata_is_of_one_type_in_all_files_or_a_file_is_bad(tmp_path: Path) -> None:
    with_camera = POOL.append(pa.field("camera", pa.string()))
    write_file(tmp_path / "a.parquet", plain_rows(2), schema=with_camera)
    write_file(tmp_path / "b.parquet", plain_rows(2, start=2), schema=POOL.append(pa.field("camera", pa.int64())))
    write_file(tmp_path / "c.parquet", plain_rows(2, start=4))
    manifest = freeze_pool(locate(str(tmp_path)), metadata=["camera"])
    assert manifest.metadata == pa.schema([pa.field("camera", pa.string())])
    assert [file.path for file in manifest.files] == ["a.parquet"]
    assert {file.path: file.reason for file in manifest.bad_files} == {
        "b.parquet": "metadata: expected types as in a.parquet, found others",
        "c.parquet": "column 'camera': expected metadata, found no such column",
    }
    assert freeze(tmp_path).metadata == pa.schema([])


@pytest.mark.parametrize("name", ["image", "predicted_loss", "embedding", "file_id"])
def test_columns_of_the_tables_own_are_no_metadata(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / "a.parquet", plain_rows(2))
    with pytest.raises(InputError, match=f"column '{name}': expected metadata, found a column of the tables' own"):
        freeze_pool(locate(str(tmp_path)), metadata=[name])
