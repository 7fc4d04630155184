"""The few file operations that all else is made of, on the local disk; `test_s3.py` has the same on S3."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from distributed.storage import (
    Location,
    delete_folders,
    list_files,
    locate,
    open_atomic,
    read_bytes,
    reported,
    write_bytes,
)
from model.errors import InputError, RunFailedError

ODD_NAMES = ["a b", "ünï-日本", "date=2026-11-22", "100%", "a%20b", "a+b", "#1?", "x'y"]


def fail_halfway(location: Location, error: type[BaseException]) -> None:
    with open_atomic(location) as stream:
        stream.write(b"half")
        raise error("halfway")


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("gs://bucket/x", "found scheme 'gs'"),
        ("https://host/x", "found scheme 'https'"),
        ("file:///x", "found scheme 'file'"),
        ("S3://bucket/x", "found scheme 'S3'"),
        ("s3://", "found no bucket"),
        ("s3:///key", "found no bucket"),  # what `s3://$BUCKET/key` is without BUCKET
        ("s3://bucket//key", "found '//'"),
        ("", "found an empty text"),
    ],
)
def test_what_is_no_location_is_refused(uri: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        locate(uri)
    assert str(caught.value).startswith(uri)


def test_locating_touches_nothing(tmp_path: Path) -> None:
    assert not locate(str(tmp_path / "x" / "y")).exists
    assert not list(tmp_path.iterdir())


def test_joined_locations_say_what_the_user_wrote() -> None:
    assert locate("data/pool/").join("a", "b.parquet").uri == "data/pool/a/b.parquet"
    assert locate("data/pool").parent.uri == "data"
    assert locate("pool.parquet").parent.uri == "."


def test_only_data_files_are_listed_and_sorted(tmp_path: Path) -> None:
    data = ["b.parquet", "a/2.parquet", "a/10.parquet", "a b/c=1/é.parquet"]
    others = [
        "_SUCCESS.parquet",
        ".b.parquet.tmp.parquet",
        "_temporary/x.parquet",
        ".git/y.parquet",
        "run.json",
        "parquet",
    ]
    for name in data + others:
        write_bytes(locate(str(tmp_path)).join(*name.split("/")), b"x")
    found = [info.path for info in list_files(locate(str(tmp_path)), suffix=".parquet")]
    assert found == sorted(str(tmp_path / name) for name in data)


def test_a_hidden_folder_that_was_asked_for_is_listed(tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "_night" / ".pool"))
    write_bytes(folder.join("a.parquet"), b"x")
    assert len(list_files(folder, suffix=".parquet")) == 1


def test_a_file_is_listed_as_itself(tmp_path: Path) -> None:
    write_bytes(locate(str(tmp_path / "pool.pq")), b"x")
    assert [info.base_name for info in list_files(locate(str(tmp_path / "pool.pq")), suffix=".parquet")] == ["pool.pq"]


def test_nothing_to_list_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file or a folder, found nothing"):
        list_files(locate(str(tmp_path / "nowhere")), suffix="")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    location = locate(str(tmp_path)).join(name, f"{name}.parquet")
    write_bytes(location, name.encode())
    assert read_bytes(location) == name.encode()
    assert below(tmp_path) == [f"{name}/{name}.parquet"]
    assert [info.path for info in list_files(locate(str(tmp_path)), suffix=".parquet")] == [location.path]


def test_writing_replaces_the_whole_content(tmp_path: Path) -> None:
    location = locate(str(tmp_path / "a" / "b.json"))
    write_bytes(location, b"long and old")
    write_bytes(location, b"new")
    assert read_bytes(location) == b"new"
    assert below(tmp_path) == ["a/b.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failing_block_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_halfway(locate(str(tmp_path / "x.parquet")), error)
    assert below(tmp_path) == []


def test_a_failing_block_leaves_the_old_content(tmp_path: Path) -> None:
    location = locate(str(tmp_path / "x.json"))
    write_bytes(location, b"old")
    with pytest.raises(ValueError, match="halfway"):
        fail_halfway(location, ValueError)
    assert read_bytes(location) == b"old"
    assert below(tmp_path) == ["x.json"]


def test_nobody_sees_a_file_before_it_is_whole(tmp_path: Path) -> None:
    folder = locate(str(tmp_path))
    with open_atomic(folder.join("x.parquet")) as stream:
        stream.write(b"half")
        stream.flush()
        assert list_files(folder, suffix=".parquet") == []
    assert len(list_files(folder, suffix=".parquet")) == 1


def test_folders_are_deleted_by_prefix_alone(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    for name in ("attempt-1/x", "attempt-2/a/b", "attempts-notes.txt", "data/attempt-3/x", "my-attempt-4/x"):
        write_bytes(out.join(*name.split("/")), b"x")
    delete_folders(out, prefix="attempt-")
    assert below(tmp_path) == ["attempts-notes.txt", "data/attempt-3/x", "my-attempt-4/x"]


def test_deleting_below_nothing_is_no_error(tmp_path: Path) -> None:
    delete_folders(locate(str(tmp_path / "nowhere")), prefix="attempt-")


def test_reading_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x\.json: expected a file, found nothing"):
        read_bytes(locate(str(tmp_path / "x.json")))


def test_a_storage_error_is_one_line_that_names_the_location(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    location = locate(str(tmp_path / "file" / "below" / "x.json"))
    with pytest.raises(RunFailedError) as caught:
        write_bytes(location, b"x")
    assert str(caught.value).startswith(f"{location.uri}: storage failed: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("error", "said"), [(OSError(), "OSError"), (OSError("one\ntwo"), "one")])
def test_every_storage_error_becomes_one_line(error: OSError, said: str) -> None:
    with pytest.raises(RunFailedError, match=f"^s3://b/x: storage failed: {said}$"), reported("s3://b/x"):
        raise error


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(InputError, match=r"^mine$"), reported("s3://b/x"):
        raise InputError("mine")


def test_a_pickled_location_works(tmp_path: Path) -> None:
    location = pickle.loads(pickle.dumps(locate(str(tmp_path)).join("a b.json")))  # noqa: S301
    write_bytes(location, b"x")
    assert below(tmp_path) == ["a b.json"]


def test_a_pickled_location_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"hidden-{name}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    location = locate("s3://bucket/key")
    pickled = pickle.dumps(location)
    assert b"hidden" not in pickled
    assert pickle.loads(pickled) == location  # noqa: S301
    assert b"127.0.0.1:9" in pickled  # workers go to the same store, whatever their environment
