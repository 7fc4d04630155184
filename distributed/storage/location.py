"""One factory for file systems, and the few file operations the rest needs: local paths and s3:// URIs alike.

Knows nothing of tables. Credentials come from the environment or a role, never from here: file systems are pickled.
"""

from __future__ import annotations

import copy
import datetime
import errno
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from pyarrow import fs

from distributed.storage import disk, s3
from model.errors import DamagedError, InputError, RunFailedError

HIDDEN = ("_", ".")  # how the names begin of what is no data
_BROKEN_READ = "Failed to flush response stream"  # pyarrow's words
# Of a read that gave something else than what was written: a bad network card or cache spoils some answers, a bad disk
# all, and there may be many such files.
_DAMAGED_ATTEMPTS = 4
_MARKS = b"\xa5\x5a"

Result = TypeVar("Result")


class StoredFile(NamedTuple):
    """A file as it was found: its full path in the file system, its bytes, and what changes when it is replaced.

    The version is the ETag in an object store (equal contents may share it); on disk, time of modification and inode.
    """

    path: str
    size: int
    version: str

    @property
    def base_name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class Location(NamedTuple):
    """A file system and a path in it; `uri` is what the user wrote."""

    filesystem: fs.FileSystem
    path: str
    uri: str

    @property
    def absolute_uri(self) -> str:
        """The URI that means this location from any folder: records name places by it."""
        return self.path if self.is_local else f"s3://{self.path}"

    def join(self, *names: str) -> Location:
        """The location of something below this one."""
        return Location(self.filesystem, "/".join([self.path, *names]), "/".join([self.uri.rstrip("/"), *names]))

    @property
    def parent(self) -> Location:
        """The folder that this location lies in."""
        return Location(self.filesystem, self.path.rpartition("/")[0], self.uri.rstrip("/").rpartition("/")[0] or ".")

    def anew(self) -> Location:
        """The same location, over connections of its own."""
        return self._replace(filesystem=copy.copy(self.filesystem))

    @property
    def is_local(self) -> bool:
        """True for a disk, False for an object store."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def stat(self) -> StoredFile | None:
        """The file that lies here; None if there is none (a folder is no file)."""
        with reported(self.uri):
            found = disk.stat(self.path) if self.is_local else s3.stat(self.filesystem, self.path)
        return found and StoredFile(self.path, *found)

    def age_s(self) -> float | None:
        """Seconds since the file here was written, by the store's own clock; None if there is none."""
        with reported(self.uri):
            return disk.age_s(self.path) if self.is_local else s3.age_s(self.filesystem, self.path)

    def info(self) -> fs.FileInfo:
        """Type, size and mtime of what lies here."""
        with reported(self.uri):
            return self.filesystem.get_file_info(self.path)

    @property
    def exists(self) -> bool:
        """True if a file or a folder lies here."""
        return bool(self.info().type != fs.FileType.NotFound)


def locate(uri: str) -> Location:
    """The location of a path or an s3:// URI. Nothing is touched.

    Raises:
        InputError: the scheme is neither of the two, there is no path or no bucket, or credentials or an empty name are
            in it.
    """
    if uri.startswith("s3://"):
        path = uri.removeprefix("s3://").rstrip("/")
        if not path or path.startswith("/"):
            raise InputError(f"{uri}: expected s3://BUCKET/KEY, found no bucket")
        if "@" in (bucket := path.partition("/")[0]):
            what = f"something before the @ of {bucket.rpartition('@')[2]}"
            raise InputError(f"expected s3://BUCKET/KEY and credentials in the environment, found {what}")
        if "//" in path:
            raise InputError(f"{uri}: expected names between single slashes, found '//'")
        return Location(_s3_filesystem(), path, uri)
    if "://" in uri:
        raise InputError(f"{uri}: expected a path or an s3:// URI, found scheme {uri.partition('://')[0]!r}")
    if not uri:
        raise InputError("expected a path or an s3:// URI, found an empty text")
    return Location(fs.LocalFileSystem(), os.path.abspath(uri), uri)


