"""`lossight ingest`: raw data into pool or labelled tables that keep the contract."""

from __future__ import annotations

import sys
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import CliPositionalArg

from jobs.console import ConsoleProgress, say
from jobs.options import JobConfig
from jobs.run import DONE, run_job


class IngestConfig(JobConfig):
    """Raw data into a pool or labelled table. An unreadable image is kept: scoring says why it is unreadable."""

    kind: CliPositionalArg[Literal["lsp", "lspet", "folder"]] = Field(description="what the source holds")
    source: str = Field(description="the folder: for lsp and lspet with images/ and joints.mat, as published")
    out: str = Field(description="where the table goes: a path or an s3:// URI")
    as_: Literal["pool", "labelled"] = Field(
        "pool",
        validation_alias=AliasChoices("as", "as_"),
        serialization_alias="as",
        description="without labels or with them",
    )
    start: int = Field(0, ge=0, description="how many images to pass over")
    limit: int | None = Field(None, ge=1, description="how many images to take; all if not given")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(IngestConfig, _ingest, arguments, command="ingest")


def _ingest(config: IngestConfig) -> int:
    from distributed.tables.ingest import ingest

    with ConsoleProgress() as progress:
        record = ingest(
            config.kind,
            source=config.source,
            out=config.out,
            table=config.as_,
            start=config.start,
            limit=config.limit,
            config=config.resolved(),
            progress=progress,
        )
    outside = record.get("keypoints_outside", 0)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {record['num_rows']} rows, {config.out}")
    if config.as_ == "labelled" and outside:
        say(f"{outside} keypoints lay outside their image and count as not labelled")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
