"""Which rows of the pool are scored already, and which are not: arithmetic of ranges over what parts say they hold.

Resuming a stopped run, scoring what was appended to a pool and dropping what was replaced in it are one rule: a row is
done if a part holds it of the very file that the manifest froze.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

from distributed.tables.manifest import Manifest, PoolFile, Segment
from distributed.tables.scores import Range, ScoresPart
from model.errors import RunFailedError


def choose_parts(parts: Iterable[ScoresPart], manifest: Manifest, *, published: Collection[str]) -> list[ScoresPart]:
    """Parts that hold rows of the manifest, no row twice; with fewer damaged rows, published, larger ones first.

    Two parts may hold the same row: a merged one beside those it was made of, when a run was killed between the two,
    and one with damaged rows beside those that another attempt to read them has left.
    """
    current = {file.file_id: file.num_rows for file in manifest.files}
    ranked = sorted(parts, key=lambda part: (part.num_damaged, part.path not in published, -part.num_rows, part.path))
    chosen: list[ScoresPart] = []
    taken: dict[str, list[Range]] = defaultdict(list)
    for part in ranked:
        held = {file_id: held.ranges for file_id, held in part.files.items() if file_id in current}
        if held and all(_fits(ranges, taken[file_id], current[file_id]) for file_id, ranges in held.items()):
            chosen.append(part)
            for file_id, ranges in held.items():
                taken[file_id].extend(ranges)
    return chosen


def _fits(ranges: Sequence[Range], taken: Sequence[Range], num_rows: int) -> bool:
    """Whether the ranges lie within the file, and are apart from each other and from what is taken."""
    ordered = sorted([*ranges, *taken])
    return ordered[-1][1] <= num_rows and all(left[1] <= right[0] for left, right in pairwise(ordered))


def missing_segments(manifest: Manifest, parts: Iterable[ScoresPart]) -> list[Segment]:
    """The rows of the manifest that no part holds, in the manifest's order."""
    held: dict[str, list[Range]] = defaultdict(list)
    for part in parts:
        for file_id, rows in part.files.items():
            held[file_id].extend(rows.ranges)
    return [segment for file in manifest.files for segment in _gaps(file, sorted(held[file.file_id]))]


def _gaps(file: PoolFile, ranges: Sequence[Range]) -> list[Segment]:
    starts = [0, *(stop for _, stop in ranges)]
    stops = [*(start for start, _ in ranges), file.num_rows]
    return [Segment(file, start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def stale_paths(part: ScoresPart, current: Collection[str]) -> set[str]:
    """Paths of the files in a part that are not, or no longer, among the current file ids."""
    return {held.path for file_id, held in part.files.items() if file_id not in current}


def check_complete(manifest: Manifest, parts: Sequence[ScoresPart], *, without: Collection[str]) -> None:
    """Rows in = rows out, for each pool file but those named by path in `without`.

    Raises:
        RunFailedError: names a file whose rows were lost, doubled or are not of this pool.
    """
    held: dict[str, list[Range]] = defaultdict(list)
    for part in parts:
        if sum(stop - start for rows in part.files.values() for start, stop in rows.ranges) != part.num_rows:
            raise RunFailedError(f"{part.path}: expected as many rows as its ledger names, found {part.num_rows}")
        for file_id, rows in part.files.items():
            held[file_id].extend(rows.ranges)
    for file in manifest.files:
        ranges = sorted(held.pop(file.file_id, []))
        found = sum(stop - start for start, stop in ranges)
        expected = 0 if file.path in without else file.num_rows
        if found != expected or (ranges and (not _fits(ranges, [], expected) or _gaps(file, ranges))):
            raise RunFailedError(f"{file.path}: expected {expected} scores rows, found {found}")
    if held:
        raise RunFailedError(f"expected rows of this pool alone, found some of {len(held)} other files")
