"""The champion: a pointer to the bundle in use, a small JSON that changes by conditional writes only.

{"kind": "champion", "bundle": URI, "bundle_id": ID, "history": [{bundle, bundle_id, why, record, moved_at}, …]}

The last entry of the history is the bundle in use. Scoring and triage take the pointer in place of a bundle.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from typing import Any, Literal

from distributed.storage.bundles import read_bundle_id
from distributed.storage.location import Location, locate, read_versioned, write_if
from model.errors import BundleError, InputError, LeaseError
from model.json_text import parse_json

_KIND = "champion"
_KEYS = {"bundle", "bundle_id", "why", "record", "moved_at"}

Reason = Literal["promoted", "rolled back"]
Move = dict[str, Any]  # an entry of the history


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A pointer as it was read, and the version that a change of it has to name."""

    location: Location
    version: str
    history: tuple[Move, ...]  # oldest first; one at least

    @property
    def bundle(self) -> Location:
        """Location of the bundle in use."""
        return locate(self.history[-1]["bundle"])

    @property
    def bundle_id(self) -> str:
        """Id of the bundle in use."""
        return str(self.history[-1]["bundle_id"])

    @property
    def before(self) -> Move | None:
        """The promotion that the one in use replaced; None for the first."""
        promoted = list[Move]()
        for move in self.history:
            if move["why"] == "promoted":
                promoted.append(move)
            else:
                promoted.pop()
        return promoted[-2] if len(promoted) > 1 else None


def read_champion(location: Location) -> Champion | None:
    """The pointer that lies at a location; None where no file does.

    Raises:
        InputError: the file is no pointer.
    """
    found = read_versioned(location) if location.stat() else None
    if found is None:
        return None
    try:
        value = parse_json(found[0])
        history = tuple(value["history"])
        if value["kind"] != _KIND or not history or not all(move.keys() >= _KEYS for move in history):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{location.uri}: expected the pointer to a champion, found another file") from None
    return Champion(location=location, version=found[1], history=history)


def find_bundle(uri: str) -> Location:
    """The location of a bundle that a user names: its folder, or a pointer to it.

    Raises:
        InputError: the file is no pointer, or another bundle lies where it points to.
    """
    location = locate(uri)
    champion = read_champion(location)
    if champion is None:
        return location
    _check_there(champion.history[-1], location)
    return champion.bundle


def move_champion(
    location: Location,
    earlier: Champion | None,
    *,
    bundle: Location,
    bundle_id: str,
    why: Reason,
    record: str | None,
) -> Champion:
    """Points to another bundle, and keeps the history.

    Args:
        location: of the pointer.
        earlier: the pointer as it was read; None: there was none.
        bundle: what it shall point to.
        bundle_id: of that bundle.
        why: promoted, or rolled back.
        record: absolute URI of the comparison behind the move.

    Raises:
        LeaseError: somebody else moved it meanwhile; theirs stays.
    """
    move: Move = {
        "bundle": bundle.absolute_uri,
        "bundle_id": bundle_id,
        "why": why,
        "record": record,
        "moved_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    history = (*(earlier.history if earlier else ()), move)
    value = {"kind": _KIND, "bundle": move["bundle"], "bundle_id": bundle_id, "history": history}
    version = write_if(
        location, json.dumps(value, indent=1).encode() + b"\n", version=earlier.version if earlier else None
    )
    if version is None:
        raise LeaseError(
            f"{location.uri}: somebody else moved it meanwhile, and theirs stays; the same command looks at it anew"
        )
    return Champion(location=location, version=version, history=history)


def roll_back(location: Location) -> Champion:
    """Points to the bundle that was the champion before the one in use.

    Raises:
        InputError: there is no pointer, no earlier champion, or its bundle is gone or another.
        LeaseError: somebody else moved the pointer meanwhile.
    """
    champion = read_champion(location)
    if champion is None:
        raise InputError(f"{location.uri}: expected the pointer to a champion, found nothing")
    before = champion.before
    if before is None:
        raise InputError(
            f"{location.uri}: expected a champion before {champion.bundle_id}, found none: it is the first"
        )
    _check_there(before, location)
    return move_champion(
        location,
        champion,
        bundle=locate(before["bundle"]),
        bundle_id=before["bundle_id"],
        why="rolled back",
        record=before["record"],
    )


def _check_there(move: Move, pointer: Location) -> None:
    found = read_bundle_id(locate(move["bundle"]))
    if found != move["bundle_id"]:
        raise BundleError(
            f"{pointer.uri}: expected the bundle {move['bundle_id']} at {move['bundle']}, found {found}: "
            "each bundle needs a place of its own"
        )
