"""Filters of rows that may be selected: bounds of the loss, a condition on columns, and tables of excluded ids."""

from __future__ import annotations

import ast
import hashlib
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from distributed.selection.moments import Moments, has_moments, join_moments
from distributed.storage.location import Location, first_line, read_again, read_bytes
from distributed.storage.threads import ask_at_once
from distributed.tables.parquet import hash_footer, open_table
from model.errors import DamagedError, InputError

if TYPE_CHECKING:
    from distributed.tables.manifest import Manifest, PoolFile

_GRAMMAR = "columns compared with values (== != < <= > >=), in (…), is null, and, or, not"
_LONGEST = 10_000  # characters of a condition: longer nonsense may crash Python's parser
_COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

_HASHED_ROWS = 65_536  # ids that are Python objects at a time
_IDS = pa.schema([pa.field("sample_id", pa.string())])


@dataclass(frozen=True, kw_only=True)
class IdList:
    """The rows of a CSV file with a column sample_id, such as a report's download."""

    rows: pa.Table
    fingerprint: str

    @property
    def num_rows(self) -> int:
        """Number of ids."""
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class FilterSpec:
    """Conditions that a row must meet; travels to other processes.

    Bounds are inclusive and, like the losses, float32: a loss that is shown as 0.1 is not under 0.1.
    """

    min_loss: float | None = None
    max_loss: float | None = None
    where: str | None = None  # see `parse_condition`
    excluded: tuple[Manifest | IdList, ...] = ()  # tables of ids
    taken: pa.Table | None = None  # sample_id, group and captured_at of rows that were selected before
    min_gap: float = 0.0  # seconds: rows of a group that are within so many of an excluded or taken one don't pass
    only_excluded: bool = False  # lets pass the excluded ids instead of all others

    @property
    def columns(self) -> list[str]:
        """The columns that decide."""
        columns = ["predicted_loss", "error", *([] if self.where is None else condition_columns(self.where))]
        if self.excluded or self.taken is not None:
            columns += ["sample_id", "group", "captured_at"] if self.min_gap else ["sample_id"]
        return list(dict.fromkeys(columns))

    @property
    def lets_all_pass(self) -> bool:
        """True if every scored row passes."""
        return self == FilterSpec(min_gap=self.min_gap)


class Excluded(NamedTuple):
    """Rows that are not selected, nor those that show the same moment."""

    ids: IdSet
    moments: Moments


class RowFilter:
    """A `FilterSpec` at work in one process, on tables of one schema.

    Args:
        spec: the conditions.
        schema: of the tables.
        excluded: the rows of the spec's tables, where they are read already.

    Raises:
        InputError: the condition is none or names a column that is not there, or an excluded table is damaged.
    """

    def __init__(self, spec: FilterSpec, *, schema: pa.Schema, excluded: Excluded | None = None) -> None:
        self.columns = spec.columns
        self.min_loss = np.float32(-np.inf if spec.min_loss is None else spec.min_loss)
        self._max_loss = np.float32(np.inf if spec.max_loss is None else spec.max_loss)
        self._condition = None if spec.where is None else parse_condition(spec.where, schema)
        self._excluded, self._moments = read_excluded(spec) if excluded is None else excluded
        self._taken = IdSet([] if spec.taken is None else spec.taken["sample_id"].chunks)
        self._taken_moments = join_moments(spec.min_gap, [] if spec.taken is None else [spec.taken])
        self._only_excluded = spec.only_excluded

    def passes_loss(self, loss: NDArray[np.float32]) -> NDArray[np.bool_]:
        """True for each loss that is a number within the bounds."""
        result: NDArray[np.bool_] = (loss >= self.min_loss) & (loss <= self._max_loss)  # NaN is not
        return result

    def keep(self, rows: pa.Table) -> pa.Table:
        """The rows that were scored and pass, in their order."""
        is_within = self.passes_loss(rows["predicted_loss"].to_numpy())  # a null becomes NaN
        if rows["error"].null_count < len(rows):
            is_within &= rows["error"].is_null().to_numpy()
        if not is_within.all():
            rows = rows.filter(pa.array(is_within))
        if self._condition is not None:
            rows = rows.filter(self._condition)
        if self._only_excluded:  # whatever their moments
            return rows.filter(pa.array(self._excluded.contains(rows["sample_id"])))
        if len(self._excluded):
            rows = rows.filter(pa.array(~self._excluded.contains(rows["sample_id"])))
        if len(self._taken):
            rows = rows.filter(pa.array(~self._taken.contains(rows["sample_id"])))
        for moments in (self._moments, self._taken_moments):
            if len(moments):
                rows = rows.filter(pa.array(~moments.are_near(rows)))
        return rows


