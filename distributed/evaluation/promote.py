"""Promotion: a challenger is compared with the champion on held-out rows, and the pointer moves if it is no worse.

POINTER                                 see `distributed.storage.champion`
promotions/CHALLENGER-HASH beside it    config.json, and run.json with the comparison; a comparison is made once
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from distributed.evaluation.compare import compare_rows, is_worse
from distributed.evaluation.held_out import check_held_out
from distributed.evaluation.options import PromoteOptions
from distributed.evaluation.rows import Observed, evaluate_rows, observed
from distributed.evaluation.slices import read_columns, slice_columns
from distributed.evaluation.summary import summarise, summarise_reliability
from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.storage.bundles import read_bundle
from distributed.storage.champion import Champion, find_bundle, move_champion, read_champion
from distributed.storage.location import Location, locate
from distributed.tables.labelled import freeze_labelled
from distributed.tables.manifest import Manifest
from distributed.tables.references import find_root
from model.bundle import Bundle
from model.description import find_doubts
from model.errors import InputError
from model.predictor import check_device

_FOLDER = "promotions"
_KEPT = ("pck", "spearman", "pck_of_worst", "num_rows", "num_errors")  # of `summarise`


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A bundle in a comparison."""

    place: Location
    bundle: Bundle


def promote(options: PromoteOptions, *, progress: Progress = silent) -> dict[str, Any]:
    """Compares a challenger with the champion, and points to it if it is no worse; returns the comparison's record.

    It is no worse where no interval of a PCK difference begins below its margin: see `compare_rows`. The first
    challenger has no rival. With `is_champion` the challenger was the champion already, and nothing else is there; else
    `is_moved` says whether the pointer moved now.

    Raises:
        InputError: a bundle, a table or the pointer cannot be used; rows are some that a bundle was trained on.
        LeaseError: somebody else moved the pointer meanwhile; theirs stays.
    """
    if options.challenger is None or options.on is None:
        raise ValueError("expected a challenger and labelled rows")
    pointer = locate(options.champion)
    if pointer.exists and not pointer.stat():
        raise InputError(f"{pointer.uri}: expected the pointer to a champion, a file, found a folder")
    champion = read_champion(pointer)
    rivals = _read_rivals(options.challenger, champion)
    challenger = rivals["challenger"]
    if champion and champion.bundle_id == challenger.bundle.bundle_id:
        return {"is_champion": True, "bundle_id": champion.bundle_id}
    for rival in rivals.values():
        rival.bundle.model.check_taught()
        rival.bundle.model.check_views(options.views)
    check_device(options.device)
    root = find_root(options.image_root)
    tables = {
        name: freeze_labelled(locate(uri), skeleton=challenger.bundle.spec.skeleton, image_root=root)
        for name, uri in (("held-out", options.on), ("selection", options.selection))
        if uri is not None
    }
    unknown = [check_held_out(rows, each.bundle, each.place) for rows in tables.values() for each in rivals.values()]
    columns = {name: slice_columns(rows, options.slices) for name, rows in tables.items()}
    identity = {
        "kind": "promotion",
        "challenger": challenger.bundle.bundle_id,
        "champion": champion and champion.bundle_id,
        **{f"{name.replace('-', '_')}_fingerprint": rows.fingerprint for name, rows in tables.items()},
    }
    record_place = pointer.parent.join(_FOLDER, f"{challenger.bundle.bundle_id}-{_hash(options, identity)}")
    if begin_run(record_place, options.resolved(), inputs=identity, ignored=options.undecisive()):
        compared = {
            name: _compare(options, rows, rivals, columns=columns[name], name=name, progress=progress)
            for name, rows in tables.items()
        }
        doubts = find_doubts(challenger.bundle.metrics, challenger.bundle.calibration)
        record = {
            **identity,
            "bundle": challenger.place.absolute_uri,
            "tables": compared,
            "warnings": [*filter(None, dict.fromkeys(unknown)), *doubts],
        }
        publish_run(record_place, {**record, "is_no_worse": not any(map(is_worse, _comparisons(record)))})
    record = read_run(record_place, expected="promotion")
    if record["is_no_worse"]:
        move_champion(
            pointer,
            champion,
            bundle=challenger.place,
            bundle_id=challenger.bundle.bundle_id,
            why="promoted",
            record=record_place.absolute_uri,
        )
    return {**record, "is_champion": False, "is_moved": record["is_no_worse"], "record": record_place.absolute_uri}


def worse_parts(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Names of the tables and the comparisons in them that speak against a challenger."""
    return [(name, each) for name, table in record["tables"].items() for each in table["comparisons"] if is_worse(each)]


def _comparisons(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for table in record["tables"].values() for each in table["comparisons"]]


def _read_rivals(challenger: str, champion: Champion | None) -> dict[str, Rival]:
    place = find_bundle(challenger)
    rivals = {"challenger": Rival(place=place, bundle=read_bundle(place))}
    if champion is None:
        return rivals
    place = find_bundle(champion.location.uri)
    rivals["champion"] = Rival(place=place, bundle=read_bundle(place))
    expected, found = (rivals[name].bundle.spec.skeleton for name in ("champion", "challenger"))
    if expected != found:
        raise InputError(
            f"{challenger}: expected the champion's skeleton {expected.name!r} of {expected.num_keypoints} keypoints, "
            f"found {found.name!r} of {found.num_keypoints}"
            + (", differently defined" if expected.name == found.name else "")
        )
    return rivals


def _hash(options: PromoteOptions, identity: dict[str, Any]) -> str:
    decisive = json.dumps([options.decisive(), identity], sort_keys=True)
    return hashlib.sha256(decisive.encode()).hexdigest()[:8]


def _tell(
    progress: Progress, role: str, stage: str, done: int, total: int, *, num_errors: int = 0, note: str = ""
) -> None:
    """Tells of an evaluation under the name of the bundle that is evaluated."""
    del stage
    progress(role, done, total, num_errors=num_errors, note=note)


def _compare(
    options: PromoteOptions,
    rows: Manifest,
    rivals: dict[str, Rival],
    *,
    columns: list[str],
    name: str,
    progress: Progress,
) -> dict[str, Any]:
    """Both bundles over one table: metrics of each, and the comparisons; none without a champion."""
    found = dict[str, Observed]()
    metrics = dict[str, Any]()
    for role, rival in rivals.items():
        evaluated = evaluate_rows(
            rival.bundle,
            rows,
            batch_size=options.batch_size,
            device=options.device,
            decode_threads=options.decode_threads,
            views=options.views,
            progress=partial(_tell, progress, role),
        )
        found[role] = observed(evaluated)
        summary = summarise(evaluated, spec=rival.bundle.spec)
        reliability = summarise_reliability(found[role], rival.bundle.calibration)
        metrics[role] = {key: summary[key] for key in _KEPT} | {
            "expected_calibration_error": reliability and reliability["expected_calibration_error"]
        }
    if not (found["challenger"].num_judged > 0).any():
        raise InputError(f"{rows.location.uri}: expected a row whose PCK can be told, found none")
    comparisons = []
    if "champion" in found:
        values = read_columns(rows, columns)
        comparisons = compare_rows(**found, columns=values, is_slice=name != "held-out")
    return {**metrics, "comparisons": comparisons}
