"""One factory for file systems, and the few file operations the rest needs: local paths and s3:// URIs alike.

Knows nothing of tables. Credentials come from the environment or a role, never from here: file systems are pickled.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pyarrow import fs

from model.errors import InputError, RunFailedError

# pyarrow's default of 3 attempts gave up after 2 s of SlowDown; 10 rode out 90 s.
_S3_ATTEMPTS = 10
_S3_TIMEOUT_S = 30.0


class Location(NamedTuple):
    """A file system and a path in it; `uri` is what the user wrote."""

    filesystem: fs.FileSystem
    path: str
    uri: str

    def join(self, *names: str) -> Location:
        """The location of something below this one."""
        return Location(self.filesystem, "/".join([self.path, *names]), "/".join([self.uri.rstrip("/"), *names]))

    @property
    def parent(self) -> Location:
        """The folder that this location lies in."""
        return Location(self.filesystem, self.path.rpartition("/")[0], self.uri.rstrip("/").rpartition("/")[0] or ".")

    def info(self) -> fs.FileInfo:
        """What lies here: type, size, mtime."""
        with reported(self.uri):
            return self.filesystem.get_file_info(self.path)

    @property
    def exists(self) -> bool:
        """Whether a file or a folder lies here."""
        return bool(self.info().type != fs.FileType.NotFound)


def locate(uri: str) -> Location:
    """The location of a path or an s3:// URI. Nothing is touched.

    Raises:
        InputError: the scheme is neither of the two, or there is no path, no bucket, or an empty name between slashes.
    """
    if uri.startswith("s3://"):
        path = uri.removeprefix("s3://").rstrip("/")
        if not path or path.startswith("/"):
            raise InputError(f"{uri}: expected s3://BUCKET/KEY, found no bucket")
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
        endpoint_override=endpoint,
        region=os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or ("us-east-1" if endpoint else None),
        connect_timeout=_S3_TIMEOUT_S,
        request_timeout=_S3_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
    )


def list_files(location: Location, *, suffix: str) -> list[fs.FileInfo]:
    """Files with the suffix at or below a location, sorted by path; names starting with `_` or `.` are not data.

    Raises:
        InputError: nothing lies there.
    """
    with reported(location.uri):
        found = location.filesystem.get_file_info(location.path)
        if found.type == fs.FileType.NotFound:
            raise InputError(f"{location.uri}: expected a file or a folder, found nothing")
        if found.type == fs.FileType.File:
            return [found]
        infos = location.filesystem.get_file_info(fs.FileSelector(location.path, recursive=True))
    below = len(location.path) + 1
    files = [
        info
        for info in infos
        if info.type == fs.FileType.File
        and info.path.endswith(suffix)
        and not any(part.startswith(("_", ".")) for part in info.path[below:].split("/"))
    ]
    return sorted(files, key=lambda info: info.path)


def read_bytes(location: Location) -> bytes:
    """The whole content of a small file.

    Raises:
        InputError: there is no such file.
    """
    with reported(location.uri):
        try:
            with location.filesystem.open_input_file(location.path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            raise InputError(f"{location.uri}: expected a file, found nothing") from None


def write_bytes(location: Location, data: bytes) -> None:
    """Writes a small file whole: readers see the old content or the new, never a part."""
    with open_atomic(location) as stream:
        stream.write(data)


def write_new(location: Location, data: bytes) -> bool:
    """Writes a small file whole unless one is there; True if it did. On disk, exactly one of several writers does.

    An object store is asked first and then written to, so that two writers at the same moment may both succeed.
    """
    if not isinstance(location.filesystem, fs.LocalFileSystem):
        if location.exists:
            return False
        write_bytes(location, data)
        return True
    draft = location._replace(path=f"{location.path}.{uuid.uuid4().hex[:8]}")
    write_bytes(draft, data)
    with reported(location.uri):
        try:
            os.link(draft.path, location.path)
        except FileExistsError:
            return False
        finally:
            os.unlink(draft.path)
    return True


@contextmanager
def open_atomic(location: Location) -> Iterator[Any]:
    """A binary stream whose content appears at the location when the block ends without an error, whole or not at all.

    On disk through a temporary name and a rename. An object store shows an object only when it is closed; since pyarrow
    can't abort one, what a failed block wrote is closed and removed at once, and with it an older object of that name.
    """
    is_local = isinstance(location.filesystem, fs.LocalFileSystem)
    folder, _, name = location.path.rpartition("/")
    target = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}" if is_local else location.path
    with reported(location.uri):
        if is_local:
            location.filesystem.create_dir(folder, recursive=True)
        opened = location.filesystem.open_output_stream(target)
        try:
            with opened as stream:
                yield stream
            if is_local:
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


@contextmanager
def reported(uri: str) -> Iterator[None]:
    """Turns a storage error into one line that names the location.

    Raises:
        RunFailedError: the store failed, after its own retries.
    """
    try:
        yield
    except OSError as error:  # what else Arrow raises is about the content
        raise RunFailedError(f"{uri}: storage failed: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
