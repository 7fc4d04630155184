"""Options of a selection: those that `lossight select` and each night of a triage share, and select's own."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from distributed.options import MACHINE, PLACE, WHAT, Address, Budget, Options, Texts

MIN_GAP = 1.0  # seconds, by default; see the results of selection on the synthetic fleet

Strategy = Literal["loss", "random", "coreset", "hybrid"]

# Shared with simulations.
MaxPerGroup = Annotated[
    int | None, Field(ge=1, description="at most so many of one group; rows without a group are free")
]
MinGap = Annotated[
    float,
    Field(
        ge=0,
        allow_inf_nan=False,
        description="pass over images of a group that were captured within so many seconds of one that is selected or "
        "excluded; images without a group or captured_at are free; 0: none are passed over",
    ),
]
Diversity = Annotated[
    float, Field(ge=0, le=1, description="weight of being unlike in the strategy hybrid; 0 is the order of loss")
]


class SelectionOptions(Options):
    """Options of a selection, whatever the scores: which rows, and how many.

    Condition, exclusions, caps and gaps hold for all rows, bounds of the loss for the strategy's alone: the control arm
    shows what would have been found without predicted losses.
    """

    budget: Annotated[Budget, WHAT] = Field(
        description="how many images to select, or a share such as 5% of those that could be, rounded down"
    )
    strategy: Strategy = Field(
        "loss",
        description="loss: highest predicted loss first; coreset: what is unlike all else; hybrid: high loss and "
        "unlike; random: a draw",
    )
    max_per_group: MaxPerGroup = None
    min_gap: MinGap = MIN_GAP
    exclude: Annotated[Texts, PLACE] = Field(
        (), description="tables whose sample ids are left out: labelled, or selected before; or a .csv of ids"
    )
    where: str | None = Field(
        None, description="condition on columns of the scores, such as \"confidence < 0.5 and group != 'x'\""
    )
    control_share: float = Field(
        0.0, ge=0, le=1, description="share of the budget that is drawn at random from the rest, which proves the gain"
    )
    min_distance: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="pass over images whose embedding is nearer than this to another"
    )
    diversity: Diversity = 0.3
    min_loss: float | None = Field(
        None, allow_inf_nan=False, description="least predicted loss that the strategy may select"
    )
    max_loss: float | None = Field(
        None, allow_inf_nan=False, description="greatest predicted loss that the strategy may select"
    )
    seed: int = Field(0, ge=0, description="seed of the random strategy and of the control arm")

    @property
    def reads_embeddings(self) -> bool:
        """True if the scores must have embeddings."""
        return self.strategy in ("coreset", "hybrid") or self.min_distance > 0

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.strategy == "random" and self.min_distance:
            raise ValueError("--min-distance: expected none with --strategy random, which looks at no embeddings")
        if self.strategy == "random" and self.control_share:
            raise ValueError("--control-share: expected none with --strategy random, which is a control in itself")
        if self.min_loss is not None and self.max_loss is not None and self.min_loss > self.max_loss:
            raise ValueError(f"--min-loss: expected at most --max-loss {self.max_loss:g}, found {self.min_loss:g}")
        return self


class SelectOptions(SelectionOptions):
    """Picks what to label: the highest predicted losses, or a random draw, under a budget and caps."""

    scores: Annotated[Texts, PLACE] = Field(
        min_length=1, description="the scores table, a path or an s3:// URI; several to select from all of them"
    )
    out: Annotated[str, PLACE] = Field(description="where the selection goes")
    allow_mixed: bool = Field(False, description="rank scores of different bundles together")
    workers: Annotated[int | None, MACHINE] = Field(
        None,
        ge=0,
        description="Ray processes that read the scores and hold the embeddings of coreset; 0: this process alone; "
        "default: 0, with --address as many as the cluster has CPUs to spare",
    )
    address: Address = None