def _s3_filesystem() -> fs.FileSystem:
    # The constructor ignores AWS_ENDPOINT_URL_S3, so it is passed on; the scheme goes along inside the endpoint.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fs.S3FileSystem(
        allow_delayed_open=True,  # a small file is one put; else it is three requests
        endpoint_override=endpoint,
        region=os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or ("us-east-1" if endpoint else None),
        connect_timeout=s3.TIMEOUT_S,
        request_timeout=s3.TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=s3.ATTEMPTS),
    )


def list_files(location: Location, *, suffix: str, with_hidden: bool = False) -> list[StoredFile]:
    """Files with the suffix at or below a location, sorted by path; names starting with `_` or `.` are not data.

    A location that is a file gives that file, whatever its name. `with_hidden` gives those that are not data, too.

    Raises:
        InputError: nothing lies there.
    """
    single = location.stat()
    if single:
        return [single]
    with reported(location.uri):
        if location.is_local:
            found = disk.list_below(location.path, hidden=() if with_hidden else HIDDEN)
        else:
            found = s3.list_below(location.filesystem, location.path)
    if found is None:
        raise InputError(f"{location.uri}: expected a file or a folder, found nothing")
    below = len(location.path.rstrip("/")) + 1
    return sorted(
        StoredFile(*entry)
        for entry in found
        if entry[0].endswith(suffix)
        and (with_hidden or not any(part.startswith(HIDDEN) for part in entry[0][below:].split("/")))
    )


