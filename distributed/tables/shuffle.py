"""The rows of a table in random order, whatever files and row groups they are in. Imports without Ray.

A chunk is rows drawn from everywhere, in the order they were drawn in; what else lies between them is read and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from distributed.storage.location import Location
from distributed.tables.manifest import Manifest
from distributed.tables.reader import Bin, plan_bins, read_stored, rebatched
from distributed.tables.references import with_images

CHUNK_BYTES = 256 * 2**20  # uncompressed; some 20,000 small JPEGs; while it is put in order there are two of it
_CHUNKS_OF_PART = 4  # and so how often a row group is read an epoch
_MIN_GROUPS_OF_PART = 16  # with fewer, a part would have too much of one file and too little of another


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows of a bin that are read at once, in an order of their own."""

    bin: Bin
    rows: np.ndarray  # (rows,) positions in the bin
    num_bytes: int  # about, uncompressed


def plan_chunks(manifest: Manifest, *, chunk_bytes: int = CHUNK_BYTES, seed: int) -> list[Chunk]:
    """All rows once, in chunks of about `chunk_bytes`, as many for each seed; they may be read in any order.

    Up to four chunks (1 GiB) the table is permuted uniformly: each row is as likely anywhere, and each chunk reads all
    of the table. Of n chunks, an epoch would read it n times; a larger table is therefore parted first: of neighbouring
    row groups each part gets one, by lot. A part has its share of every file, give or take a row group, and is permuted
    as a small table is; its chunks come among those of the others. Rows of one row group then share a part, and meet a
    little more often than by chance. So an epoch reads a row group at most four times, but for tables of few large row
    groups: a part has at least 16 of them, or the table is one part, whatever its size. In memory are one chunk, twice
    while it is put in order, and 8 B a row.
    """
    rng = np.random.default_rng(seed)
    groups = plan_bins(manifest.segments, max_bytes=1)
    num_bytes = sum(group.num_bytes for group in groups)
    num_parts = max(1, min(len(groups) // _MIN_GROUPS_OF_PART, -(-num_bytes // (_CHUNKS_OF_PART * chunk_bytes))))
    num_chunks = -(-num_bytes // (num_parts * chunk_bytes))  # of a part
    chunks = [chunk for part in _deal(groups, num_parts, rng) for chunk in _cut(part, num_chunks, rng)]
    return [chunks[index] for index in rng.permutation(len(chunks))]


def _deal(groups: Sequence[Bin], num_parts: int, rng: np.random.Generator) -> list[Bin]:
    parts: list[list[Bin]] = [[] for _ in range(num_parts)]
    remaining = iter(groups)
    while neighbours := list(islice(remaining, num_parts)):
        for group, part in zip(neighbours, rng.permutation(num_parts), strict=False):
            parts[part].append(group)
    return [Bin(segments=tuple(segment for group in part for segment in group.segments)) for part in parts]


def _cut(part: Bin, num_chunks: int, rng: np.random.Generator) -> Iterator[Chunk]:
    for rows in np.array_split(rng.permutation(part.num_rows), num_chunks):
        if len(rows):
            yield Chunk(bin=part, rows=rows, num_bytes=part.num_bytes * len(rows) // part.num_rows)


def read_chunk(location: Location, chunk: Chunk, *, columns: Sequence[str], images: Location | None = None) -> pa.Table:
    """The rows of a chunk, in its order, as `read_bin` gives them, and raises; no other images are fetched."""
    wanted = np.sort(chunk.rows)
    found, done = list[pa.Table](), 0
    for rows in read_stored(location, chunk.bin, columns=columns):
        first, last = np.searchsorted(wanted, [done, done + len(rows)])
        taken = rows.take(pa.array(wanted[first:last] - done))  # a copy: what it was read with can go
        found += with_images(taken, images or location, columns=[*columns, "pool_file", "pool_row"])
        done += len(rows)
    # Files may differ in what the contract leaves open: nullability, and the names of list items.
    table = pa.concat_tables(found, promote_options="default").unify_dictionaries()
    return table.take(pa.array(np.searchsorted(wanted, chunk.rows)))


def shuffled_rows(
    manifest: Manifest, *, columns: Sequence[str], batch_size: int, chunk_bytes: int = CHUNK_BYTES, seed: int
) -> Iterator[pa.Table]:
    """All rows once, in batches, in an order drawn from the seed; see `plan_chunks`. The last batch may be short."""
    chunks = plan_chunks(manifest, chunk_bytes=chunk_bytes, seed=seed)
    tables = (read_chunk(manifest.location, chunk, columns=columns, images=manifest.images) for chunk in chunks)
    yield from rebatched(tables, num_rows=batch_size)
