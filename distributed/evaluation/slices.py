"""Where it goes wrong: the metrics of each slice of the evaluated rows, by columns of metadata, and of the groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.evaluation.rows import Observed
from distributed.evaluation.summary import WORST_SHARE, json_number
from distributed.schema import IN_FLIGHT, labelled
from distributed.storage.location import Location, read_again
from distributed.tables.manifest import Manifest, PoolFile
from distributed.tables.parquet import open_table
from distributed.tables.reader import plan_bins, read_bin
from model.errors import InputError
from model.metrics import top_size, top_weights

MOST_VALUES = 20  # of a column that nobody named: more are ids or measurements rather than slices
MOST_NAMED_VALUES = 1000  # of a column that somebody named: more are no table to read
_GROUPS_SHOWN = 10
_GROUP = "group"
_OWN = {*labelled(1).names, *IN_FLIGHT.names} - {_GROUP}
_THREADS = 16  # footers are small and stores are far

Codes = NDArray[np.int64]


def slice_columns(manifest: Manifest, names: Sequence[str] | None) -> list[str]:
    """The columns to slice by: the named ones, or those of text, booleans or lists of text that all files have.

    Raises:
        InputError: a named column is missing in a file, is one of the tables' own, or has values of another kind.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="footers") as threads:
        schemas = list(threads.map(partial(_schema_of, manifest), manifest.files))
    if names is None:
        first = [name for name in schemas[0].names if name not in _OWN and name != _GROUP]
        return [name for name in first if all(_is_text(_type(schema, name)) for schema in schemas)]
    for name in names:
        for file, schema in zip(manifest.files, schemas, strict=True):
            kind = _type(schema, name)
            if name in _OWN or not (_is_text(kind) or (kind is not None and pa.types.is_integer(kind))):
                found = "a column of the tables' own" if name in _OWN else kind or "no such column"
                raise InputError(
                    f"--slices {name}: expected text, booleans, integers or lists of text, found {found} in {file.path}"
                )
    return list(dict.fromkeys(names))


def _schema_of(manifest: Manifest, file: PoolFile) -> pa.Schema:
    def read(where: Location) -> pa.Schema:
        with open_table(where) as reader:
            return reader.schema_arrow

    return read_again(read, manifest.location.join(*file.path.split("/")))


def _type(schema: pa.Schema, name: str) -> pa.DataType | None:
    index = schema.get_field_index(name)
    return None if index < 0 else schema.field(index).type


def _is_text(kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    if _is_list(kind) or pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def summarise_slices(rows: Observed, manifest: Manifest, *, columns: Sequence[str], most_values: int) -> dict[str, Any]:
    """Metrics by value of each column, and of the groups that hold most of what is worst.

    A row with a list of values is in the slice of each; a row without a value is in the slice of null.

    Args:
        rows: the evaluated rows, in the manifest's order.
        manifest: what was evaluated; only these columns are read.
        columns: from `slice_columns`.
        most_values: a column of more is left out, and named.
    """
    found = {name: _Column() for name in dict.fromkeys([*columns, _GROUP])}
    first_row = 0
    for bin_ in plan_bins(manifest.segments):
        for table in read_bin(manifest.location, bin_, columns=list(found)):
            for name, column in found.items():
                if name == _GROUP or len(column.values) <= most_values:
                    column.add(table[name], first_row=first_row)
            first_row += len(table)
    facts = _facts(rows)
    left_out = [name for name in columns if len(found[name].values) > most_values]
    return {
        "slices": [
            {"column": name, **of_value}
            for name in columns
            if name not in left_out
            for of_value in sorted(_measure(found[name], facts), key=_by_value)
        ],
        "slices_left_out": dict.fromkeys(left_out, f"more than {most_values} values"),
        "groups": _summarise_groups(found[_GROUP], facts),
    }


class _Column:
    """Which rows have which value, as pairs; gathered batch by batch."""

    def __init__(self) -> None:
        self.values: dict[str | None, int] = {}  # value -> code
        self._rows: list[Codes] = []
        self._codes: list[Codes] = []

    def add(self, column: pa.ChunkedArray, *, first_row: int) -> None:
        """The values of the rows from `first_row` on."""
        pairs = list(dict.fromkeys(_pairs(column.combine_chunks())))  # a value twice in a list is there once
        self._rows.append(np.array([row for row, _ in pairs], np.int64) + first_row)
        codes = [self.values.setdefault(value, len(self.values)) for _, value in pairs]
        self._codes.append(np.array(codes, np.int64))

    @property
    def pairs(self) -> tuple[Codes, Codes]:
        """(M,) rows and (M,) codes."""
        return np.concatenate([np.empty(0, np.int64), *self._rows]), np.concatenate(
            [np.empty(0, np.int64), *self._codes]
        )


def _pairs(column: pa.Array) -> Iterator[tuple[int, str | None]]:
    """(row, value) of a batch; null and an empty list have the value null."""
    if not _is_list(column.type):
        yield from enumerate(pc.cast(column, pa.string()).to_pylist())
        return
    for row, values in enumerate(column.to_pylist()):
        for value in values or [None]:
            yield row, value if value is None or isinstance(value, str) else str(value).lower()


def _facts(rows: Observed) -> dict[str, NDArray[np.float64]]:
    """What is summed over the rows of a slice, each (N,)."""
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


def _measure(column: _Column, facts: dict[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
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


def _summarise_groups(column: _Column, facts: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    measured = _measure(column, facts)
    named = [group for group in measured if group["value"] is not None]
    worst = sorted(named, key=lambda group: (-(group["share_of_worst_true"] or 0.0), _by_value(group)))
    return {
        "num_groups": len(named),
        "num_rows_without": sum(group["num_rows"] for group in measured if group["value"] is None),
        "worst": worst[:_GROUPS_SHOWN],
    }


def _by_value(measured: dict[str, Any]) -> tuple[bool, str]:
    """By value, null last."""
    return measured["value"] is None, measured["value"] or ""