def list_names(folder: Location) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files directly below a folder, each sorted; none where there is no folder."""
    with reported(folder.uri):
        found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))
    folders = sorted(info.base_name for info in found if info.type == fs.FileType.Directory)
    return folders, sorted(info.base_name for info in found if info.type == fs.FileType.File)


def list_times(folder: Location) -> dict[str, datetime.datetime]:
    """Time at which each file at or below a folder was written (UTC, by the clock of store or disk), by full path."""
    with reported(folder.uri):
        found = folder.filesystem.get_file_info(fs.FileSelector(folder.path, recursive=True, allow_not_found=True))
    return {info.path: info.mtime.astimezone(datetime.UTC) for info in found if info.type == fs.FileType.File}


def list_drafts(folder: Location) -> list[str]:
    """Full paths of what `open_atomic` has begun and not finished in a folder; an object store shows no such thing."""
    return disk.list_drafts(folder.path) if folder.is_local else []


def read_bytes(location: Location) -> bytes:
    """The whole content of a small file.

    Raises:
        InputError: there is no such file.
    """
    found = read_versioned(location)
    if found is None:
        raise InputError(f"{location.uri}: expected a file, found nothing")
    return found[0]


def write_bytes(location: Location, data: bytes) -> None:
    """Writes a small file whole: readers see the old content or the new, never a part."""
    with open_atomic(location) as stream:
        stream.write(data)


def read_versioned(location: Location, *, most_bytes: int | None = None) -> tuple[bytes, str] | None:
    """Content and version of a small file, of the same moment; None if there is none.

    Raises:
        RunFailedError: the store failed; caused by PermissionError where this file is forbidden, and by one with the
            errno EFBIG where it has more than `most_bytes`, and is not read.
    """
    with reported(location.uri):
        if location.is_local:
            return disk.read(location.path, most_bytes=most_bytes)
        return s3.read(location.filesystem, location.path, most_bytes=most_bytes)


def write_if(location: Location, data: bytes, *, version: str | None) -> str | None:
    """The new version of a small file, written whole; None, and nothing done, where somebody else was faster.

    Of several writers that name the same version exactly one succeeds: on disk among the processes of one machine, in
    an object store wherever they are, if it heeds conditions.

    Args:
        location: the file.
        data: its new content.
        version: what the file's version must be; None: there must be no file.
    """
    with reported(location.uri):
        if location.is_local:
            return disk.write_if(location.path, data, version=version)
        return s3.write_if(location.filesystem, location.path, data, version=version)


class WholeReads:
    """A file to read, each read of which gives as many bytes as are asked for and there, or raises OSError.

    pyarrow's S3 gives a short answer for a whole one, with what was in memory before behind it. So what a read writes
    to ends with a mark, which is gone where as many bytes came. Bytes that end so by chance end otherwise than with the
    mark of a second read.
    """

    mode, closed = "rb", False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._size = stream.size()
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, num_bytes: int) -> bytearray:
        """The next bytes."""
        start = self.tell()
        expected = max(0, min(num_bytes, self._size - start))
        found = bytearray(expected)
        for mark in _MARKS if expected else b"":
            found[-1] = mark
            self.seek(start)
            if self._stream.readinto(found) == expected and found[-1] != mark:
                return found
        if expected:
            raise OSError(f"expected {expected} B of a read, found fewer")
        return found

    read_buffer = read  # what pyarrow calls: nothing is copied

    def close(self) -> None:
        """Leaves the file to whoever opened it."""


@contextmanager
def open_atomic(location: Location) -> Iterator[Any]:
    """A binary stream whose content appears at the location when the block ends without an error, whole or not at all.

    On disk through a temporary name and a rename. An object store shows an object only when it is closed; since pyarrow
    can't abort one, what a failed block wrote is closed and removed at once, and with it an older object of that name.
    """
    target = disk.draft_name(location.path) if location.is_local else location.path
    with reported(location.uri):
        if location.is_local:
            location.filesystem.create_dir(location.parent.path, recursive=True)
        opened = location.filesystem.open_output_stream(target)
        try:
            with opened as stream:
                yield stream
            if location.is_local:
                location.filesystem.move(target, location.path)
        except BaseException:
            if location.filesystem.get_file_info(target).type == fs.FileType.File:
                location.filesystem.delete_file(target)
            raise


def delete_folders(location: Location, *, prefix: str) -> None:
    """Removes the folders directly below a location whose names begin with the prefix."""
    with reported(location.uri):
        for info in location.filesystem.get_file_info(fs.FileSelector(location.path, allow_not_found=True)):
            if info.type == fs.FileType.Directory and info.base_name.startswith(prefix):
                location.filesystem.delete_dir(info.path)


def delete_files(location: Location, names: Sequence[str]) -> None:
    """Removes the files of these paths below a location; those that are not there are passed over.

    So are those behind a symbolic link below the location: it leads to what may be somebody else's.
    """
    for name in names:
        if set(name.split("/")) & {"", ".", ".."}:
            raise ValueError(f"expected a path below {location.uri}, found {name!r}")
    with reported(location.uri):
        if location.is_local:
            linked = disk.linked_folders(location.path, {name.rpartition("/")[0] for name in names})
            names = [name for name in names if name.rpartition("/")[0] not in linked]
            disk.delete([f"{location.path}/{name}" for name in names])
        else:
            s3.delete(location.filesystem, [f"{location.path}/{name}" for name in names])


def read_again(read: Callable[[Location], Result], location: Location) -> Result:
    """Result of `read` for a location; begun again, over new connections, where `pause_before_retry` lets it."""
    for attempt in itertools.count():
        try:
            return read(location)
        except (DamagedError, RunFailedError) as error:
            pause_before_retry(error, attempt)
        location = location.anew()
    raise AssertionError


def pause_before_retry(error: DamagedError | RunFailedError, attempt: int) -> None:
    """Waits, longer after each attempt, where reading again may help; else raises the error.

    It may where what came is not what was written, and where pyarrow gave up at once: it gives a store's answer a
    buffer of the size that it asked for. A text of an error that is longer breaks it, and one "slow down" in answer to
    a short read would end everything, without a single retry.
    """
    attempts = _DAMAGED_ATTEMPTS if isinstance(error, DamagedError) else s3.ATTEMPTS
    is_lasting = isinstance(error, RunFailedError) and _BROKEN_READ not in str(error)
    if is_lasting or attempt + 1 >= attempts:
        raise error
    s3.back_off(attempt)


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turns a storage error into one line that names the location.

    Raises:
        RunFailedError: the store failed, after its own retries.
    """
    try:
        yield
    except OSError as error:  # what else Arrow raises is about the content
        raise RunFailedError(f"{uri}: storage failed: {_explain(error)}") from error


def _explain(error: OSError) -> str:
    line = first_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({line})"
    hint = " Check the credentials, whether they expired, their rights, and this machine's clock."
    return line + hint if "ACCESS_DENIED" in line else line  # what pyarrow makes of all of these, with no reason


def first_line(error: Exception) -> str:
    """Message of an error in one line; its kind if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
