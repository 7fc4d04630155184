"""Options of `lossight evaluate` and `lossight promote`."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from distributed.options import MACHINE, PLACE, WHAT, ImageRoot, Options, Texts
from distributed.scoring.options import BatchSize, NumViews


class JudgingOptions(Options):
    """Options for running a bundle over labelled rows, in the calling process."""

    image_root: ImageRoot = None
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


class EvaluateOptions(JudgingOptions):
    """Measures PCK, how well predicted loss finds the failures beside plain heatmap confidence, and where they are."""

    labelled: Annotated[str, PLACE] = Field(description="the labelled table: a path or an s3:// URI")
    model: Annotated[str, PLACE] = Field(description="the model bundle, or a champion's pointer")
    out: Annotated[str | None, PLACE] = Field(
        None, description="where the metrics go as JSON, and a plot of them; default: they are only shown"
    )
    selection: Annotated[str | None, PLACE] = Field(
        None, description="a selection from these rows: its PCK is given beside a random draw's"
    )


class PromoteOptions(JudgingOptions):
    """Makes a bundle the champion that triage follows, unless it may be worse on held-out rows than the one in use."""

    champion: Annotated[str, PLACE] = Field(
        description="the pointer, a JSON file that the first promotion writes; triage and score take it as --model"
    )
    challenger: Annotated[str | None, PLACE] = Field(None, description="the bundle that may take its place")
    on: Annotated[str | None, PLACE] = Field(None, description="labelled rows that neither was trained on")
    selection: Annotated[str | None, PLACE] = Field(
        None, description="labelled rows of the newest selection, compared too: hard ones, as they come"
    )
    back: Annotated[bool, WHAT] = Field(False, description="go back to the champion before this one; compares nothing")

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        given = [f"--{name}" for name in ("challenger", "on", "selection") if getattr(self, name) is not None]
        if self.back and given:
            raise ValueError(f"--back: expected --champion alone, found {', '.join(given)}")
        if not self.back and not {"--challenger", "--on"} <= set(given):
            raise ValueError(f"expected --challenger and --on, or --back, found {', '.join(given) or 'neither'}")
        return self
