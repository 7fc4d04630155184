"""Many small parts into few large ones: what a run writes as it goes, made into what selection reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from distributed.schema import DAMAGED
from distributed.scoring.ledger import stale_paths
from distributed.storage.location import Location, delete_files
from distributed.tables.scores import ScoresPart, read_part, write_part
from model.errors import InputError, RunFailedError

PART_ROWS = 1_000_000  # about 40 MB: few enough files to list, small enough to sort in a task
_PART_BYTES = 512 * 2**20  # in memory: with embeddings a row has hundreds of bytes

Merge = Callable[[Sequence[ScoresPart]], ScoresPart]
RunAll = Callable[[Merge, list[list[ScoresPart]]], list[ScoresPart]]


def merge_parts(
    out: Location, parts: Sequence[ScoresPart], *, current: Collection[str], run_all: RunAll
) -> list[ScoresPart]:
    """Parts of about a million rows that hold the rows of the given ones that are of current files.

    Parts that are large already, and current throughout, stay as they are. Nothing is removed.

    Args:
        out: the scores' location.
        parts: which hold no row twice.
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
    """The same parts, but those with damaged rows written anew without them: those rows are to be read once more.

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
    """One part of what the parts of a group hold of current files."""
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
