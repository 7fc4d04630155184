"""Slices: the rows that have one value of a metadata column. Values, their limit, and the metrics of each slice.

Evaluation, drift and reports all take their values from here: text, booleans, integers, and each text of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.evaluation.rows import Observed
from distributed.evaluation.summary import WORST_SHARE, json_number
from distributed.schema import IN_FLIGHT, labelled
from distributed.storage.location import Location, read_again
from distributed.storage.threads import ask_at_once
from distributed.tables.manifest import Manifest, PoolFile
from distributed.tables.parquet import open_table
from distributed.tables.reader import plan_bins, read_bin
from model.errors import InputError
from model.metrics import top_size, top_weights

MOST_VALUES = 200  # of a column: more are ids or measurements rather than slices
SLICEABLE = "text, booleans, integers or lists of text"
_GROUPS_SHOWN = 10
_GROUP = "group"
_OWN = {*labelled(1).names, *IN_FLIGHT.names} - {_GROUP}

Codes = NDArray[np.int64]


class Values(NamedTuple):
    """The values of a column: row `rows[i]` has the value `names[codes[i]]`. Each pair occurs once, by row."""

    names: list[str]
    rows: Codes  # (M,) ascending; rows without a value are missing, rows with a list may occur several times
    codes: Codes  # (M,)


def is_sliceable(kind: pa.DataType) -> bool:
    """True for the types whose values make slices: see `SLICEABLE`."""
    if pa.types.is_dictionary(kind):
        return is_sliceable(kind.value_type)
    if _is_list(kind):
        return _is_text(kind.value_type)
    return _is_text(kind) or bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind))


def values_of(column: pa.ChunkedArray) -> Values:
    """The values of a sliceable column, as text. Nulls, also those in lists, are no values."""
    items = column.combine_chunks()
    rows = np.arange(len(items))
    if _is_list(items.type):
        rows = np.repeat(rows, pc.fill_null(pc.list_value_length(items), 0))
        items = pc.list_flatten(items)
    if pa.types.is_dictionary(items.type):
        items = items.cast(items.type.value_type)
    rows = rows[np.asarray(items.is_valid())]
    texts = items.cast(pa.string()).drop_null().dictionary_encode()
    codes, names = np.asarray(texts.indices, np.int64), texts.dictionary.to_pylist()
    _, first = np.unique(rows * max(len(names), 1) + codes, return_index=True)
    first.sort()
    return Values(names, rows[first], codes[first])


def texts_by_row(column: pa.ChunkedArray) -> list[tuple[str, ...]]:
    """The values of each row, as text: none for a null, several for a list."""
    found, texts = values_of(column), [list[str]() for _ in range(len(column))]
    for row, code in zip(found.rows.tolist(), found.codes.tolist(), strict=True):
        texts[row].append(found.names[code])
    return [tuple(each) for each in texts]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def slice_columns(manifest: Manifest, names: Sequence[str] | None) -> list[str]:
    """The columns to slice by: the named ones, or all sliceable ones that all files have.

    Raises:
        InputError: a named column is missing in a file, is one of the tables' own, or has values of another kind.
    """
    schemas = ask_at_once(manifest.location, partial(_schema_of, manifest), manifest.files)
    kinds = [dict(zip(schema.names, schema.types, strict=True)) for schema in schemas]
    if names is None:
        first = [name for name in kinds[0] if name not in _OWN and name != _GROUP]
        return [name for name in first if all(name in each and is_sliceable(each[name]) for each in kinds)]
    for name in names:
        for file, each in zip(manifest.files, kinds, strict=True):
            if name in _OWN or name not in each or not is_sliceable(each[name]):
                found = "a column of the tables' own" if name in _OWN else each.get(name, "no such column")
                raise InputError(f"--slices {name}: expected {SLICEABLE}, found {found} in {file.path}")
    return list(dict.fromkeys(names))


def _schema_of(manifest: Manifest, file: PoolFile) -> pa.Schema:
    def read(where: Location) -> pa.Schema:
        with open_table(where) as reader:
            return reader.schema_arrow

    return read_again(read, manifest.location.join(*file.path.split("/")))


def read_columns(manifest: Manifest, names: Sequence[str]) -> dict[str, Column]:
    """The values of sliceable columns, of all rows in the manifest's order; `group` may have any number of them.

    A column of more than `MOST_VALUES` values is not read to its end.
    """
    found = {name: Column() for name in names}
    first_row = 0
    for bin_ in plan_bins(manifest.segments) if found else ():
        for table in read_bin(manifest.location, bin_, columns=list(found)):
            for name, column in found.items():
                if name == _GROUP or len(column.values) <= MOST_VALUES:
                    column.add(table[name], first_row=first_row)
            first_row += len(table)
    return found


def summarise_slices(rows: Observed, manifest: Manifest, *, columns: Sequence[str]) -> dict[str, Any]:
    """Metrics of each slice, and of the groups that hold most of the worst rows.

    A row with a list of values is in the slice of each, a row without a value in the slice of null. A column of more
    than `MOST_VALUES` values is left out, and named.

    Args:
        rows: the evaluated rows, in the manifest's order.
        manifest: the evaluated table; only these columns are read.
        columns: from `slice_columns`.
    """
    found = read_columns(manifest, [*columns, _GROUP])
    facts = _facts(rows)
    left_out = [name for name in columns if len(found[name].values) > MOST_VALUES]
    return {
        "slices": [
            {"column": name, **of_value}
            for name in columns
            if name not in left_out
            for of_value in sorted(_measure(found[name], facts), key=_by_value)
        ],
        "slices_left_out": dict.fromkeys(left_out, f"more than {MOST_VALUES} values"),
        "groups": _summarise_groups(found[_GROUP], facts),
    }


class Column:
    """The values of a column, gathered batch by batch; null is one where a row has no other."""

    def __init__(self) -> None:
        self.values: dict[str | None, int] = {}  # value -> code
        self._rows = [np.empty(0, np.int64)]
        self._codes = [np.empty(0, np.int64)]

    def add(self, column: pa.ChunkedArray, *, first_row: int) -> None:
        """Adds a batch, whose first row is `first_row` of all."""
        found = values_of(column)
        codes = np.array([self._code(name) for name in found.names], np.int64)
        without = np.setdiff1d(np.arange(len(column)), found.rows)
        self._rows += [found.rows + first_row, without + first_row]
        self._codes.append(codes[found.codes])
        if len(without):
            self._codes.append(np.full(len(without), self._code(None)))

    def _code(self, value: str | None) -> int:
        return self.values.setdefault(value, len(self.values))

    @property
    def pairs(self) -> tuple[Codes, Codes]:
        """(M,) rows and (M,) codes."""
        return np.concatenate(self._rows), np.concatenate(self._codes)


def _facts(rows: Observed) -> dict[str, NDArray[np.float64]]:
    """The numbers that are summed over the rows of a slice, each (N,)."""
    counts = rows.is_evaluated
    facts = {
        "num_rows": np.ones(len(counts)),
        "num_errors": rows.is_error,
        "num_evaluated": counts,
        "num_right": np.where(counts, rows.num_right, 0),
        "num_judged": np.where(counts, rows.num_judged, 0),
        "true_loss": np.where(counts, rows.true_loss, 0.0),
        "predicted_loss": np.where(counts, rows.predicted_loss, 0.0),
    }
    for name in ("true_loss", "predicted_loss"):
        worst = facts[f"worst_{name}"] = np.zeros(len(counts))
        count = top_size(int(counts.sum()), WORST_SHARE)
        worst[counts] = top_weights(vars(rows)[name][counts], count=count)
    return {name: np.asarray(values, np.float64) for name, values in facts.items()}


def _measure(column: Column, facts: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """The metrics of each value."""
    rows, codes = column.pairs
    sums = {name: np.bincount(codes, values[rows], minlength=len(column.values)) for name, values in facts.items()}
    totals = {name: values.sum() for name, values in facts.items()}

    def ratio(part: str, whole: str, code: int) -> float | None:
        return json_number(sums[part][code] / sums[whole][code]) if sums[whole][code] else None

    def share(name: str, code: int) -> float | None:
        return json_number(sums[name][code] / totals[name]) if totals[name] else None

    return [
        {
            "value": value,
            **{name: int(sums[name][code]) for name in ("num_rows", "num_errors", "num_evaluated")},
            "pck": ratio("num_right", "num_judged", code),
            "mean_true_loss": ratio("true_loss", "num_evaluated", code),
            "mean_predicted_loss": ratio("predicted_loss", "num_evaluated", code),
            "share_of_rows": share("num_evaluated", code),
            "share_of_worst_true": share("worst_true_loss", code),
            "share_of_worst_predicted": share("worst_predicted_loss", code),
        }
        for value, code in column.values.items()
    ]


def _summarise_groups(column: Column, facts: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    measured = _measure(column, facts)
    named = [group for group in measured if group["value"] is not None]
    worst = sorted(named, key=lambda group: (-(group["share_of_worst_true"] or 0.0), _by_value(group)))
    return {
        "num_groups": len(named),
        "num_rows_without": sum(group["num_rows"] for group in measured if group["value"] is None),
        "worst": worst[:_GROUPS_SHOWN],
    }


def _by_value(measured: dict[str, Any]) -> tuple[bool, str]:
    """Slices ordered by value, null last."""
    return measured["value"] is None, measured["value"] or ""
