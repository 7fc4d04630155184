"""Outcomes of the rows of a selection that was sent to be labelled: a JSON file beside the table of those labelled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from distributed.runs.record import read_run
from distributed.storage.location import Location, list_files, read_bytes, write_bytes
from model.errors import InputError
from model.json_text import parse_json

RETURNED_FILE = "returned.json"
CONTROL = "control"  # reason of a selected row of the control arm

Row = dict[str, Any]  # rank, sample_id, reason, outcome, why, annotators, disagree, seconds


def write_returned(table: Location, rows: Sequence[Row]) -> None:
    """Writes the rows, by rank, beside their table."""
    write_bytes(table.join(RETURNED_FILE), json.dumps({"rows": list(rows)}, indent=1).encode() + b"\n")


def read_returned(table: Location) -> list[Row]:
    """The selected rows that came back to a table, by rank.

    Raises:
        InputError: the file is gone, or none.
    """
    place = table.join(RETURNED_FILE)
    try:
        return list(parse_json(read_bytes(place))["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{place.uri}: expected the selected rows with their outcomes, found something else"
        ) from error


def find_returned(labelled: Location, *, selection_fingerprint: str) -> list[Row] | None:
    """The rows of a selection that came back to a labelled table, or to one in a folder of it; None if none did.

    Of several, those of the table whose labels came last.
    """
    found: list[tuple[str, Location]] = []
    for file in list_files(labelled, suffix=RETURNED_FILE):
        below = file.path[len(labelled.path.rstrip("/")) + 1 :].split("/")[:-1]
        table = labelled.join(*below) if below else labelled
        try:
            record = read_run(table, expected="table")
        except InputError:
            continue  # unfinished, or something else
        if record.get("selection_fingerprint") == selection_fingerprint:
            found.append((record["finished_at"], table))
    return read_returned(max(found, key=lambda item: item[0])[1]) if found else None


def count_returned(rows: Sequence[Row]) -> dict[str, Any]:
    """Outcomes of the model's rows and of the control arm's, and why annotators rejected rows, by their number."""
    arms = {"selected": [each for each in rows if each["reason"] != CONTROL]}
    arms["control"] = [each for each in rows if each["reason"] == CONTROL]
    reasons = Counter(each["why"] or "no reason given" for each in rows if each["outcome"] == "rejected")
    return {
        "outcomes": {arm: dict(Counter(each["outcome"] for each in own).most_common()) for arm, own in arms.items()},
        "rejected": dict(reasons.most_common()),
    }
