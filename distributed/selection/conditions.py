"""Conditions on columns, as users write them: a small part of Python's expressions, made into one of Arrow's.

Parsed by Python and evaluated by Arrow alone. Null is neither true nor false, as in SQL: `group != 'x'` and its
opposite both leave out rows without a group.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from distributed.storage.location import first_line
from model.errors import InputError

_GRAMMAR = "columns compared with values (== != < <= > >=), in (…), is null, and, or, not"
_NULL = "null"
_LONGEST = 10_000  # characters: Python's parser may give up on nonsense that is longer

_COMPARISONS: dict[type[ast.cmpop], Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}


def parse_condition(text: str, schema: pa.Schema) -> pc.Expression:
    """The condition as an expression on tables of the schema.

    Numbers beside a float column are of its type: a confidence that is shown as 0.1 equals 0.1.

    Raises:
        InputError: it is none, names a column that is not there, or compares what cannot be compared.
    """
    condition = _Parser(text, schema).boolean(_parse(text))
    try:
        schema.empty_table().filter(condition)
    except (pa.ArrowException, TypeError) as error:
        raise InputError(f"--where {text}: {first_line(error)}") from error
    return condition


def condition_columns(text: str) -> list[str]:
    """The columns that a condition names."""
    names = {node.id for node in ast.walk(_parse(text)) if isinstance(node, ast.Name)}
    return sorted(names - {_NULL})


def _parse(text: str) -> ast.expr:
    try:
        if len(text) > _LONGEST:
            raise ValueError
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"--where {text[:200]}: expected {_GRAMMAR}") from error


class _Parser:
    """Goes down the syntax tree and refuses all that is not listed here."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text = text
        self._schema = schema

    def boolean(self, node: ast.expr) -> pc.Expression:
        """What is true or false of a row."""
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return reduce(lambda a, b: a & b, map(self.boolean, values))
            case ast.BoolOp(op=ast.Or(), values=values):
                return reduce(lambda a, b: a | b, map(self.boolean, values))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.boolean(operand)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                pairs = zip([left, *rights[:-1]], ops, rights, strict=True)  # a < b < c is a < b and b < c
                return reduce(lambda a, b: a & b, [self._compare(*pair) for pair in pairs])
            case ast.Name():
                return self._column(node)
        raise self._refused(node)

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(op, ast.Is | ast.IsNot):
            if not _is_null(right):
                raise self._refused(right)
            found = self._column(left).is_null()
            return found if isinstance(op, ast.Is) else ~found
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
                raise self._refused(right)
            # Not Arrow's is_in, which does not compare numbers of different types, and takes null for a value.
            found = reduce(lambda a, b: a | b, [self._compare(left, ast.Eq(), value) for value in right.elts])
            return found if isinstance(op, ast.In) else ~found
        return _COMPARISONS[type(op)](self._operand(left, beside=right), self._operand(right, beside=left))

    def _operand(self, node: ast.expr, *, beside: ast.expr) -> pc.Expression:
        if isinstance(node, ast.Name):
            return self._column(node)
        value = self._constant(node)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        kind = self._type(beside) if isinstance(beside, ast.Name) else None
        try:
            if is_number and kind is not None and pa.types.is_floating(kind):
                return pc.scalar(pa.scalar(float(value), kind))
            return pc.scalar(value)
        except OverflowError:
            shown = ast.unparse(node)[:20]
            raise InputError(f"--where {self._text[:200]}: expected a number of 64 bits, found {shown}…") from None

    def _constant(self, node: ast.expr) -> str | int | float | bool:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
        raise self._refused(node)

    def _column(self, node: ast.expr) -> pc.Expression:
        if not isinstance(node, ast.Name):
            raise self._refused(node)
        self._type(node)
        return pc.field(node.id)

    def _type(self, name: ast.Name) -> pa.DataType:
        index = self._schema.get_field_index(name.id)
        if index < 0:
            raise InputError(
                f"--where {self._text}: expected a column ({', '.join(self._schema.names)}), found {name.id!r}"
            )
        return self._schema.field(index).type

    def _refused(self, node: ast.expr) -> InputError:
        return InputError(f"--where {self._text}: expected {_GRAMMAR}; found {ast.unparse(node)!r}")


def _is_null(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == _NULL) or (isinstance(node, ast.Constant) and node.value is None)
