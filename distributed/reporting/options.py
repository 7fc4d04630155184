"""Options of reports and exports."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distributed.options import NAMED, PLACE, Options

ExportKind = Literal["coco", "cvat", "label-studio", "fiftyone", "csv"]
ImageMode = Literal["copy", "reference"]


class ReportOptions(Options):
    """Shows a selection: images with predicted poses, how they were chosen, slices, errors, where it came from."""

    run: Annotated[str, PLACE] = Field(description="a selection, or a night of triage: a path or an s3:// URI")
    out: Annotated[str | None, PLACE] = Field(None, description="the HTML file; default: report.html in the run")
    history: Annotated[str | None, PLACE] = Field(
        None, description="the history table of triage; found by itself for a triage's nights"
    )
    evaluation: Annotated[str | None, PLACE] = Field(
        None,
        description="an evaluation of this selection, whose measured figures the page then shows; default: that of a "
        "triage's night, in its folder evaluation",
    )


class ExportOptions(Options):
    """Hands a selection to a labelling tool: its images, and the predicted poses to correct."""

    kind: Annotated[ExportKind, NAMED] = Field(description="the format")
    selection: Annotated[str, PLACE] = Field(description="the selection: a path or an s3:// URI")
    pool: Annotated[str, PLACE] = Field(description="the pool that was scored, or a copy of it")
    out: Annotated[str, PLACE] = Field(description="the folder for the export: new, or empty")
    ids: Annotated[str | None, PLACE] = Field(
        None, description="a .csv of sample_id, such as a report's download: only these of the selection"
    )
    images: ImageMode = Field("copy", description="copy the images as stored, or name where they lie")
    uri_column: str | None = Field(
        None,
        description="with --images reference: the column of the pool that holds each image's URI; if not given, coco "
        "and csv name pool file and row",
    )
    url_prefix: str | None = Field(
        None,
        description="label-studio: what comes before images/NAME in its tasks: the export's s3:// or https:// URL, or "
        "/data/local-files/?d=FOLDER, a folder below the server's document root; default: of an export on S3 its URI, "
        "else /data/local-files/?d=",
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.url_prefix is not None and (self.kind != "label-studio" or self.images != "copy"):
            raise ValueError("--url-prefix: expected label-studio and --images copy beside it, found another")
        if self.uri_column is not None and self.images == "copy":
            raise ValueError("--uri-column: expected --images reference beside it, found copy")
        if self.images == "reference" and self.uri_column is None and self.kind not in ("coco", "csv"):
            raise ValueError(
                f"--images reference: expected --uri-column, for {self.kind} can't open rows of Parquet files"
            )
        return self
