"""The ledger of a scores table: the rows of the pool that its parts hold, those that are missing, and fewer parts.

Resuming a stopped run, scoring files appended to a pool and dropping rows of replaced files are one rule: a row is done
if a part holds it of the very file that the manifest froze.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from distributed.schema import DAMAGED
from distributed.storage.location import Location, delete_files
from distributed.tables.manifest import Manifest, Segment
from distributed.tables.scores import Range, ScoresPart, read_part, write_part
from model.errors import InputError, RunFailedError

PART_ROWS = 1_000_000  # about 40 MB: few enough files to list, small enough to sort in a task
_PART_BYTES = 512 * 2**20  # in memory: with embeddings a row has hundreds of bytes

Merge = Callable[[Sequence[ScoresPart]], ScoresPart]
RunAll = Callable[[Merge, list[list[ScoresPart]]], list[ScoresPart]]


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
    """True if the ranges lie within the file, and overlap neither each other nor the taken ones."""
    ordered = sorted([*ranges, *taken])
    return ordered[-1][1] <= num_rows and all(left[1] <= right[0] for left, right in pairwise(ordered))


def missing_segments(manifest: Manifest, parts: Iterable[ScoresPart]) -> list[Segment]:
    """Rows of the manifest that no part holds, in the manifest's order."""
    return remaining_segments(manifest.segments, parts)


def remaining_segments(segments: Iterable[Segment], parts: Iterable[ScoresPart]) -> list[Segment]:
    """Rows of the segments that no part holds, in their order."""
    held: dict[str, list[Range]] = defaultdict(list)
    for part in parts:
        for file_id, rows in part.files.items():
            held[file_id].extend(rows.ranges)
    return [gap for segment in segments for gap in _gaps(segment, sorted(held.get(segment.file.file_id, [])))]


def _gaps(segment: Segment, ranges: Sequence[Range]) -> list[Segment]:
    file, first, last = segment
    starts = [first, *(max(first, stop) for _, stop in ranges)]
    stops = [*(min(last, start) for start, _ in ranges), last]
    return [Segment(file, start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]


def stale_paths(part: ScoresPart, current: Collection[str]) -> set[str]:
    """Paths of a part's pool files whose ids are not, or no longer, among the current ones."""
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
        if found != expected or (
            ranges and (not _fits(ranges, [], expected) or _gaps(Segment(file, 0, expected), ranges))
        ):
            raise RunFailedError(f"{file.path}: expected {expected} scores rows, found {found}")
    if held:
        raise RunFailedError(f"expected rows of this pool alone, found some of {len(held)} other files")


def merge_parts(
    out: Location, parts: Sequence[ScoresPart], *, current: Collection[str], run_all: RunAll
) -> list[ScoresPart]:
    """Parts of about a million rows with the rows of the given ones, but for rows of files that are not current.

    Parts that are large already, and current throughout, stay as they are. Nothing is removed.

    Args:
        out: the scores' location.
        parts: no row is in two of them.
        current: ids of the files whose rows stay.
        run_all: calls the function for each group, here or on a cluster.

    Raises:
        RunFailedError: a part is damaged; it has been removed, and the same command scores its rows again.
    """
    parts = [part for part in parts if any(file_id in current for file_id in part.files)]
    stale = {part.path for part in parts if stale_paths(part, current)}
    large = [part for part in parts if part.path not in stale and _is_large(part)]
    kept = {part.path for part in large}
    groups = _group(sorted((part for part in parts if part.path not in kept), key=lambda part: part.path not in stale))
    lone = [group[0] for group in groups if len(group) == 1 and group[0].path not in stale]
    todo = [group for group in groups if len(group) > 1 or group[0].path in stale]
    merged = run_all(partial(_merge, out, current), todo)
    return sorted([*large, *lone, *merged], key=lambda part: part.path)


def drop_damaged(out: Location, parts: Sequence[ScoresPart]) -> list[ScoresPart]:
    """The same parts; those with damaged rows are written anew without them, so that those rows are read once more.

    Nothing is removed.

    Raises:
        RunFailedError: as `merge_parts`.
    """
    kept = []
    for part in parts:
        if not part.num_damaged:
            kept.append(part)
            continue
        rows = _read(out, part)
        sound = rows.filter(pc.fill_null(pc.not_equal(rows["error"], DAMAGED), True))
        if len(sound):
            kept.append(write_part(out, sound))
    return kept


def _is_large(part: ScoresPart) -> bool:
    return part.num_rows >= PART_ROWS // 2 or part.num_bytes >= _PART_BYTES // 2


def _group(parts: Iterable[ScoresPart]) -> list[list[ScoresPart]]:
    """Groups that make one part each, at least half full but for the last."""
    groups: list[list[ScoresPart]] = []
    num_rows = num_bytes = 0
    for part in parts:
        if not groups or num_rows + part.num_rows > PART_ROWS or num_bytes + part.num_bytes > _PART_BYTES:
            groups.append([])
            num_rows = num_bytes = 0
        groups[-1].append(part)
        num_rows, num_bytes = num_rows + part.num_rows, num_bytes + part.num_bytes
    return groups


def _merge(out: Location, current: Collection[str], group: Sequence[ScoresPart]) -> ScoresPart:
    """One part with the rows of a group of parts that are of current files."""
    return write_part(out, pa.concat_tables([_current_rows(out, part, current) for part in group]))


def _current_rows(out: Location, part: ScoresPart, current: Collection[str]) -> pa.Table:
    rows = _read(out, part)
    stale = stale_paths(part, current)
    if not stale:
        return rows
    return rows.filter(pc.invert(pc.is_in(rows["pool_file"].cast(pa.string()), value_set=pa.array(sorted(stale)))))


def _read(out: Location, part: ScoresPart) -> pa.Table:
    try:
        return read_part(out, part)
    except InputError as error:
        delete_files(out, [part.path])
        raise RunFailedError(f"{error}; it is removed, and the same command scores its rows again") from error
