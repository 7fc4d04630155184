"""The skeleton of a labelled table: recorded by its writer, or named by the user; never guessed.

Only the footers are read.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import NamedTuple

import pyarrow as pa

from distributed.schema import num_keypoints, skeleton_name
from distributed.storage.location import Location, StoredFile, list_files, locate, read_again, read_bytes
from distributed.tables.manifest import freeze_pool
from distributed.tables.parquet import open_table
from model.errors import DamagedError, InputError
from model.skeleton import SKELETONS, Skeleton, read_skeleton

_THREADS = 16


class _Said(NamedTuple):
    """Keypoints and skeleton as the footer of one file has them."""

    path: str
    num_keypoints: int
    skeleton: str | None


def choose_skeleton(labelled: Location, *, named: str | None = None) -> Skeleton:
    """The skeleton of a labelled table.

    Args:
        labelled: location of the table.
        named: the user's word: lsp, mpii, coco or the location of a JSON file (see `model.skeleton`). Without it,
            the skeleton that the table's writer recorded; without that too, the one with as many keypoints.

    Raises:
        InputError: files of the table disagree with each other or with `named`, or there is no such skeleton.
    """
    said = _read_footers(labelled)
    recorded, count = said[0].skeleton, said[0].num_keypoints
    if named is not None:
        skeleton = _named(named)
    elif recorded is not None:
        if recorded not in SKELETONS:
            raise InputError(f"{labelled.uri}: written with the skeleton {recorded!r}: give its file as --skeleton")
        skeleton = SKELETONS[recorded]
    else:
        skeleton = _with_as_many(count, labelled)
    _check(labelled, said, skeleton)
    return skeleton


def check_skeleton(labelled: Location, skeleton: Skeleton) -> None:
    """Passes if all files of a labelled table have the skeleton's number of keypoints, and none is of another one.

    Raises:
        InputError: names the file, the expected and the found.
    """
    _check(labelled, _read_footers(labelled), skeleton)


def fingerprint_of(skeleton: Skeleton) -> str:
    """Hash of a skeleton: a file of the same name may have another one tomorrow."""
    return hashlib.sha256(json.dumps(asdict(skeleton), sort_keys=True).encode()).hexdigest()[:16]


def _check(labelled: Location, said: list[_Said], skeleton: Skeleton) -> None:
    for file in said:
        where = f"{labelled.uri}: {file.path}"
        if file.num_keypoints != skeleton.num_keypoints:
            found = f"{file.num_keypoints} keypoints" + (f" ({file.skeleton})" if file.skeleton else "")
            raise InputError(f"{where}: expected {skeleton.num_keypoints} keypoints ({skeleton.name}), found {found}")
        if file.skeleton not in (None, skeleton.name):
            raise InputError(f"{where}: expected the skeleton {skeleton.name!r}, found {file.skeleton!r}")


def _named(name: str) -> Skeleton:
    if name in SKELETONS:
        return SKELETONS[name]
    if not name.endswith(".json"):
        raise InputError(f"--skeleton: expected {', '.join(SKELETONS)} or a .json file, found {name!r}")
    return read_skeleton(read_bytes(locate(name)), where=name)


def _with_as_many(count: int, labelled: Location) -> Skeleton:
    for skeleton in SKELETONS.values():
        if skeleton.num_keypoints == count:
            return skeleton
    known = ", ".join(f"{skeleton.name} {skeleton.num_keypoints}" for skeleton in SKELETONS.values())
    raise InputError(f"{labelled.uri}: {count} keypoints: expected those of {known}, or a --skeleton file; found none")


def _read_footers(labelled: Location) -> list[_Said]:
    """The footers of all readable files; the others are recorded when the table is frozen."""
    stored = list_files(labelled, suffix=".parquet")
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="skeletons") as threads:
        found = list(threads.map(lambda file: _read_footer(labelled, file), stored))
    said = [each for each in found if each is not None]
    if not said:
        freeze_pool(labelled)  # says why
        raise InputError(f"{labelled.uri}: expected a labelled table, found no file that can be read")
    return said


def _read_footer(labelled: Location, stored: StoredFile) -> _Said | None:
    path = stored.path[len(labelled.path) + 1 :] or stored.base_name  # the table may be one file
    if not stored.size:
        return None

    def read(where: Location) -> pa.Schema:
        with open_table(where, size=stored.size) as reader:
            return reader.schema_arrow

    try:
        schema = read_again(read, Location(labelled.filesystem, stored.path, path))
    except DamagedError:
        return None
    return _Said(path, num_keypoints(schema, where=f"{labelled.uri}: {path}"), skeleton_name(schema))
