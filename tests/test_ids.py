"""Hashes of ids: the same everywhere, and doubled ones found, however they are spread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.tables.ids import doubled, hash_ids, split

TEXTS = ["", "a", "b", "ab", "a\0", "é", "12345678", "123456789", "1234567890123456", "x" * 1000, "x" * 1001]


def test_hashes_differ_and_do_not_depend_on_the_neighbours() -> None:
    together = hash_ids(pa.array(TEXTS))
    assert len(np.unique(together)) == len(TEXTS)
    for kind in (pa.string(), pa.large_string()):
        alone = [int(hash_ids(pa.array([text], kind))[0]) for text in TEXTS]
        assert together.tolist() == alone
    assert hash_ids(pa.array(TEXTS).slice(3, 4)).tolist() == together[3:7].tolist()
    assert hash_ids(pa.array([], pa.string())).tolist() == []


def test_hashes_are_the_same_in_another_process() -> None:
    code = (
        "import pyarrow as pa; from distributed.tables.ids import hash_ids; print(hash_ids(pa.array(['p1', 'é' * 9])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(hash_ids(pa.array(["p1", "é" * 9])))


def test_a_million_ids_have_as_many_hashes_evenly_spread() -> None:
    hashes = hash_ids(pa.array([f"drive-07/frame-{number:07d}.jpg" for number in range(1_000_000)]))
    assert len(doubled([hashes])) == 0
    sizes = [len(part) for part in split([hashes], 100)]
    assert 9_000 < min(sizes) < max(sizes) < 11_000


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=20), max_size=5), st.integers(1, 7))
def test_doubles_are_found_in_any_split(shards: list[list[int]], count: int) -> None:
    hashes = [np.array(shard, np.uint64) for shard in shards]
    every = [value for shard in shards for value in shard]
    expected = sorted({value for value in every if every.count(value) > 1})
    assert doubled(hashes).tolist() == expected
    parts = [split([each], count) for each in hashes]
    found = [value for some in zip(*parts, strict=True) for value in doubled(some).tolist()]
    assert found == expected


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("part_rows", [10**6, 100])
def test_tasks_find_what_one_process_finds(part_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed.cluster import freezing

    monkeypatch.setattr(freezing, "_PART_ROWS", part_rows)
    monkeypatch.setattr(freezing, "_SPLIT_ROWS", 300)
    monkeypatch.setattr(freezing, "_TASK_FILES", 2)

    def look(numbers: list[int]) -> tuple[list[str], np.ndarray]:
        hashes = [np.array([number * 1000 + row for row in range(100)], np.uint64) for number in numbers]
        return [str(number) for number in numbers], np.sort(np.concatenate(hashes))

    ways = freezing.TasksOfFreezing()
    found, hashes = ways.inspect(look, [1, 2, 3, 4, 2])
    assert found == ["1", "2", "3", "4", "2"]
    assert ways.doubles(hashes, num_rows=500).tolist() == [2000 + row for row in range(100)]
    assert ways.run(lambda items: [item + 1 for item in items], [1, 2, 3]) == [2, 3, 4]
