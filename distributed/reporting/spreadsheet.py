"""A selection as CSV, for people and spreadsheets; no cell of it is a formula.

Source: OWASP, "CSV Injection".
"""

from __future__ import annotations

import csv
import io

from distributed.reporting.items import Exported, Item

_COLUMNS = ("rank", "sample_id", "predicted_loss", "expected_pck", "group", "reason", "image", "width", "height")
_BOX = ("box_x0", "box_y0", "box_x1", "box_y1")
_BEGIN_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")

Cell = str | float | None


def selection_csv(exported: Exported) -> bytes:
    """A row for each item: what the selection says, where the image is, its box, metadata, and the predicted pose."""
    metadata = sorted({name for item in exported.items for name in item.metadata})
    points = [f"{name}_{part}" for name in exported.skeleton.keypoint_names for part in ("x", "y", "peak")]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow([defused(name) for name in (*_COLUMNS, *_BOX, *metadata, *points)])
    for item in exported.items:
        cells = [*_cells(item), *(item.metadata.get(name) for name in metadata), *_pose(item, len(points))]
        writer.writerow([defused(cell) for cell in cells])
    return text.getvalue().encode()


def defused(cell: Cell) -> Cell:
    """The cell; a text that a spreadsheet would take for a formula with an apostrophe before it. Numbers stay."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(_BEGIN_FORMULAS) else cell


def _cells(item: Item) -> list[Cell]:
    about: list[Cell] = [item.rank, item.sample_id, item.predicted_loss, item.expected_pck, item.group, item.reason]
    return [*about, item.reference, item.width, item.height, *(round(value, 2) for value in item.box)]


def _pose(item: Item, count: int) -> list[Cell]:
    return [None] * count if item.pose is None else [round(float(value), 3) for value in item.pose.ravel()]
