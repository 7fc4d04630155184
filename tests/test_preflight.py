"""Row groups that no actor could hold are refused; those that are slow to read, or large, are told of."""

from __future__ import annotations

import pytest

from distributed.scoring.score import MAX_ROW_GROUP_BYTES, check_row_groups, row_group_warnings
from distributed.storage.location import locate
from distributed.tables.manifest import Manifest, PoolFile
from model.errors import InputError

MIB = 2**20


def make_manifest(*files: list[int]) -> Manifest:
    """Of files with row groups of so many bytes, in none of which there is anything."""
    return Manifest(
        location=locate("pool"),
        files=tuple(
            PoolFile(
                path=f"night/{number}.parquet",
                size=1,
                version="v",
                row_group_rows=(1,) * len(sizes),
                row_group_bytes=tuple(sizes),
                footer="",
            )
            for number, sizes in enumerate(files)
        ),
        bad_files=(),
    )


def test_a_row_group_that_no_actor_could_hold_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"^pool/night/1\.parquet: expected row groups of at most 512 MiB, found 600 MiB: ingest it again$",
    ):
        check_row_groups(make_manifest([64 * MIB], [64 * MIB, 600 * MIB]))


def test_row_groups_up_to_the_limit_pass() -> None:
    check_row_groups(make_manifest([], [MAX_ROW_GROUP_BYTES], [1]))
    check_row_groups(make_manifest())
    with pytest.raises(InputError, match="512 MiB"):
        check_row_groups(make_manifest([MAX_ROW_GROUP_BYTES + 1]))


@pytest.mark.parametrize(
    "files",
    [
        [],
        [[]],
        [[64 * MIB] * 16],
        [[160 * MIB]],
        [[8 * MIB] * 1000],
        [[1]] * 64,  # a small pool
        [[64 * MIB] * 500, *[[1]] * 500],
    ],
)
def test_a_pool_as_it_should_be_needs_no_warning(files: list[list[int]]) -> None:
    assert row_group_warnings(make_manifest(*files)) == []


def test_many_small_row_groups_are_told_of() -> None:
    (warning,) = row_group_warnings(make_manifest([64 * MIB], *[[8 * MIB - 1]] * 65))
    assert warning.startswith("pool: 65 of 66 row groups in 66 files are under 8 MiB")
    assert "`lossight ingest` writes 64 MiB" in warning


def test_large_row_groups_are_told_of() -> None:
    (warning,) = row_group_warnings(make_manifest([64 * MIB, 161 * MIB], [500 * MIB]))
    assert warning.startswith("pool: 2 of 3 row groups are over 160 MiB: each is held in memory at once")


def test_small_and_large_ones_make_two_lines() -> None:
    warnings = row_group_warnings(make_manifest([1] * 100, [200 * MIB]))
    assert len(warnings) == 2
    assert all("\n" not in warning for warning in warnings)
