"""Earlier nights of triage, as a report shows them: the one place that knows the columns of the history table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from distributed.schema import check_schema
from distributed.storage.location import Location
from distributed.tables.parquet import read_table
from model.errors import InputError

_NEEDED = pa.schema(
    [
        pa.field("night", pa.date32()),
        pa.field("bundle_id", pa.string()),
        pa.field("loss_quantiles", pa.list_(pa.float64())),
        pa.field("drift", pa.list_(pa.string())),
    ]
)
_MOST = 14  # nights that a chart can show


@dataclass(frozen=True, kw_only=True)
class Night:
    """The scores of a night in a few numbers."""

    name: str  # YYYY-MM-DD
    loss_quantiles: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class History:
    """What a history table says of one night and of those before it."""

    earlier: Sequence[Night] = ()  # of the same bundle, whose losses compare; the last ones, by date
    drift: Sequence[str] | None = None  # warnings in words; None: this night is not in the table


def read_history(location: Location, *, night: str, bundle_id: str) -> History:
    """The nights before one, and what was found about it.

    Args:
        location: of the table.
        night: its date, YYYY-MM-DD; any other name is later than all.
        bundle_id: of the bundle that scored it.

    Raises:
        InputError: there is no such table, or it is damaged or lacks a column.
    """
    if not location.exists:
        raise InputError(f"{location.uri}: expected a history table, found nothing")
    table = read_table(location)
    check_schema(table.schema, _NEEDED, where=location.uri)
    earlier, drift = [], None
    for row in table.select(_NEEDED.names).to_pylist():
        name = row["night"].isoformat()
        if name == night:
            drift = tuple(row["drift"] or ())
        elif name < night and row["bundle_id"] == bundle_id and row["loss_quantiles"]:
            earlier.append(Night(name=name, loss_quantiles=tuple(row["loss_quantiles"])))
    return History(earlier=sorted(earlier, key=lambda each: each.name)[-_MOST:], drift=drift)
