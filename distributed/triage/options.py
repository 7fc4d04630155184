"""Options of a triage: those of scoring and of selection, of what a night is compared with, and its own."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import BeforeValidator, Field

from distributed.options import PLACE, WHAT, Options, Texts, as_sequence
from distributed.reporting.options import ExportKind
from distributed.scoring.options import ScoringOptions
from distributed.selection.options import SelectionOptions


class DriftOptions(Options):
    """Limits from which scores are said to have drifted."""

    drift_columns: Texts = Field(
        (), description="columns, such as camera, for whose values drift is looked for besides that of all rows"
    )
    drift_min_rows: int = Field(
        200, ge=2, description="scored rows that a night, or a value, needs on both sides to be compared"
    )
    max_psi: float = Field(0.25, gt=0, description="population stability index above which scores have drifted")
    max_ks: float = Field(0.2, gt=0, le=1, description="Kolmogorov-Smirnov distance above which scores have drifted")


class TriageOptions(ScoringOptions, SelectionOptions, DriftOptions):
    """Scores the new nights of a pool and selects from each; run again, it does what is left, or nothing."""

    pool: Annotated[str, PLACE] = Field(
        description="the pool: date=YYYY-MM-DD/ folders, or any (a file is of the day it was written, UTC)"
    )
    model: Annotated[str, PLACE] = Field(description="the model bundle, or a champion's pointer")
    out: Annotated[str, PLACE] = Field(description="where all nights go; the same night after night")
    date: Annotated[datetime.date | None, WHAT] = Field(
        None, description="the last night to look at, missed ones before it included; default: yesterday (UTC)"
    )
    first_night: Annotated[datetime.date | None, WHAT] = Field(
        None, description="nights before this one are none of this triage's"
    )
    report: Annotated[bool, WHAT] = Field(True, description="write no report of each night")
    exports: Annotated[tuple[ExportKind, ...], BeforeValidator(as_sequence), WHAT] = Field(
        (), description="labelling tools that each selection is exported for"
    )
    late_days: int = Field(
        30, ge=0, description="for so many days after a night its late files are taken along by the next one"
    )
    keep_days: int | None = Field(
        None, ge=1, description="remove the scores of nights so many days older than the newest; never a selection"
    )
    fail_on_drift: bool = Field(False, description="exit code 5 where scores have drifted")
    require_data: bool = Field(False, description="exit code 2 where the last night to look at has no data")

    @property
    def since(self) -> datetime.date:
        """The first night to look at."""
        return self.first_night or datetime.date.min
