"""Objects read by ranges: few requests, and never another version than the one that was listed."""

from __future__ import annotations

import io
import os

import pytest

from distributed.storage import ranges
from distributed.storage.location import Location, locate
from distributed.storage.ranges import Ranges
from model.errors import DamagedError

CONTENT = bytes(number * 7 % 251 for number in range(1000))


class Store:
    """An object and the requests for it."""

    def __init__(self, content: bytes | None = CONTENT, version: str = "v1") -> None:
        self.content, self.version = content, version
        self.spans: list[tuple[int, int]] = []

    def read(self, _: object, __: str, *, span: tuple[int, int]) -> tuple[bytes, str] | None:
        self.spans.append(span)
        return None if self.content is None else (self.content[slice(*span)], self.version)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr(ranges.s3, "read", store.read)
    monkeypatch.setattr(ranges, "_END_BYTES", 100)
    monkeypatch.setattr(ranges, "_SMALL_BYTES", 400)
    return store


PLACE: Location = locate("pool/a.parquet")


def test_reads_are_those_of_a_file_and_the_end_is_read_once(store: Store) -> None:
    found, expected = Ranges(PLACE, size=1000, version="v1"), io.BytesIO(CONTENT)
    for offset, whence, count in ((-8, os.SEEK_END, 8), (4, 0, 50), (0, os.SEEK_CUR, 7), (900, 0, 500), (950, 0, 20)):
        for file in (found, expected):
            file.seek(offset, whence)
        assert found.tell() == expected.tell()
        assert bytes(found.read(count)) == expected.read(count)
        assert found.tell() == expected.tell()
    assert store.spans == [(900, 1000), (4, 54), (54, 61)]


def test_a_small_object_is_one_request(store: Store) -> None:
    store.content = CONTENT[:400]
    found = Ranges(PLACE, size=400, version="v1")
    assert found.read(100) == CONTENT[:100]
    assert store.spans == [(0, 400)]


def test_what_is_another_version_gone_or_short_is_an_error(store: Store) -> None:
    with pytest.raises(DamagedError, match="expected the version that was listed, found another"):
        Ranges(PLACE, size=1000, version="v0")
    with pytest.raises(OSError, match="expected 100 B of a read, found 90"):
        Ranges(PLACE, size=1010, version="v1")
    store.content = None
    with pytest.raises(FileNotFoundError, match="is gone"):
        Ranges(PLACE, size=1000, version="v1")
