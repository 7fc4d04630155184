"""What is checked of a pool before anything costs: that its row groups are of a size that actors can hold."""

from __future__ import annotations

from distributed.tables.manifest import Manifest
from model.errors import InputError

MAX_ROW_GROUP_BYTES = 512 * 2**20  # uncompressed; a row group is read at once
_LARGE_BYTES = 160 * 2**20  # the contract says 64 to 128 MiB, and writers miss their aim a little
_SMALL_BYTES = 8 * 2**20  # below, requests and decoding of headers cost more than the bytes
_MANY = 64  # small row groups do no harm to a small pool


def check_row_groups(manifest: Manifest) -> None:
    """Refuses row groups that no actor could hold.

    Raises:
        InputError: names the file, the most and the found.
    """
    for file in manifest.files:
        largest = max(file.row_group_bytes, default=0)
        if largest > MAX_ROW_GROUP_BYTES:
            raise InputError(
                f"{manifest.location.join(file.path).uri}: expected row groups of at most "
                f"{MAX_ROW_GROUP_BYTES >> 20} MiB, found {largest >> 20} MiB: ingest it again"
            )


def row_group_warnings(manifest: Manifest) -> list[str]:
    """What makes reading slower or larger than it need be, a line each."""
    sizes = [size for file in manifest.files for size in file.row_group_bytes]
    num_small, num_large = sum(size < _SMALL_BYTES for size in sizes), sum(size > _LARGE_BYTES for size in sizes)
    warnings = []
    if num_small > max(_MANY, len(sizes) // 2):
        warnings.append(
            f"{manifest.location.uri}: {num_small} of {len(sizes)} row groups in {len(manifest.files)} files are under "
            f"{_SMALL_BYTES >> 20} MiB: reading them is slow; `lossight ingest` writes 64 MiB"
        )
    if num_large:
        warnings.append(
            f"{manifest.location.uri}: {num_large} of {len(sizes)} row groups are over {_LARGE_BYTES >> 20} MiB: "
            f"each is held in memory at once; `lossight ingest` writes 64 MiB"
        )
    return warnings
