"""Options of `lossight ingest`: raw data, and labels that come back. Imports fast: `--help` needs it."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import AliasChoices, Field, model_validator

from distributed.options import NAMED, PLACE, WHAT, Options, Shown

SourceKind = Literal["lsp", "lspet", "coco", "mpii", "folder", "cvat", "label-studio"]
TableKind = Literal["pool", "labelled"]
Tool = Literal["coco", "cvat", "label-studio"]
Take = Literal["touched", "complete", "all"]
Annotators = Literal["newest", "consensus"]


class IngestOptions(Options):
    """Raw data into a pool or labelled table; with --selection, labels of a labelling tool back into labelled rows.

    An unreadable image is kept: scoring says why it is unreadable.
    """

    kind: Annotated[SourceKind, NAMED] = Field(description="what the source holds")
    source: Annotated[str, PLACE] = Field(
        description="the folder: for lsp and lspet the one with images/ and joints.mat; for coco and mpii the "
        "images; a row is an image, for coco and mpii a person, with the image's bytes in each of its persons' rows. "
        "With --selection the file that the tool exported, a zip or what is in it"
    )
    selection: Annotated[str | None, PLACE] = Field(
        None,
        description="for coco, cvat and label-studio: the selection that was exported; its rows come back with "
        "all columns of the pool",
    )
    annotations: Annotated[str | None, PLACE, Shown("FILE")] = Field(
        None,
        description="for coco person_keypoints_*.json, or, for a pool of boxes, instances_*.json or a detector's "
        "results, a JSON list of image_id, bbox, score; for mpii mpii_human_pose_v1_u12_1.mat, or a JSON list of "
        "image, joints, joints_vis, center, scale; for folder a CSV or Parquet table of path and any of group, "
        "captured_at, box (x0 y0 x1 y1) and further columns",
    )
    images: Annotated[str | None, PLACE, Shown("FILE")] = Field(
        None,
        description="with a detector's results: COCO's JSON that lists the images by id, such as image_info_*.json; "
        "default: an id is the image's file name, or the number that is its name",
    )
    min_box_score: float | None = Field(
        None, description="with a detector's results: leave out boxes below this score; default: none"
    )
    out: Annotated[str, PLACE] = Field(description="where the table goes: a path or an s3:// URI")
    as_: Annotated[TableKind, WHAT] = Field(
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
        for name in ("images", "min_box_score"):
            if getattr(self, name) is not None and (self.selection is not None or self.kind != "coco"):
                raise ValueError(
                    f"--{name.replace('_', '-')}: expected a detector's results of coco beside it, found {self.kind}"
                )
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
