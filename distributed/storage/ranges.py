"""An object of a store, read by ranges: one request for its end, or all of a small one; one for each further read."""

from __future__ import annotations

import os

from distributed.storage import s3
from distributed.storage.location import Location
from model.errors import DamagedError

_END_BYTES = 64 * 2**10  # what pyarrow reads first of a Parquet file, and most footers fit in
_SMALL_BYTES = 256 * 2**10  # up to here, one request for all costs less than two


class Ranges:
    """A file to read, whose reads give as many bytes as are asked for and there, all of the version that was listed.

    Args:
        location: of the object.
        size: its bytes.
        version: of it.

    Raises:
        DamagedError: it has another version.
        FileNotFoundError: it is gone.
        OSError: the store failed.
    """

    mode, closed = "rb", False

    def __init__(self, location: Location, *, size: int, version: str) -> None:
        self._location, self._size, self._version = location, size, version
        self._at = 0
        self._end = 0 if size <= _SMALL_BYTES else size - _END_BYTES
        self._kept = self._fetch(self._end, size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a byte."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The byte that is read next."""
        return self._at

    def read(self, num_bytes: int) -> bytes:
        """The next bytes."""
        start, self._at = self._at, min(self._size, self._at + num_bytes)
        if start >= self._end:
            return self._kept[start - self._end : self._at - self._end]
        return self._fetch(start, self._at)

    read_buffer = read  # what pyarrow calls

    def _fetch(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        found = s3.read(self._location.filesystem, self._location.path, span=(start, stop))
        if found is None:
            raise FileNotFoundError(f"{self._location.uri} is gone")
        data, version = found
        if version != self._version:
            raise DamagedError(f"{self._location.uri}: damaged: expected the version that was listed, found another")
        if len(data) != stop - start:
            raise OSError(f"expected {stop - start} B of a read, found {len(data)}")
        return data

    def close(self) -> None:
        """Nothing is open."""
