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

from distributed.storage.location import Location, StoredFile, list_files, read_bytes, write_bytes, write_if
from model.errors import InputError, LeaseError
from model.json_text import parse_json

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
    check_run(out, config, inputs=inputs, ignored=ignored)
    earlier = out.join(CONFIG_FILE)
    if earlier.exists:
        return not out.join(RUN_FILE).exists
    if write_if(earlier, _json({**config, INPUTS: inputs or {}}), version=None) is not None:
        return True
    return begin_run(out, config, inputs=inputs, ignored=ignored)  # somebody else began in the meantime


def replace_config(out: Location, config: dict[str, Any], *, inputs: dict[str, Any]) -> None:
    """Writes the configuration of a run over that of an attempt that has published nothing and goes on otherwise."""
    write_bytes(out.join(CONFIG_FILE), _json({**config, INPUTS: inputs}))


def check_run(
    out: Location,
    config: dict[str, Any],
    *,
    inputs: dict[str, Any] | None = None,
    ignored: frozenset[str] = frozenset(),
) -> None:
    """Passes where `begin_run` would; touches nothing.

    Raises:
        InputError: as `begin_run`.
    """
    earlier = out.join(CONFIG_FILE)
    if earlier.exists:
        _check_same(out, _flat(_read_object(earlier)), {**config, **(inputs or {})}, ignored)
    else:
        _check_empty(out)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in config.items() if key != INPUTS}, **config.get(INPUTS, {})}


def check_usable(out: Location) -> None:
    """Nothing, where a run may write: no folder, an empty one, or a run's. Touches nothing.

    Raises:
        InputError: something that is no run lies there.
    """
    if not out.join(CONFIG_FILE).exists:
        _check_empty(out)


def publish_run(out: Location, record: dict[str, Any], *, replaces: str | None = None) -> dict[str, Any]:
    """Makes the output visible: writes run.json with the versions added, and returns it.

    Args:
        out: the output's folder.
        record: kind, counts, files; JSON values only.
        replaces: the version of the run.json that this one follows; None: there is none yet.

    Raises:
        LeaseError: another run of the same output was faster; its record stays.
    """
    full = {**record, "finished_at": _now(), "python": platform.python_version(), "versions": _versions()}
    if write_if(out.join(RUN_FILE), _json(full), version=replaces) is None:
        raise LeaseError(f"{out.uri}: another run has published it meanwhile")
    return full


def run_version(out: Location) -> str | None:
    """The version of the published record, for `publish_run` to replace; None where nothing is published."""
    found = out.join(RUN_FILE).stat()
    return found and found.version


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
    if expected == "scores":
        _check_parts(record_file, record)
    return record


def _check_parts(record_file: Location, record: dict[str, Any]) -> None:
    """Refuses a record of scores that was altered: its parts must be files below its folder, where there are rows."""
    parts = record.get("parts", [])
    is_sound = isinstance(parts, list) and all(isinstance(part, str) and _is_below(part) for part in parts)
    if not is_sound or bool(parts) != bool(record.get("num_rows")):
        raise InputError(f"{record_file.uri}: expected paths of parts below its folder, found {str(parts)[:100]}")


def _is_below(path: str) -> bool:
    return not {"", ".", ".."} & {*path.split("/")}


def read_config(location: Location) -> dict[str, Any]:
    """The configuration that a run wrote beside its output, without what it met.

    Raises:
        InputError: there is none.
    """
    return {key: value for key, value in _read_object(location.join(CONFIG_FILE)).items() if key != INPUTS}


def read_inputs(location: Location) -> dict[str, Any]:
    """Ids and fingerprints of a run's inputs when it began; empty where none began.

    Raises:
        InputError: its config.json is none.
    """
    begun = location.join(CONFIG_FILE)
    return dict(_read_object(begun).get(INPUTS, {})) if begun.exists else {}


def unfinished_folders(files: Sequence[StoredFile]) -> list[str]:
    """The folders, among those that the files lie in, where a run of ours began and has not published."""
    folders = {name: {file.path.rpartition("/")[0] for file in files if file.base_name == name} for name in _MARKS}
    return sorted(folders[CONFIG_FILE] - folders[RUN_FILE])


def _check_empty(out: Location) -> None:
    if out.info().type == fs.FileType.File or _holds_files(out):
        raise InputError(f"{out.uri}: expected an empty folder or an earlier run of the same, found something else")


def _holds_files(folder: Location) -> bool:
    try:
        return bool(list_files(folder, suffix=""))
    except InputError:  # no such folder; of an empty one, object stores differ in whether it is there
        return False


def _check_same(out: Location, earlier: dict[str, Any], config: dict[str, Any], ignored: frozenset[str]) -> None:
    config = json.loads(_json(config))
    if "kind" in config and earlier.get("kind") != config["kind"]:
        raise InputError(
            f"{out.uri}: expected {config['kind']} or an empty folder, found another output; choose another"
        )
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
        value = parse_json(read_bytes(location))
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
