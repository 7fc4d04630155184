"""Labels back: a labelling tool's export of a selection becomes labelled rows, with all that the pool has of them.

OUT/part-*.parquet   the labelled table
OUT/returned.json    each selected row by rank, and what became of it
OUT/skeleton.json    the skeleton, if it is none of ours
OUT/run.json         the published record: counts, rejections by reason, and the ids of whatever is at fault

# K keypoints
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from distributed.ingest.answers import Answer, Claims, ToolExport
from distributed.ingest.coco import read_coco
from distributed.ingest.cvat import read_cvat
from distributed.ingest.ingest import keep_skeleton
from distributed.ingest.label_studio import read_label_studio
from distributed.ingest.options import IngestOptions
from distributed.ingest.returned import Row, write_returned
from distributed.ingest.settle import FAULTS, Rules, Settled, settle
from distributed.reporting.formats import within
from distributed.reporting.origin import Origin, read_origin
from distributed.reporting.rows import INDEX, Missing, Pool, Poses, read_rows, read_scored_rows
from distributed.runs.progress import Progress
from distributed.runs.record import begin_run, check_run, publish_run, read_run, run_version
from distributed.schema import POOL, labelled
from distributed.storage.location import Location, locate
from distributed.tables.labelled import named_skeleton
from distributed.tables.parquet import open_table, write_groups
from distributed.tables.reader import image_buffers
from model.errors import ImageError, InputError
from model.image import image_size
from model.skeleton import Skeleton, skeleton_of_names

_LABELS = ("keypoints", "visibility")
_MOST_REPORTED = 1000  # ids of a fault in the record; returned.json has all

_READ: dict[str, Callable[[Location], ToolExport]] = {
    "coco": read_coco,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
}


@dataclass
class _Outcomes:
    """Outcomes of selected rows by their place; and answers that belong to none."""

    rows: dict[int, Settled] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)  # ids, or names of images, that were never selected
    edited: list[str] = field(default_factory=list)  # images whose id and name are of two rows

    def places(self, *outcomes: str) -> list[int]:
        return [place for place, settled in sorted(self.rows.items()) if settled.outcome in outcomes]


def take_labels(options: IngestOptions, *, progress: Progress) -> dict[str, Any]:
    """Publishes the labelled rows of a tool's export as a table; returns its record (run.json).

    Rows have id, group, time, box, image and all other columns of the pool's, and the keypoints of the export, ordered
    by name. A row is left out, and counted by its outcome, where nobody answered, an annotator skipped or rejected it,
    a prediction was not touched, or something is at fault (`settle.FAULTS`).

    Args:
        options: with the selection that was exported; the source is the tool's export, a file. Without a skeleton the
            keypoints' order is that of the bundle which scored, or, where it is gone, of the known skeleton with the
            same names, or the file's own.
        progress: told of every batch.

    Raises:
        InputError: an input can't be used, no row of it is of the selection, or none has a label.
        RunFailedError: the store failed.
    """
    if options.selection is None:
        raise InputError("--selection: expected the selection that was exported, found none")
    source = options.source
    origin, target = read_origin(options.selection), locate(options.out)
    export = _READ[options.kind](locate(source))
    if not export.answers:
        raise InputError(f"{source}: expected images with annotations, found an empty export")
    chosen = _skeleton(export, origin, named=options.skeleton, source=source)
    answers, outcomes = _claimed(export, origin, source=source)
    inputs = {"selection_fingerprint": origin.fingerprint, "annotations_fingerprint": export.fingerprint}
    inputs["skeleton_fingerprint"] = chosen.fingerprint
    config, ignored = options.resolved(), IngestOptions.undecisive() | {"skeleton"}
    check_run(target, config, inputs=inputs, ignored=ignored)
    if run_version(target):
        return {**read_run(target, expected="table"), "was_done": True}
    posed = sorted(place for place, own in answers.items() if any(each.verdict == "pose" for each in own))
    for place in answers.keys() - {*posed}:
        outcomes.rows[place] = settle(answers[place], size=None, predicted=None, rules=Rules(skeleton=chosen))
    rules = Rules(skeleton=chosen, take=options.take, annotators=options.annotators, rounding_px=export.rounding_px)
    schema, tables = _tables(
        origin, {place: answers[place] for place in posed}, outcomes, rules=rules, progress=progress
    )
    first = [*itertools.islice(tables, 1)]
    if not first:
        raise InputError(
            f"{source}: expected at least one labelled row, found none: "
            + ", ".join(f"{count} {outcome}" for outcome, count in _count(origin, outcomes).items())
            + ("; --take all takes untouched predictions" if outcomes.places("untouched") else "")
        )
    begin_run(target, config, inputs=inputs, ignored=ignored)
    num_rows = write_groups(target, itertools.chain(first, tables), schema)
    keep_skeleton(target, chosen)
    write_returned(target, _returned(origin, outcomes))
    return publish_run(
        target,
        {
            "kind": "table",
            "table": "labelled",
            "num_rows": num_rows,
            "tool": options.kind,
            "selection": origin.location.absolute_uri,
            **inputs,
            "num_selected": len(origin.selected),
            "outcomes": _count(origin, outcomes),
            "rejected": dict(
                Counter(each.why or "no reason given" for each in outcomes.rows.values() if each.outcome == "rejected")
            ),
            "confirmed_seconds": _median_seconds(outcomes, "confirmed"),
            "faults": _faults(origin, outcomes),
            "keypoints_outside": sum(each.num_outside for each in outcomes.rows.values()),
            "notes": list(export.notes),
        },
    )


def _skeleton(export: ToolExport, origin: Origin, *, named: str | None, source: str) -> Skeleton:
    if named is not None:
        skeleton = named_skeleton(named)
    elif origin.described is not None:
        skeleton = origin.described.spec.skeleton
    elif export.names:
        skeleton = skeleton_of_names(export.names, name="own", limbs=export.limbs)
    else:
        raise InputError(f"{source}: expected keypoints, found none: nobody has placed one")
    unknown = [name for name in export.names if name not in skeleton.keypoint_names]
    lacking = [name for name in skeleton.keypoint_names if name not in export.names] if export.lists_all else []
    if unknown or lacking:
        found = f"{unknown[0]!r}, which it has not" if unknown else f"no {lacking[0]!r}"
        raise InputError(
            f"{source}: expected the {skeleton.num_keypoints} keypoints of {skeleton.name}, found {found}: it is of "
            "another project, or --skeleton names the wrong one"
        )
    return skeleton


def _claimed(export: ToolExport, origin: Origin, *, source: str) -> tuple[dict[int, list[Answer]], _Outcomes]:
    """The answers by the place of their row in the selection; and those that have none, as outcomes."""
    claims, outcomes = Claims(origin.selected), _Outcomes()
    answers: dict[int, list[Answer]] = {}
    for answer in export.answers:
        claim = claims.of(answer)
        if claim.place is not None:
            answers.setdefault(claim.place, []).append(answer)
        elif claim.other:
            outcomes.edited.append(claim.other)
        else:
            outcomes.strangers.append(answer.sample_id or answer.image)
    if not answers:
        first = [*outcomes.edited, *outcomes.strangers][0]
        raise InputError(
            f"{source}: expected images of the selection {origin.location.uri}, found none of its "
            f"{len(origin.selected)} among {len(export.answers)}; the first is {first!r}: it is of another selection, "
            "or its images were renamed"
        )
    return answers, outcomes


def _tables(
    origin: Origin, answers: dict[int, list[Answer]], outcomes: _Outcomes, *, rules: Rules, progress: Progress
) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """The labelled table's schema and rows, from the pool; `outcomes` learns of each row as it is read."""
    places = sorted(answers)
    chosen = origin.selected.take(pa.array(places, pa.int64()))
    stored = read_scored_rows(origin.read_parts(), chosen).keypoints
    poses = Poses(stored, bundle=None if stored else origin.load_bundle())
    is_told = all(each.is_submitted for own in answers.values() for each in own)
    if poses.source == "none" and not is_told and rules.take != "all":
        raise InputError(
            f"{origin.location.uri}: expected scores with keypoints, or the bundle that made them, to tell labels from "
            "untouched predictions, found neither; --take all takes both"
        )
    missing = Missing()
    pools = [Pool(location=table.pool, image_root=table.image_root, footers=table.footers) for table in origin.tables]
    schema = _schema(pools, chosen, rules.skeleton)
    further = [name for name in schema.names if name not in (*POOL.names, *_LABELS)]

    def tables() -> Iterator[pa.Table]:
        found = read_rows(
            pools,
            chosen,
            missing=missing,
            progress=progress,
            pick=lambda stored: [name for name in further if name in stored.names],
        )
        for rows in found:
            own = [places[index] for index in rows[INDEX].to_pylist()]
            settled = _settle_all(rows, [answers[place] for place in own], poses, rules)
            outcomes.rows.update(zip(own, settled, strict=True))
            if (labelled_rows := _labelled(rows, settled, schema)).num_rows:
                yield labelled_rows
        for index, reason in missing.reasons.items():
            outcomes.rows[places[index]] = Settled(outcome="not_in_pool", why=reason)

    return schema, tables()


