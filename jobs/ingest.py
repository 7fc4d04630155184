"""`lossight ingest`: raw data into pool or labelled tables that keep the contract."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from distributed.options import NAMED, WHAT, Options, Shown
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DONE, run_job


class IngestOptions(Options):
    """Raw data into a pool or labelled table. An unreadable image is kept: scoring says why it is unreadable."""

    kind: Annotated[Literal["lsp", "lspet", "coco", "mpii", "folder"], NAMED] = Field(
        description="what the source holds"
    )
    source: Annotated[str, WHAT, Shown("URI")] = Field(
        description="the folder: for lsp and lspet the one with images/ and joints.mat; for coco and mpii the "
        "images; a row is an image, for coco and mpii a person, with the image's bytes in each of its persons' rows"
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
    start: int = Field(0, ge=0, description="how many images (coco, mpii: persons) to pass over")
    limit: int | None = Field(None, ge=1, description="how many to take; all if not given")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(IngestOptions, _ingest, arguments, command="ingest")


def _ingest(options: IngestOptions) -> int:
    from distributed.ingest.ingest import ingest

    with ConsoleProgress() as progress:
        record = ingest(
            options.kind,
            source=options.source,
            out=options.out,
            table=options.as_,
            annotations=options.annotations,
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
