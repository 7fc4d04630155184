"""Choices of `lossight ingest` for labels that come back. Imports fast: `--help` needs it."""

from __future__ import annotations

from typing import Literal

Tool = Literal["coco", "cvat", "label-studio"]
Take = Literal["touched", "complete", "all"]
Annotators = Literal["newest", "consensus"]
