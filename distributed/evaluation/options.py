"""Options of `lossight evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distributed.options import MACHINE, PLACE, Options, Texts
from distributed.scoring.options import BatchSize, NumViews


class EvaluateOptions(Options):
    """Measures PCK, how well predicted loss finds the failures beside plain heatmap confidence, and where they are."""

    labelled: Annotated[str, PLACE] = Field(description="the labelled table: a path or an s3:// URI")
    model: Annotated[str, PLACE] = Field(description="the model bundle")
    out: Annotated[str | None, PLACE] = Field(
        None, description="where the metrics go as JSON, and a plot of them; default: they are only shown"
    )
    selection: Annotated[str | None, PLACE] = Field(
        None, description="a selection from these rows: its PCK is given beside a random draw's"
    )
    slices: Texts | None = Field(
        None, description="columns to slice by; default: those of text or booleans with few values"
    )
    views: NumViews = 1
    gpus: Annotated[float, MACHINE] = Field(0, ge=0, le=1, description="1 computes on the GPU of this machine")
    batch_size: BatchSize = None
    decode_threads: Annotated[int, MACHINE] = Field(2, ge=1, description="threads that decode images")

    @property
    def device(self) -> str:
        """Device of the calling process."""
        return "cuda" if self.gpus else "cpu"
