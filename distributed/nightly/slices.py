"""The distribution of predicted losses by the values of columns: what drift is looked for in, camera by camera."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from distributed.nightly.drift import Key, Slices
from distributed.storage.location import Location, read_again
from distributed.tables.parquet import open_table
from distributed.tables.sketch import Sketch, merge_sketches, sketch
from model.errors import InputError

MAX_VALUES = 64  # of a column: a history row stays small, and a column of ids shows itself as a mistake


def sketch_slices(scores: Location, parts: Sequence[str], columns: Sequence[str]) -> Slices:
    """The losses of the rows of each value of each column; of the `MAX_VALUES` values with most rows. Nulls are none.

    Reads a part at a time.

    Args:
        scores: location of a scores table.
        parts: its published parts.
        columns: its columns, of any type that can be text.

    Raises:
        InputError: a part is damaged, or a column is of lists or the like.
    """
    found: dict[Key, list[Sketch]] = defaultdict(list)
    if columns:
        for path in parts:
            for key, each in _sketch_part(scores.join(*path.split("/")), columns):
                found[key].append(each)
    merged = {key: merge_sketches(sketches) for key, sketches in found.items()}
    kept: Slices = {}
    for column in columns:
        own = [(key, each) for key, each in merged.items() if key[0] == column]
        own.sort(key=lambda entry: (-entry[1].num_values, entry[0]))
        kept.update(sorted(own[:MAX_VALUES]))
    return kept


def _sketch_part(place: Location, columns: Sequence[str]) -> list[tuple[Key, Sketch]]:
    def read(where: Location) -> pa.Table:
        with open_table(where) as reader:
            return reader.read(columns=["predicted_loss", *columns])

    rows = read_again(read, place)
    rows = rows.filter(pc.is_valid(rows["predicted_loss"]))
    return [
        ((column, value), sketch(losses.to_numpy())) for column in columns for value, losses in _by_value(rows, column)
    ]


def _by_value(rows: pa.Table, column: str) -> list[tuple[str, pa.ChunkedArray]]:
    try:
        texts = rows[column].cast(pa.string()).combine_chunks()
    except pa.ArrowException:
        kind = rows[column].type
        raise InputError(f"--drift-columns {column}: expected values that can be text, found {kind}") from None
    values = texts.dictionary_encode()
    order = pc.sort_indices(values.indices)  # nulls last
    counts = {each["values"]: each["counts"] for each in values.indices.value_counts().to_pylist()}
    losses, start, found = rows["predicted_loss"].take(order), 0, []
    for code, value in enumerate(values.dictionary.to_pylist()):
        found.append((value, losses.slice(start, counts[code])))
        start += counts[code]
    return found
