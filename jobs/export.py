"""`lossight export`: a selection for a labelling tool."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import Field

from distributed.options import NAMED, Options
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DEGRADED, DONE, run_job

_POSES = {"scores": "kept by the scores", "predicted": "predicted again by the bundle", "none": "none"}


class ExportOptions(Options):
    """Hands a selection to a labelling tool: its images, and the predicted poses to correct."""

    kind: Annotated[Literal["coco", "cvat", "label-studio", "fiftyone", "csv"], NAMED] = Field(description="the format")
    selection: str = Field(description="the selection: a path or an s3:// URI")
    pool: str = Field(description="the pool that was scored, or a copy of it")
    out: str = Field(description="the folder for the export: new, or empty")
    images: Literal["copy", "reference"] = Field(
        "copy", description="copy the images as stored, or name where they lie"
    )
    uri_column: str | None = Field(
        None,
        description="with --images reference: the column of the pool that holds each image's URI; if not given, "
        "coco and csv name pool file and row",
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(ExportOptions, _export, arguments, command="export")


def _export(config: ExportOptions) -> int:
    from distributed.reporting.export import export_selection

    with ConsoleProgress() as progress:
        record = export_selection(
            config.selection,
            pool=config.pool,
            kind=config.kind,
            out=config.out,
            images=config.images,
            uri_column=config.uri_column,
            progress=progress,
        )
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {config.out}")
    say(f"{record['num_exported']} of {record['num_selected']} selected images; poses: {_POSES[record['poses']]}")
    if record["num_missing"]:
        say(f"degraded: left out {record['num_missing']}: {counts(record['missing'])}")
        return DEGRADED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
