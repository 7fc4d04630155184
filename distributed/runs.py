"""A run and its record: an output is visible only when its run.json is, and run.json is written last.

config.json  the resolved configuration, written first; under "inputs" what it met (bundle, fingerprints)
…            what the run writes
run.json     the record: versions, counts, files
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

from pyarrow import fs

from distributed.storage import Location, list_files, read_bytes, write_bytes, write_new
from model.errors import InputError

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
INPUTS = "inputs"  # the key of config.json that is no option
_MARKS = (CONFIG_FILE, RUN_FILE)

_VERSIONED = ("lossight", "ray", "torch", "pyarrow", "numpy")


def begin_run(
    out: Location,
    config: dict[str, Any],
    *,
    inputs: dict[str, Any] | None = None,
    ignored: frozenset[str] = frozenset(),
) -> bool:
    """True when there is work to do; False when this very run is already published.

    Args:
        out: the output's folder; created by writing the configuration into it.
        config: the resolved configuration, JSON values only; may be given back as --config.
        inputs: what it met that decides the result too: fingerprints, ids.
        ignored: keys of the configuration that say how the work is done, not what comes out.

    Raises:
        InputError: the folder holds another run (the differing keys are named) or something that is no run.
    """
    earlier = out.join(CONFIG_FILE)
    if earlier.exists:
        _check_same(out, _flat(_read_object(earlier)), {**config, **(inputs or {})}, ignored)
        return not out.join(RUN_FILE).exists
    if out.info().type == fs.FileType.File or (out.exists and list_files(out, suffix="")):
        raise InputError(f"{out.uri}: expected an empty folder or an earlier run of the same, found something else")
    if write_new(earlier, _json({**config, INPUTS: inputs or {}})):
        return True
    return begin_run(out, config, inputs=inputs, ignored=ignored)  # somebody else began in the meantime


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in config.items() if key != INPUTS}, **config.get(INPUTS, {})}


def publish_run(out: Location, record: dict[str, Any]) -> dict[str, Any]:
    """Makes the output visible: writes run.json with the versions added, and returns it."""
    full = {**record, "finished_at": _now(), "python": platform.python_version(), "versions": _versions()}
    write_bytes(out.join(RUN_FILE), _json(full))
    return full


def read_run(location: Location, *, expected: str) -> dict[str, Any]:
    """The record of a published run of the expected kind.

    Raises:
        InputError: nothing is there, the run is unfinished (so nothing of it is read), or it is of another kind.
    """
    record_file = location.join(RUN_FILE)
    if not record_file.exists:
        if location.join(CONFIG_FILE).exists:
            raise InputError(f"{location.uri}: expected finished {expected}, found an unfinished run: run it again")
        found = "something else" if location.exists else "nothing"
        raise InputError(f"{location.uri}: expected {expected} with a {RUN_FILE}, found {found}")
    record = _read_object(record_file)
    if record.get("kind") != expected:
        raise InputError(f"{location.uri}: expected {expected}, found {record.get('kind')}")
    return record


def unfinished_folders(infos: Sequence[fs.FileInfo]) -> list[str]:
    """The folders, among those that the files lie in, where a run of ours began and has not published."""
    folders = {name: {info.path.rpartition("/")[0] for info in infos if info.base_name == name} for name in _MARKS}
    return sorted(folders[CONFIG_FILE] - folders[RUN_FILE])


def _check_same(out: Location, earlier: dict[str, Any], config: dict[str, Any], ignored: frozenset[str]) -> None:
    config = json.loads(_json(config))
    differing = [
        f"{key} (was {earlier.get(key)!r}, is {config.get(key)!r})"
        for key in sorted((earlier.keys() | config.keys()) - ignored)
        if earlier.get(key) != config.get(key)
    ]
    if differing:
        kind = "another run" if out.join(RUN_FILE).exists else "an unfinished other run"
        raise InputError(
            f"{out.uri}: holds {kind}; differing: {', '.join(differing)}; remove it or choose another --out"
        )


def _read_object(location: Location) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(location))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{location.uri}: expected a JSON object, found something else")
    return value


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _VERSIONED}


def _version(name: str) -> str | None:
    """None where it is not installed: lossight runs from a checkout, and scores without Ray."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
