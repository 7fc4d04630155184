"""The few file operations that all else is made of: on the local disk, and versions on a real S3 server too."""

from __future__ import annotations

import datetime
import errno
import multiprocessing
import os
import pickle
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from conftest import version_of

from distributed.storage import disk, s3
from distributed.storage.location import (
    Location,
    delete_files,
    delete_folders,
    list_files,
    locate,
    open_atomic,
    read_bytes,
    read_versioned,
    reported,
    write_bytes,
    write_if,
)
from model.errors import InputError, RunFailedError

ODD_NAMES = ["a b", "ünï-日本", "date=2026-11-22", "100%", "a%20b", "a+b", "#1?", "x'y", "a&b<c>"]


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


def test_credentials_in_a_location_are_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match=r"^expected s3://BUCKET/KEY and credentials in the environment") as caught:
        locate("s3://KEY:SECRET@bucket/pool")
    assert "SECRET" not in str(caught.value)


def test_locating_touches_nothing(tmp_path: Path) -> None:
    assert not locate(str(tmp_path / "x" / "y")).exists
    assert not list(tmp_path.iterdir())


def test_joined_locations_say_what_the_user_wrote() -> None:
    assert locate("data/pool/").join("a", "b.parquet").uri == "data/pool/a/b.parquet"
    assert locate("data/pool").parent.uri == "data"
    assert locate("pool.parquet").parent.uri == "."


def test_only_data_files_are_listed_and_sorted(folder: Location) -> None:
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
        write_bytes(folder.join(*name.split("/")), b"x")
    found = [info.path for info in list_files(folder, suffix=".parquet")]
    assert found == sorted(f"{folder.path}/{name}" for name in data)


def test_a_hidden_folder_that_was_asked_for_is_listed(tmp_path: Path) -> None:
    folder = locate(str(tmp_path / "_night" / ".pool"))
    write_bytes(folder.join("a.parquet"), b"x")
    assert len(list_files(folder, suffix=".parquet")) == 1


def test_a_file_is_listed_as_itself(tmp_path: Path) -> None:
    write_bytes(locate(str(tmp_path / "pool.pq")), b"x")
    assert [info.base_name for info in list_files(locate(str(tmp_path / "pool.pq")), suffix=".parquet")] == ["pool.pq"]


def test_nothing_is_said_to_be_nothing(folder: Location) -> None:
    with pytest.raises(InputError, match="expected a file or a folder, found nothing"):
        list_files(folder, suffix="")
    with pytest.raises(InputError, match=r"x\.json: expected a file, found nothing"):
        read_bytes(folder.join("x.json"))
    delete_folders(folder, prefix="attempt-")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_taken_as_they_are(folder: Location, name: str) -> None:
    location = folder.join(name, f"{name}.parquet")
    write_bytes(location, name.encode())
    assert read_bytes(location) == name.encode()
    assert [info.path for info in list_files(folder, suffix="")] == [f"{folder.path}/{name}/{name}.parquet"]


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


def test_folders_are_deleted_by_prefix_alone(folder: Location) -> None:
    for name in ("attempt-1/x", "attempt-2/a/b", "attempts-notes.txt", "data/attempt-3/x", "my-attempt-4/x"):
        write_bytes(folder.join(*name.split("/")), b"x")
    delete_folders(folder, prefix="attempt-")
    found = [info.path[len(folder.path) + 1 :] for info in list_files(folder, suffix="")]
    assert found == ["attempts-notes.txt", "data/attempt-3/x", "my-attempt-4/x"]


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