def parse_condition(text: str, schema: pa.Schema) -> pc.Expression:
    """Turns a condition as users write it into an Arrow expression on tables of the schema.

    The language is a small part of Python's: `confidence < 0.5 and group != 'x'`. Null is neither true nor false, as in
    SQL: `group != 'x'` and its opposite both leave out rows without a group. Numbers beside a float column are of its
    type: a confidence that is shown as 0.1 equals 0.1.

    Raises:
        InputError: it is none, names a column that is not there, or compares what cannot be compared.
    """
    tree = _parse(text)
    try:
        condition = _boolean(tree, schema)
        schema.empty_table().filter(condition)
    except InputError as error:
        raise InputError(f"--where {text[:200]}: {error}") from None
    except RecursionError:
        raise InputError(f"--where {text[:200]}: expected {_GRAMMAR}; found too many in each other") from None
    except OverflowError:
        raise InputError(f"--where {text[:200]}: expected a number of at most 64 bits, found a longer one") from None
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"--where {text[:200]}: {first_line(error)}") from error
    return condition


def condition_columns(text: str) -> list[str]:
    """The columns that a condition names.

    Raises:
        InputError: it is no condition.
    """
    return sorted({node.id for node in ast.walk(_parse(text)) if isinstance(node, ast.Name)} - {"null"})


def _parse(text: str) -> ast.expr:
    try:
        if len(text) > _LONGEST:
            raise ValueError
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"--where {text[:200]}: expected {_GRAMMAR}") from None