def _schema(pools: list[Pool], chosen: pa.Table, skeleton: Skeleton) -> pa.Schema:
    """The labelled table's columns, and all further ones of the pool files that hold the rows.

    Raises:
        InputError: two files have a column of one name with two types.
    """
    extra: dict[str, pa.Field] = {}
    for path in sorted({*chosen["pool_file"].to_pylist()}):
        for pool in pools:
            place = pool.location.join(*path.split("/"))
            if not place.exists:
                continue
            with open_table(place) as reader:
                for each in reader.schema_arrow:
                    found = each.with_nullable(True).remove_metadata()
                    if extra.setdefault(each.name, found).type != found.type:
                        raise InputError(
                            f"{place.uri}: column {each.name!r}: expected {extra[each.name].type} as in other files, "
                            f"found {found.type}"
                        )
    base = labelled(skeleton.num_keypoints, skeleton=skeleton.name)
    further = [each for name, each in extra.items() if name not in base.names]
    return pa.schema([*base, *further], metadata=base.metadata)


def _settle_all(rows: pa.Table, answers: list[list[Answer]], poses: Poses, rules: Rules) -> list[Settled]:
    found = []
    for image, pose, own in zip(image_buffers(rows), poses.of(rows), answers, strict=True):
        try:
            size = image_size(image)
        except ImageError:
            size = None
        exported = within(pose, width=size[0], height=size[1]) if size else None
        predicted = None if exported is None else exported[:, :2].round(2)
        if predicted is not None and len(predicted) != rules.skeleton.num_keypoints:
            predicted = None  # another skeleton than the bundle's: nothing was predicted of it
        found.append(settle(own, size=size, predicted=predicted, rules=rules))
    return found