@pytest.mark.parametrize("version", ["absent", "there"])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path, version: str) -> None:
    """A limit on the size of files stands in for the disk's: writes fail at the same point."""
    location = locate(str(tmp_path / "x.json"))
    expected = write_if(location, b"old", version=None) if version == "there" else None
    before = below(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunFailedError, match=r"x\.json: storage failed: "):
            write_if(location, bytes(10_000), version=expected)
        with pytest.raises(RunFailedError, match=r"x\.json: storage failed: "):
            write_bytes(location, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert below(tmp_path) == before
    with pytest.raises(RunFailedError, match="storage failed: the disk is full"), reported("x"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_every_way_to_replace_a_file_changes_its_version(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    location = locate(str(path))
    path.write_bytes(b"one")
    versions = [location.stat()]
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(path.stat().st_mtime_ns,) * 2)
    other.rename(path)  # of equal size and time
    versions.append(location.stat())
    os.utime(path, ns=(path.stat().st_mtime_ns + 1,) * 2)
    versions.append(location.stat())
    write_bytes(location, b"two")
    versions.append(location.stat())
    assert len(set(versions)) == 4


def test_a_broken_link_is_no_file_and_a_linked_folder_is_walked(tmp_path: Path) -> None:
    write_bytes(locate(str(tmp_path / "elsewhere" / "a.parquet")), b"x")
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "pool" / "broken.parquet").symlink_to(tmp_path / "nowhere")
    found = [file.path for file in list_files(locate(str(tmp_path / "pool")), suffix="")]
    assert found == [str(tmp_path / "pool" / "linked" / "a.parquet")]


def test_a_link_back_to_a_folder_around_it_is_refused_and_one_to_itself_is_no_file(tmp_path: Path) -> None:
    write_bytes(locate(str(tmp_path / "pool" / "a" / "b.parquet")), b"x")
    write_bytes(locate(str(tmp_path / "c" / "d.parquet")), b"x")
    (tmp_path / "pool" / "self").symlink_to("self")
    (tmp_path / "pool" / "c").symlink_to(tmp_path / "c")
    assert len(list_files(locate(str(tmp_path / "pool")), suffix="")) == 2
    (tmp_path / "c" / "pool").symlink_to("../pool")
    with pytest.raises(InputError, match=f"^{tmp_path}/pool/c/pool: .* found a symbolic link back to {tmp_path}/pool,"):
        list_files(locate(str(tmp_path / "pool")), suffix="")


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("nowhere"), Path.mkdir], ids=["link", "folder"])
def test_a_file_that_can_never_be_written_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.json")
    with pytest.raises(InputError, match="expected a file or nothing, found a link to nothing or a folder"):
        write_if(locate(str(tmp_path / "x.json")), b"", version=None)


def test_nothing_is_removed_through_a_link_below_the_place_where_it_is_removed(tmp_path: Path) -> None:
    foreign = ["elsewhere/a", "elsewhere/b/c"]
    for name in [*foreign, "out/own/d", "out/e"]:
        write_bytes(locate(str(tmp_path / name)), b"x")
    (tmp_path / "out" / "parts").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "own" / "more").symlink_to("../../elsewhere/b")
    (tmp_path / "link").symlink_to("out")  # the place itself may be one
    delete_files(locate(str(tmp_path / "link")), ["parts/a", "parts/b/c", "own/more/c", "own/d", "e"])
    assert [name for name in below(tmp_path) if (tmp_path / name).is_file()] == foreign


def test_no_version_is_ever_seen_twice(tmp_path: Path) -> None:
    """Faster than the clock ticks, and with inodes that come back."""
    location = locate(str(tmp_path / "x.json"))
    version = write_if(location, b"0", version=None)
    seen = {version}
    for count in range(1, 200):
        version = write_if(location, b"%d" % (count % 2), version=version)
        seen.add(version)
    assert None not in seen
    assert len(seen) == 200
    assert below(tmp_path) == ["x.json"]


def _compete(path: str, barrier: Barrier, index: int, wins: list[int]) -> None:
    version: str | None = None
    for count in range(20):
        barrier.wait(60)
        if disk.write_if(path, f"{count} {index}".encode(), version=version) is not None:
            wins.append(index)
        barrier.wait(60)
        found = disk.stat(path)
        version = found and found[1]