def _boolean(node: ast.expr, schema: pa.Schema) -> pc.Expression:
    """Refuses all of Python's syntax that is not listed here."""
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = operator.and_ if isinstance(op, ast.And) else operator.or_
            return reduce(combine, [_boolean(value, schema) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_boolean(operand, schema)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = zip([left, *rights[:-1]], ops, rights, strict=True)  # a < b < c is a < b and b < c
            return reduce(operator.and_, [_compared(*pair, schema) for pair in pairs])
    return _column(node, schema)


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr, schema: pa.Schema) -> pc.Expression:
    match op, right:
        case ast.Is() | ast.IsNot(), ast.Name(id="null") | ast.Constant(value=None):
            found = _column(left, schema).is_null()
        case ast.In() | ast.NotIn(), ast.Tuple(elts=[_, *_] as values) | ast.List(elts=[_, *_] as values):
            # Not Arrow's is_in, which does not compare numbers of different types, and takes null for a value.
            found = reduce(operator.or_, [_compared(left, ast.Eq(), value, schema) for value in values])
        case _ if type(op) in _COMPARISONS:
            return _COMPARISONS[type(op)](_operand(left, right, schema), _operand(right, left, schema))
        case _:
            raise _refused(right)
    return ~found if isinstance(op, ast.IsNot | ast.NotIn) else found


def _operand(node: ast.expr, beside: ast.expr, schema: pa.Schema) -> pc.Expression:
    if isinstance(node, ast.Name):
        return _column(node, schema)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        raise _refused(node) from None
    if type(value) not in (bool, int, float, str):
        raise _refused(node)
    if type(value) in (int, float) and isinstance(beside, ast.Name):
        _column(beside, schema)
        kind = schema.field(beside.id).type
        if pa.types.is_floating(kind):
            return pc.scalar(pa.scalar(float(value), kind))
    return pc.scalar(value)


def _column(node: ast.expr, schema: pa.Schema) -> pc.Expression:
    if not isinstance(node, ast.Name):
        raise _refused(node)
    if schema.get_field_index(node.id) < 0:
        raise InputError(f"expected a column ({', '.join(schema.names)}), found {node.id!r}")
    return pc.field(node.id)


def _refused(node: ast.expr) -> InputError:
    return InputError(f"expected {_GRAMMAR}; found {ast.unparse(node)!r}")


def freeze_ids(location: Location) -> Manifest | IdList:
    """Freezes the files of a table that names samples: a pool, labelled table or selection; or reads a CSV file.

    Raises:
        InputError: there is none, or one of its files can't be read or has no sample_id.
    """
    if location.path.endswith(".csv"):
        return read_id_list(location)
    from distributed.tables.manifest import freeze_pool

    manifest = freeze_pool(location, schema=_IDS, may_be_empty=True, may_repeat=True)
    for file in manifest.bad_files:  # its ids are unknown, and might be selected again
        raise InputError(f"{location.uri}: expected only readable files to exclude, found {file.path}: {file.reason}")
    return manifest


def read_id_list(location: Location) -> IdList:
    """The ids of a CSV file, in its order.

    Raises:
        InputError: there is none, or it has no column sample_id.
    """
    data = read_bytes(location)
    options = csv.ConvertOptions(include_columns=_IDS.names, column_types=_IDS, strings_can_be_null=False)
    try:
        quoted = csv.ParseOptions(newlines_in_values=True)
        rows = csv.read_csv(pa.BufferReader(data), parse_options=quoted, convert_options=options)
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{location.uri}: expected a CSV file with a column sample_id: {first_line(error)}") from error
    return IdList(rows=rows, fingerprint=hashlib.sha256(data).hexdigest()[:16])


def read_excluded(spec: FilterSpec) -> Excluded:
    """Reads the excluded rows of a filter: their ids, and with a gap their moments, where a table knows them.

    Raises:
        InputError: a file is damaged, or is not the one that was frozen.
        RunFailedError: the store failed.
    """
    with_moments = bool(spec.min_gap) and not spec.only_excluded
    found = [table.rows for table in spec.excluded if isinstance(table, IdList)]
    for table in (table for table in spec.excluded if not isinstance(table, IdList)):
        read = partial(_read_rows_of, table.location, with_moments=with_moments)
        found += ask_at_once(table.location, read, table.files)
    return Excluded(
        ids=IdSet(ids for rows in found for ids in rows["sample_id"].chunks),
        moments=join_moments(spec.min_gap, [rows for rows in found if "captured_at" in rows.column_names]),
    )


def _read_rows_of(location: Location, file: PoolFile, *, with_moments: bool) -> pa.Table:
    def read(where: Location) -> pa.Table:
        with open_table(where) as reader:
            if hash_footer(reader.metadata) != file.footer:
                raise DamagedError(f"{where.uri}: expected the file as it was when the run began, found another")
            moments = ["group", "captured_at"] if with_moments and has_moments(reader.schema_arrow) else []
            rows = reader.read(columns=["sample_id", *moments])
        if len(rows) != file.num_rows:
            raise DamagedError(f"{where.uri}: damaged: expected {file.num_rows} ids, found {len(rows)}")
        return rows

    return read_again(read, location.join(*file.path.split("/")))


class IdSet:
    """Ids, hashed and sorted once: a look-up costs the same for ten ids and for ten million.

    Holds the texts and 16 bytes an id. Hashes only say where to look; the texts decide. (Arrow's own `is_in` hashes the
    whole set anew in each call, and a Python set takes several times the memory.)
    """

    def __init__(self, chunks: Iterable[pa.Array]) -> None:
        texts, hashes = [pa.array([], pa.large_string())], [np.empty(0, np.int64)]
        for ids in chunks:
            texts.append(ids.cast(pa.large_string()))
            hashes += [_hash(ids.slice(start, _HASHED_ROWS)) for start in range(0, len(ids), _HASHED_ROWS)]
        self._ids = pa.concat_arrays(texts)
        found = np.concatenate(hashes)
        self._order = np.argsort(found, kind="stable")
        self._hashes = found[self._order]

    def __len__(self) -> int:
        """Number of ids, repeated ones counted each time."""
        return len(self._ids)

    def contains(self, sample_ids: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
        """True for each id that is one of these."""
        if not len(self._ids):
            return np.zeros(len(sample_ids), dtype=np.bool_)
        wanted = _hash(sample_ids)
        first = np.searchsorted(self._hashes, wanted)
        is_hit: NDArray[np.bool_] = self._hashes[np.minimum(first, len(self._hashes) - 1)] == wanted
        if is_hit.any():
            start, end = first[is_hit], np.searchsorted(self._hashes, wanted[is_hit], side="right")
            known = self._ids.take(self._order[np.unique(_ranges(start, end - start))])
            hits = sample_ids.filter(pa.array(is_hit)).cast(pa.large_string())
            is_hit[is_hit] = pc.is_in(hits, value_set=known).to_numpy(zero_copy_only=False)
        return is_hit


def _ranges(start: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, … of each, `count` long."""
    before = np.cumsum(count) - count
    numbers: NDArray[np.int64] = np.repeat(start - before, count) + np.arange(count.sum())
    return numbers


def _hash(sample_ids: pa.ChunkedArray | pa.Array) -> NDArray[np.int64]:
    """Python's own hash of the bytes: it differs from process to process, and never leaves one."""
    values = sample_ids.cast(pa.large_binary()).to_pylist()
    return np.fromiter(map(hash, values), np.int64, len(values))