def _labelled(rows: pa.Table, settled: list[Settled], schema: pa.Schema) -> pa.Table:
    is_kept = [each.keypoints is not None for each in settled]
    kept = rows.filter(pa.array(is_kept))
    values: dict[str, Any] = {
        "keypoints": [np.float32(each.keypoints).ravel() for each in settled if each.keypoints is not None],
        "visibility": [each.visibility for each in settled if each.visibility is not None],
    }
    columns = []
    for each in schema:
        if each.name in values:
            columns.append(pa.array(values[each.name], each.type))
        elif each.name in kept.column_names:
            columns.append(kept[each.name].cast(each.type))
        else:
            columns.append(pa.nulls(len(kept), each.type))
    return pa.table(columns, schema=schema)


def _count(origin: Origin, outcomes: _Outcomes) -> dict[str, int]:
    """Selected rows by outcome; `absent`: the export does not have them."""
    found = Counter(each.outcome for each in outcomes.rows.values())
    found["absent"] = len(origin.selected) - sum(found.values())
    return {outcome: count for outcome, count in sorted(found.items()) if count}


def _median_seconds(outcomes: _Outcomes, outcome: str) -> float | None:
    """Median time that annotators had rows of an outcome open; None where the export does not say."""
    own = (outcomes.rows[place].seconds for place in outcomes.places(outcome))
    found = [seconds for seconds in own if seconds is not None]
    return float(np.median(found)) if found else None


def _faults(origin: Origin, outcomes: _Outcomes) -> dict[str, list[str]]:
    """Faults that no annotator meant, by kind: ids of rows left out, or to be looked at."""
    ids = origin.selected["sample_id"].to_pylist()
    found = {fault: [ids[place] for place in outcomes.places(fault)] for fault in FAULTS}
    found["annotators_disagree"] = [ids[place] for place, each in sorted(outcomes.rows.items()) if each.disagree]
    found["other_id"] = outcomes.edited
    found["not_selected"] = outcomes.strangers
    return {fault: names[:_MOST_REPORTED] for fault, names in found.items() if names}


def _returned(origin: Origin, outcomes: _Outcomes) -> list[Row]:
    absent = Settled(outcome="absent")
    rows = []
    for place, (rank, sample_id, reason) in enumerate(
        zip(*(origin.selected[name].to_pylist() for name in ("rank", "sample_id", "reason")), strict=True)
    ):
        settled = outcomes.rows.get(place, absent)
        rows.append(
            {
                "rank": rank,
                "sample_id": sample_id,
                "reason": reason,
                "outcome": settled.outcome,
                "why": settled.why,
                "annotators": list(settled.annotators),
                "disagree": settled.disagree,
                "seconds": settled.seconds,
            }
        )
    return rows