def test_of_eight_processes_one_wins_each_round(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    with multiprocessing.get_context("spawn").Manager() as manager:
        wins = manager.list()
        workers = [
            context.Process(target=_compete, args=(str(tmp_path / "x"), barrier, index, wins)) for index in range(8)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * 8
        assert len(wins) == 20
    assert below(tmp_path) == ["x"]


def test_a_stopped_lock_holder_is_not_awaited_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_LOCK_TIMEOUT_S", 0.01)
    location = locate(str(tmp_path / "x"))
    version = write_if(location, b"old", version=None)
    with (
        disk._locked(location.path),
        pytest.raises(RunFailedError, match=r"another process has kept .*\.x\.lock for"),
    ):
        write_if(location, b"new", version=version)
    assert write_if(location, b"new", version=version) is not None


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    (tmp_path / ".x.lock").touch()
    location = locate(str(tmp_path / "x"))
    version = write_if(location, b"old", version=None)
    assert write_if(location, b"new", version=version) is not None
    assert below(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["../x", "/x", "a//x", "", "a/../../x", "."])
def test_only_what_lies_below_is_deleted(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="expected a path below"):
        delete_files(locate(str(tmp_path / "a")), ["b", name])


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


def test_all_say_the_same_version(folder: Location) -> None:
    small, large = folder.join("a", "small.parquet"), folder.join("large.parquet")
    written = write_if(small, b"x", version=None)
    write_bytes(large, bytes(12 * 2**20))  # in several parts
    listed = {file.path: file for file in list_files(folder, suffix=".parquet")}
    assert listed == {location.path: location.stat() for location in (small, large)}
    assert listed[large.path].size == 12 * 2**20
    assert written == version_of(small)
    assert read_versioned(small) == (b"x", written)
    assert list_files(small, suffix=".other") == [small.stat()]


def test_what_is_not_there_has_no_version(folder: Location) -> None:
    write_bytes(folder.join("a", "x"), b"x")
    for location in (folder, folder.join("a"), folder.join("b"), folder.join("a", "x", "y")):
        assert location.stat() is None
        assert location.age_s() is None
    assert read_versioned(folder.join("b")) is None


def test_a_replaced_file_has_another_version(folder: Location) -> None:
    location = folder.join("x.parquet")
    versions = []
    for content in (b"one", b"two", bytes(12 * 2**20), b"\1" + bytes(12 * 2**20 - 1)):
        write_bytes(location, content)
        versions.append(version_of(location))
    assert len(set(versions)) == 4


def test_only_the_version_that_is_there_is_replaced(folder: Location) -> None:
    location = folder.join("x.json")
    assert write_if(location, b"0", version="0" * 32) is None
    assert location.stat() is None
    first = write_if(location, b"1", version=None)
    assert first is not None
    assert write_if(location, b"1", version=None) is None
    second = write_if(location, b"2", version=first)
    assert second is not None
    assert write_if(location, b"3", version=first) is None
    assert read_versioned(location) == (b"2", second)
    assert [file.path for file in list_files(folder, suffix="")] == [location.path]


def test_of_eight_threads_one_wins_each_round(folder: Location) -> None:
    location, barrier = folder.join("x.json"), threading.Barrier(8)

    def write(index: int, version: str | None) -> str | None:
        barrier.wait(60)
        return write_if(location, b"%d" % index, version=version)

    version = None
    with ThreadPoolExecutor(8) as pool:
        for first in (0, 8):
            written = list(pool.map(write, range(first, first + 8), [version] * 8))
            (winner,) = (index for index, result in enumerate(written) if result is not None)
            version = written[winner]
            assert read_versioned(location) == (b"%d" % (first + winner), version)


def test_odd_names_are_listed_page_by_page_and_deleted(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    if not folder.is_local:
        monkeypatch.setattr(s3, "_DELETED_AT_ONCE", 3)
        monkeypatch.setattr(s3.client(folder.filesystem), "s3_additional_kwargs", {"MaxKeys": 3})
    names = [f"{name}/{name}.parquet" for name in ODD_NAMES]
    for name in [*names, "_hidden/x.parquet", "a b/.x.parquet", "x.txt"]:
        write_bytes(folder.join(*name.split("/")), name.encode())
    found = list_files(folder, suffix=".parquet")
    assert [file.path for file in found] == sorted(f"{folder.path}/{name}" for name in names)
    assert [file.size for file in found] == [len(file.path[len(folder.path) + 1 :].encode()) for file in found]
    delete_files(folder, ["nowhere/x", *names[1:]])
    delete_files(folder, [])
    assert [file.path for file in list_files(folder, suffix="")] == [
        f"{folder.path}/{name}" for name in (names[0], "x.txt")
    ]


def test_a_name_that_begins_alike_is_not_below(folder: Location) -> None:
    for name in ("pool", "pools"):
        write_bytes(folder.join(name, "x"), b"x")
    assert [file.path for file in list_files(folder.join("pool"), suffix="")] == [folder.join("pool", "x").path]


def test_age_is_told_by_the_stores_clock(folder: Location) -> None:
    write_bytes(folder.join("x"), b"x")
    age_s = folder.join("x").age_s()
    assert age_s is not None
    assert -1 <= age_s < 60
    assert [file.path for file in list_files(folder, suffix="")] == [folder.join("x").path]


@pytest.mark.parametrize(
    ("minutes", "said"), [(0, "check the keys or the role, and their rights"), (20, "this machine's clock is not")]
)
def test_a_refusal_without_a_reason_is_of_the_clock_only_where_the_answers_time_says_so(
    minutes: int, said: str
) -> None:
    told = {"date": format_datetime(datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes))}
    answer = {"Error": {"Code": "403"}, "ResponseMetadata": {"HTTPStatusCode": 403, "HTTPHeaders": told}}
    with pytest.raises(OSError, match=said), s3._explained():
        raise PermissionError from ClientError(answer, "HeadObject")  # as s3fs does
