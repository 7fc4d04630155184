"""Held-out rows: the ids that a bundle was trained on lie beside it, and rows of theirs are refused as a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distributed.selection.filters import IdSet
from distributed.storage.location import Location, open_atomic
from distributed.tables.manifest import Manifest
from distributed.tables.parquet import read_table
from distributed.tables.reader import plan_bins, read_bin
from model.errors import InputError

if TYPE_CHECKING:
    from model.bundle import Bundle

TRAINED_FILE = "trained_ids.parquet"  # beside a bundle: sample_id of each row that it was trained on
_SHOWN = 3  # ids in a message


def write_trained_ids(place: Location, labelled: Manifest) -> None:
    """Writes the ids of the rows that a training reads beside its bundle."""
    with open_atomic(place.join(TRAINED_FILE)) as stream:
        table = pa.table({"sample_id": _ids(labelled)})
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def check_held_out(rows: Manifest, bundle: Bundle, place: Location) -> str | None:
    """Passes if a bundle was not trained on any of the rows; a line where that can't be known.

    Args:
        rows: the labelled table to test on.
        bundle: the bundle.
        place: location of the bundle, beside which its ids lie. Without them (an earlier version trained it, or only
            the bundle's own files were copied), tables are compared as wholes.

    Raises:
        InputError: it was trained on some.
    """
    if bundle.training.get("labelled_fingerprint") == rows.fingerprint:
        raise InputError(f"{rows.location.uri}: expected held-out rows, found those that {place.uri} was trained on")
    trained = place.join(TRAINED_FILE)
    if not trained.exists:
        return f"{place.uri}: no {TRAINED_FILE}: rows that it was trained on can't be told from held-out ones"
    _refuse_shared(rows, read_table(trained)["sample_id"], place)
    return None


def check_apart(labelled: Manifest, validation: Manifest) -> None:
    """Refuses validation rows that are trained on: whatever is measured on them would be too good.

    Raises:
        InputError: there are some.
    """
    _refuse_shared(validation, _ids(labelled), labelled.location)


def _refuse_shared(rows: Manifest, trained: pa.ChunkedArray, place: Location) -> None:
    ids = _ids(rows)
    shared = pc.unique(ids.filter(pa.array(IdSet(trained.chunks).contains(ids))))
    if len(shared):
        raise InputError(
            f"{rows.location.uri}: expected rows that are not trained on, "
            f"found {len(shared)} of {place.uri}: {shared[:_SHOWN].to_pylist()}"
        )


def _ids(manifest: Manifest) -> pa.ChunkedArray:
    columns = [
        rows["sample_id"].cast(pa.string())
        for bin_ in plan_bins(manifest.segments)
        for rows in read_bin(manifest.location, bin_, columns=["sample_id"])
    ]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
