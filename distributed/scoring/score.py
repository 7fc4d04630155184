"""Scoring a pool: its missing rows are scored (`pipeline`), and its scores table is published."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from distributed.runs.lease import hold
from distributed.runs.logbook import State
from distributed.runs.progress import Progress
from distributed.runs.record import begin_run, check_run, publish_run, read_run, run_version
from distributed.schema import DAMAGED
from distributed.scoring.ledger import check_complete, choose_parts, drop_damaged, merge_parts, missing_segments
from distributed.scoring.options import ScoringOptions
from distributed.scoring.pipeline import Work, run_all, score_work, settle, spread_tasks
from distributed.storage.bundles import read_bundle_id, read_description
from distributed.storage.champion import find_bundle
from distributed.storage.location import Location, StoredFile, delete_files, locate, write_bytes
from distributed.tables.manifest import Manifest, UnusablePoolError, freeze_pool, read_manifest
from distributed.tables.references import find_root
from distributed.tables.scores import (
    ScoresPart,
    find_parts,
    index_parts,
    list_parts,
    merge_quantiles,
    sum_damaged,
    sum_errors,
)
from model.errors import InputError, RunFailedError, StoppedError

MAX_ROW_GROUP_BYTES = 512 * 2**20  # uncompressed; a row group is read at once
_LARGE_BYTES = 160 * 2**20  # the contract says 64 to 128 MiB, and writers miss their aim a little
_SMALL_BYTES = 8 * 2**20  # below, requests and decoding of headers cost more than the bytes
_MANY = 64  # small row groups do no harm to a small pool
_MANIFEST_FILE = "manifest.json"


def _never() -> bool:
    return False


def score_pool(
    pool: str,
    *,
    model: str,
    out: str,
    options: ScoringOptions,
    config: dict[str, Any],
    progress: Progress,
    files: Sequence[StoredFile] | None = None,
    should_stop: Callable[[], bool] = _never,
) -> dict[str, Any]:
    """Scores every row of a pool and publishes the scores table; returns its record (run.json).

    Every pool row ends as exactly one scores row: with a predicted loss, or with the reason why there is none. What an
    earlier call scored of the same files is kept: so a call that was stopped goes on, and files that are new or were
    replaced since the last one are scored and the others are not. What could not be read is tried again. With nothing
    to do, the published record is returned with `was_done`; with `num_rows_here`, the rows that this process
    scored because Ray would not have been faster. Nothing that is published depends on who scored.

    Args:
        pool: location of a pool or labelled table.
        model: location of a model bundle, or of a pointer to one.
        out: location of the scores.
        options: how the work is spread, and which columns come out.
        config: the resolved configuration, kept beside the output; what decides the scores is added here.
        progress: told of every batch.
        files: those of the pool that are meant, as they were listed; None: all.
        should_stop: asked all the time; once it says yes, what is begun is finished and kept.

    Raises:
        InputError: pool, bundle or output cannot be used.
        LeaseError: another run of this output is at work.
        StoppedError: `should_stop` said yes; the same call goes on.
        RunFailedError: storage or compute failed; the same call goes on.
    """
    bundle, source, target = find_bundle(model), locate(pool), locate(out)
    check_apart(source, target)
    described = read_description(bundle)
    described.check_usable(views=options.views)
    root = find_root(options.image_root)
    manifest = freeze_pool(
        source,
        metadata=options.metadata,
        files=files,
        earlier=read_manifest(target.join(_MANIFEST_FILE), source),
        spread=partial(spread_tasks, options),
        image_root=root,
    )
    warnings = check_row_groups(manifest)
    identity = {
        "kind": "scores",
        "bundle_id": described.bundle_id,
        "pool": f"{source.filesystem.type_name}://{source.path}",
        "columns": _columns(options),
        "views": options.views,
        "device": options.device,
        "precision": options.precision or ("float32" if options.device == "cpu" else "default"),
        "norms": "folded",  # into convolutions: an earlier lossight's scores have other last bits
        "image_root": root and f"{root.filesystem.type_name}://{root.path}",
    }
    ignored = frozenset(config) - identity.keys()
    check_run(target, config, inputs=identity, ignored=ignored)
    is_new = not _has_all(_published(target), manifest)
    if is_new:  # before anything is written; what is done already needs no cluster
        options = settle(options, num_rows=manifest.num_rows, input_size=described.spec.input_size)
    for warning in warnings:
        logging.getLogger("lossight").warning(warning)
    with hold(target) as lease:
        should_stop = lease.ends(should_stop)
        begin_run(target, config, inputs=identity, ignored=ignored)
        version, published = run_version(target), _published(target)
        earlier = list[str](published.get("parts", []))
        found = find_parts(target, footers=dict(zip(earlier, published.get("part_footers", []), strict=False)))
        if _is_done(published, manifest, found):
            lease.check()
            delete_files(target, _leftovers(target, published))  # of a run that was killed after it had published
            return {**published, "was_done": True}
        options = settle(
            options,
            num_rows=manifest.num_rows,
            input_size=described.spec.input_size,
            is_after_death=lease.is_after_death,
        )
        _note(target, manifest, found)
        kept = drop_damaged(target, choose_parts(found, manifest, published=earlier))
        work = Work(
            manifest=manifest,
            segments=missing_segments(manifest, kept),
            model=bundle,
            bundle_id=described.bundle_id,
            out=target,
        )

        started = time.monotonic()
        scored = score_work(
            work, options, input_size=described.spec.input_size, progress=progress, should_stop=should_stop
        )
        parts, state = [*kept, *scored.parts], scored.state
        if should_stop():
            num_kept = sum(part.num_rows for part in parts)
            raise StoppedError(f"{out}: stopped; {num_kept} of {manifest.num_rows} rows are scored and kept")
        bad_files = {**{file.path: file.reason for file in manifest.bad_files}, **state.bad_files}
        if bad_files.keys() >= {file.path for file in manifest.files}:
            raise UnusablePoolError(f"{pool}: no readable file; {': '.join(min(bad_files.items()))}")
        current = {file.file_id for file in manifest.files if file.path not in bad_files}
        parts = merge_parts(target, parts, current=current, run_all=partial(run_all, scored.options))
        check_complete(manifest, parts, without=bad_files)
        record = _record(work, parts, bad_files, state, seconds=time.monotonic() - started)
        record["superseded"] = sorted(set(earlier) - set(record["parts"]))  # somebody may be reading the last record
        leftovers = _leftovers(target, record)  # before the check: they are surely ours
        index_parts(target, parts)
        lease.check()
        if (bundle_id := read_bundle_id(bundle)) != work.bundle_id:
            raise InputError(
                f"{model}: expected the bundle {work.bundle_id} that the run began with, found {bundle_id}"
            )
        origin = {
            "bundle_id": work.bundle_id,
            "calibration": described.calibration and asdict(described.calibration),
            "warnings": list(described.doubts),
            "config": config,
            "pool": source.absolute_uri,
            "image_root": root and root.absolute_uri,
            "model": bundle.absolute_uri,
            "attempt": lease.attempt,
            "batch_size": options.batch_size,
        }
        full = publish_run(target, {**record, **origin}, replaces=version)
        delete_files(target, leftovers)
        return {**full, "num_rows_here": scored.num_rows_here} if scored.num_rows_here else full


def check_apart(source: Location, target: Location) -> None:
    """Refuses an output inside its own pool: its files would be taken for files of the pool.

    Raises:
        InputError: it would lie there.
    """
    if target.filesystem == source.filesystem and f"{target.path}/".startswith(f"{source.path}/"):
        raise InputError(f"{target.uri}: expected a place outside the pool {source.uri}, found one inside")


def check_row_groups(manifest: Manifest) -> list[str]:
    """Warnings of row groups that are slow to read or need much memory, a line each.

    Raises:
        InputError: a row group is larger than an actor can hold.
    """
    for file in manifest.files:
        largest = max(file.row_group_bytes, default=0)
        if largest > MAX_ROW_GROUP_BYTES:
            raise InputError(
                f"{manifest.location.join(file.path).uri}: expected row groups of at most "
                f"{MAX_ROW_GROUP_BYTES >> 20} MiB, found {largest >> 20} MiB: ingest it again"
            )
    sizes = [size for file in manifest.files if not file.has_references for size in file.row_group_bytes]
    num_small, num_large = sum(size < _SMALL_BYTES for size in sizes), sum(size > _LARGE_BYTES for size in sizes)
    warnings = []
    if num_small > max(_MANY, len(sizes) // 2):
        warnings.append(
            f"{manifest.location.uri}: {num_small} of {len(sizes)} row groups in {len(manifest.files)} files are under "
            f"{_SMALL_BYTES >> 20} MiB: reading them is slow; `lossight ingest` writes 64 MiB"
        )
    if num_large:
        warnings.append(
            f"{manifest.location.uri}: {num_large} of {len(sizes)} row groups are over {_LARGE_BYTES >> 20} MiB: "
            f"each is held in memory at once; `lossight ingest` writes 64 MiB"
        )
    return warnings


def _published(out: Location) -> dict[str, Any]:
    """The published record; empty without one."""
    return read_run(out, expected="scores") if run_version(out) else {}


def _has_all(published: dict[str, Any], manifest: Manifest) -> bool:
    """True if the published record is of this pool as it is, and no read failed on the way."""
    if not published or published["pool_fingerprint"] != manifest.fingerprint:
        return False
    is_sound = set(published["bad_files"]) <= {file.path for file in manifest.bad_files}
    return is_sound and DAMAGED not in published["errors"]


def _is_done(published: dict[str, Any], manifest: Manifest, parts: Sequence[ScoresPart]) -> bool:
    """True if, besides, no part is lost."""
    return _has_all(published, manifest) and set(published["parts"]) <= {part.path for part in parts}


def _note(out: Location, manifest: Manifest, parts: Sequence[ScoresPart]) -> None:
    """Leaves what a later run need not look into again, pool files and parts."""
    write_bytes(out.join(_MANIFEST_FILE), manifest.as_bytes())
    index_parts(out, parts)


def _leftovers(out: Location, record: dict[str, Any]) -> list[str]:
    """Files among the parts that a record does not name, drafts of killed writers included.

    Raises:
        RunFailedError: a part that it names is not there.
    """
    found = set(list_parts(out, with_drafts=True))
    if lost := set(record["parts"]) - found:
        raise RunFailedError(f"{out.join(*min(lost).split('/')).uri}: expected the part that was written, found none")
    return sorted(found - {*record["parts"], *record["superseded"]})


def _columns(options: ScoringOptions) -> list[str]:
    """The optional columns."""
    asked = {"keypoints": options.keypoints, "embedding": options.embeddings}
    return [*(name for name, is_asked in asked.items() if is_asked), *options.metadata]


def _record(
    work: Work, parts: Sequence[ScoresPart], bad_files: dict[str, str], state: State, *, seconds: float
) -> dict[str, Any]:
    errors = sum_errors(parts)
    num_rows = sum(part.num_rows for part in parts)
    num_failed = sum(count.num_rows for count in errors.values())
    num_lost = _num_lost(work.manifest, bad_files)
    return {
        "kind": "scores",
        "pool_fingerprint": work.manifest.fingerprint,
        "parts": [part.path for part in parts],
        "part_footers": [part.footer for part in parts],
        "num_rows": num_rows,
        "num_scored": num_rows - num_failed,
        "num_new_rows": work.num_rows,
        "num_restarts": state.num_restarts,
        "errors": {reason: count.num_rows for reason, count in errors.items()},
        "error_examples": {reason: list(count.examples) for reason, count in errors.items()},
        "bad_files": dict(sorted(bad_files.items())),
        "damaged_files": sum_damaged(parts),
        "loss_quantiles": list(merge_quantiles(parts)),
        "error_rate": (num_failed + num_lost) / max(num_rows + num_lost, 1),
        "seconds": round(seconds, 3),
        "stage_seconds": {stage: round(value, 3) for stage, value in sorted(state.seconds.items())},
        "images_per_second": round(work.num_rows / seconds, 1),
    }


def _num_lost(manifest: Manifest, bad_files: Collection[str]) -> float:
    """Rows of the bad files; where they are unknown, a file counts as one of average size."""
    known = {file.path: file.num_rows for file in manifest.files}
    average = manifest.num_rows / len(manifest.files)
    return sum(known.get(path, average) for path in bad_files)
