"""Local disks beyond what pyarrow does: versions, conditional writes, listings. Knows paths only.

A version is the time of modification and the inode: a rename over a file changes it even where size and time agree.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat as modes
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from model.errors import InputError

# Holders keep the lock for one stat and one rename; only a stopped process keeps it for longer.
_LOCK_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.002
_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")  # see `draft_name`


def stat(path: str) -> tuple[int, str] | None:
    """Size in bytes and version of a file; None if there is no file of that name."""
    status = _status(path)
    return status and (status.st_size, _version(status))


def age_s(path: str) -> float | None:
    """Seconds since a file was written, both times by the clock of the disk's server; None if it is not there."""
    written = _status(path)
    if written is None:
        return None
    fresh = draft_name(path)
    with _removed(fresh):
        _write(fresh, b"")
        return (os.stat(fresh).st_mtime_ns - written.st_mtime_ns) / 1e9


def list_below(folder: str, *, hidden: tuple[str, ...]) -> list[tuple[str, int, str]] | None:
    """Path, size and version of each file below a folder, in any order; None if there is no such folder.

    What begins with one of the `hidden` prefixes is passed over, and so is what vanishes meanwhile.

    Raises:
        InputError: a symbolic link leads back to a folder that it lies in, so that there is no end of files.
    """
    if not os.path.isdir(folder):
        return None
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unless_vanished):
        folders[:] = [name for name in folders if not name.startswith(hidden)]
        for path in (os.path.join(parent, name) for name in folders):
            _refuse_circle(path, folder)
        for path in (os.path.join(parent, name) for name in names if not name.startswith(hidden)):
            entry = stat(path)
            if entry is not None:
                found.append((path, *entry))
    return found


def read(path: str, *, most_bytes: int | None = None) -> tuple[bytes, str] | None:
    """Content and version of a file; None if it is not there, or is no regular file.

    Raises:
        OSError: with errno EFBIG where it has more than `most_bytes`.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            status = os.fstat(stream.fileno())
            if not modes.S_ISREG(status.st_mode):
                return None
            if most_bytes is not None and status.st_size > most_bytes:
                raise OSError(errno.EFBIG, f"expected at most {most_bytes} B, found {status.st_size}", path)
            return stream.read(), _version(status)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def write_if(path: str, data: bytes, *, version: str | None) -> str | None:
    """The new version, or None where the file's version was not the given one (None: where something was there).

    Whole or not at all, and of several processes and threads of this machine exactly one succeeds.

    Raises:
        InputError: there is something else than a file, such as a link to nothing: it would never be this version.
    """
    if version is None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    elif stat(path) is None:
        return None
    draft = draft_name(path)
    with _removed(draft):
        _write(draft, data)
        return _link(draft, path) if version is None else _swap(draft, path, version)


def delete(paths: Sequence[str]) -> None:
    """Removes files; those that are not there are passed over."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def linked_folders(root: str, folders: Collection[str]) -> set[str]:
    """Those of the folders below a root that symbolic links lead to; the root may be one itself."""
    real = os.path.realpath(root)
    return {name for name in folders if os.path.realpath(f"{real}/{name}") != os.path.normpath(f"{real}/{name}")}


def draft_name(path: str) -> str:
    """A new hidden name beside a path."""
    folder, name = os.path.split(path)
    return f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"


def list_drafts(folder: str) -> list[str]:
    """The paths of the drafts in a folder."""
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if _DRAFT.fullmatch(entry.name))


def _status(path: str) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself leads to nothing either
            return None
        raise
    return status if modes.S_ISREG(status.st_mode) else None


def _version(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ino}"


def _refuse_circle(path: str, root: str) -> None:
    around = os.path.dirname(path)
    if not os.path.islink(path):
        return
    while not os.path.samefile(path, around):
        if around == root:
            return
        around = os.path.dirname(around)
    raise InputError(f"{path}: expected a folder, found a symbolic link back to {around}, which it lies in")


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _link(draft: str, path: str) -> str | None:
    try:
        os.link(draft, path)
    except FileExistsError:
        if _status(path) is None and os.path.lexists(path):
            raise InputError(f"{path}: expected a file or nothing, found a link to nothing or a folder") from None
        return None
    return _version(os.stat(draft))


def _swap(draft: str, path: str, version: str) -> str | None:
    with _locked(path):
        found = _status(path)
        if found is None or _version(found) != version:
            return None
        # Clocks tick every few milliseconds and inodes come back: only a later time makes each version a new one.
        if os.stat(draft).st_mtime_ns <= found.st_mtime_ns:
            os.utime(draft, ns=(found.st_mtime_ns + 1, found.st_mtime_ns + 1))
        written = _version(os.stat(draft))
        os.replace(draft, path)
        return written


@contextmanager
def _locked(path: str) -> Iterator[None]:
    folder, name = os.path.split(path)
    lock = f"{folder}/.{name}.lock"
    descriptor = _take(lock, deadline=time.monotonic() + _LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        os.unlink(lock)  # before it is released: who waits for it then sees that it holds a name no more
        os.close(descriptor)


def _take(lock: str, *, deadline: float) -> int:
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise TimeoutError(f"another process has kept {lock} for {_LOCK_TIMEOUT_S:.0f} s")
        time.sleep(_LOCK_POLL_S)


@contextmanager
def _removed(path: str) -> Iterator[None]:
    try:
        yield
    finally:
        delete([path])


def _unless_vanished(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
