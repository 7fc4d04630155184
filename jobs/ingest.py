"""`lossight ingest`: raw data into pool or labelled tables that keep the contract."""

from __future__ import annotations

import sys
from typing import Annotated, Literal, Self, get_args

from pydantic import AliasChoices, Field, model_validator

from distributed.ingest.options import Annotators, Take, Tool
from distributed.options import NAMED, WHAT, Options, Shown
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DEGRADED, DONE, run_job

_MOST_NAMES = 5  # of a fault, on a terminal
_FAULTS = {
    "twice": "left out, for the export has them twice",
    "disagree": "left out, for annotators disagree",
    "other_size": "left out, for the image that was annotated has another size than the pool's",
    "other_id": "left out, for the image's name is of another row",
    "unclear": "left out, for it is not clear what was meant",
    "not_in_pool": "left out, for the pool does not have them any more",
    "not_selected": "left out, for they were never selected",
    "annotators_disagree": "annotators placed keypoints apart",
}


class IngestOptions(Options):
    """Raw data into a pool or labelled table; with --selection, labels of a labelling tool back into labelled rows.

    An unreadable image is kept: scoring says why it is unreadable.
    """

    kind: Annotated[Literal["lsp", "lspet", "coco", "mpii", "folder", "cvat", "label-studio"], NAMED] = Field(
        description="what the source holds"
    )
    source: Annotated[str, WHAT, Shown("URI")] = Field(
        description="the folder: for lsp and lspet the one with images/ and joints.mat; for coco and mpii the "
        "images; a row is an image, for coco and mpii a person, with the image's bytes in each of its persons' rows. "
        "With --selection the file that the tool exported, a zip or what is in it"
    )
    selection: Annotated[str | None, WHAT, Shown("URI")] = Field(
        None,
        description="for coco, cvat and label-studio: the selection that was exported; its rows come back with "
        "all columns of the pool",
    )
    annotations: Annotated[str | None, WHAT, Shown("FILE")] = Field(
        None,
        description="for coco person_keypoints_*.json; for mpii mpii_human_pose_v1_u12_1.mat, or a JSON list of "
        "image, joints, joints_vis, center, scale",
    )
    out: Annotated[str, WHAT, Shown("URI")] = Field(description="where the table goes: a path or an s3:// URI")
    as_: Annotated[Literal["pool", "labelled"], WHAT] = Field(
        "pool",
        validation_alias=AliasChoices("as", "as_"),
        serialization_alias="as",
        description="without labels or with them",
    )
    skeleton: Annotated[str | None, WHAT] = Field(
        None,
        description="for coco, cvat and label-studio, order of the keypoints, by name: lsp, mpii, coco or a JSON file; "
        "default: that of the bundle which scored, or of the file",
    )
    take: Take = Field(
        "touched",
        description="with --selection: poses that a person placed, changed or submitted; the complete ones of these; "
        "or all, predictions too that nobody touched",
    )
    annotators: Annotators = Field(
        "newest", description="with --selection, where several have answered: the newest answer, or what all agree on"
    )
    start: int = Field(0, ge=0, description="how many images (coco, mpii: persons) to pass over")
    limit: int | None = Field(None, ge=1, description="how many to take; all if not given")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.selection is None:
            if self.kind in ("cvat", "label-studio"):
                raise ValueError(f"--selection: expected the selection that was exported to {self.kind}, found none")
            return self
        if self.kind not in get_args(Tool):
            raise ValueError(f"--selection: expected coco, cvat or label-studio beside it, found {self.kind}")
        for name in ("annotations", "start", "limit"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"--{name}: expected none beside --selection, found {getattr(self, name)}")
        return self


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(IngestOptions, _ingest, arguments, command="ingest")


def _ingest(options: IngestOptions) -> int:
    return _take_labels(options, options.selection) if options.selection else _read_raw(options)


def _take_labels(options: IngestOptions, selection: str) -> int:
    from distributed.reporting.labels import take_labels

    with ConsoleProgress() as progress:
        record = take_labels(
            options.kind,  # type: ignore[arg-type]  # checked by the options
            selection=selection,
            source=options.source,
            out=options.out,
            skeleton=options.skeleton,
            take=options.take,
            annotators=options.annotators,
            config=options.resolved(),
            progress=progress,
        )
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {record['num_rows']} labelled rows, {options.out}")
    say(f"of {record['num_selected']} selected rows: {counts(record['outcomes'])}")
    if record["rejected"]:
        say(f"rejected because: {counts(record['rejected'])}")
    if record["keypoints_outside"]:
        say(f"{record['keypoints_outside']} keypoints lay outside their image and count as not labelled")
    for note in record["notes"]:
        say(note)
    for fault, names in record["faults"].items():
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        shown = (name if name.isprintable() else repr(name) for name in names[:_MOST_NAMES])
        say(f"{_FAULTS[fault]}: {', '.join(shown)}{more}")
    return DEGRADED if record["faults"].keys() - {"annotators_disagree"} else DONE


def _read_raw(options: IngestOptions) -> int:
    from distributed.ingest.ingest import ingest

    with ConsoleProgress() as progress:
        record = ingest(
            options.kind,
            source=options.source,
            out=options.out,
            table=options.as_,
            annotations=options.annotations,
            skeleton=options.skeleton,
            start=options.start,
            limit=options.limit,
            config=options.resolved(),
            progress=progress,
        )
    outside = record.get("keypoints_outside", 0)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {record['num_rows']} rows, {options.out}")
    if record["num_rows"] > record["images"]:
        say(f"{record['num_rows']} persons in {record['images']} images; each row has its image's bytes")
    if skipped := record.get("skipped"):
        say(f"persons left out: {counts(skipped)}")
    if options.as_ == "labelled" and outside:
        say(f"{outside} keypoints lay outside their image and count as not labelled")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
