"""Samples that several scores tables have: of each, all rows but the one of the highest loss are left out.

Ids are compared by 64-bit hashes, eight bytes a row where they are compared; texts decide where two hashes agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distributed.selection.guards import Screen
from distributed.selection.heads import CANDIDATES
from distributed.selection.parts import Part, scan
from distributed.selection.topk import hash_order

Repeats = dict[int, NDArray[np.int64]]  # number of a part -> its rows that are left out, ascending

_COLUMNS = ["sample_id", "predicted_loss"]
_SUSPECTS = pa.schema([CANDIDATES.field(name) for name in (*_COLUMNS, "part", "part_row")])


def may_repeat(parts: Sequence[Part]) -> bool:
    """Whether the parts are of more than one table; within one, ids are unique."""
    tables = {part.location.parent.path for part in parts}
    return len(tables) > 1 or len({part.location.path for part in parts}) < len(parts)


def id_hashes(part: Part, *, screen: Screen) -> NDArray[np.uint64]:
    """(rows that pass the screen,) hashes of their ids."""
    found = [_hash(rows) for rows in scan(part, screen=screen, columns=_COLUMNS)]
    return np.concatenate([np.empty(0, np.uint64), *found])


def repeated(hashes: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The hashes that occur more than once, ascending."""
    ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def suspects(part: Part, *, hashes: NDArray[np.uint64], screen: Screen) -> pa.Table:
    """The rows of a part whose ids have one of these hashes: id, loss, `part` and `part_row`."""
    found = [
        rows.filter(pa.array(np.isin(_hash(rows), hashes))).cast(_SUSPECTS)
        for rows in scan(part, screen=screen, columns=_COLUMNS)
    ]
    return pa.concat_tables([_SUSPECTS.empty_table(), *found])


def all_but_the_highest(rows: pa.Table) -> Repeats:
    """Of each id among the rows, all but that of the highest loss; of equals the first by part and row stays."""
    order = np.lexsort([rows["part_row"].to_numpy(), rows["part"].to_numpy(), -rows["predicted_loss"].to_numpy()])
    ordered = rows.take(pa.array(order))
    codes = ordered["sample_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    is_left_out = np.ones(len(codes), np.bool_)
    is_left_out[np.unique(codes, return_index=True)[1]] = False
    parts, part_rows = ordered["part"].to_numpy()[is_left_out], ordered["part_row"].to_numpy()[is_left_out]
    return {int(number): np.sort(part_rows[parts == number]) for number in np.unique(parts)}


def without(rows: pa.Table, repeats: Repeats) -> pa.Table:
    """The rows (of any parts, with `part` and `part_row`) that are not left out."""
    parts, part_rows = rows["part"].to_numpy(), rows["part_row"].to_numpy()
    is_kept = np.ones(len(rows), np.bool_)
    for number in set(np.unique(parts).tolist()) & repeats.keys():
        is_kept &= ~((parts == number) & np.isin(part_rows, repeats[number]))
    return rows.filter(pa.array(is_kept))


def _hash(rows: pa.Table) -> NDArray[np.uint64]:
    return hash_order(rows["sample_id"], seed=0)
