"""Progress of a long call, told to its caller while it works."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the rows done so far; cheap, and never raises."""

    def __call__(self, stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        """`done` of `total` rows of a stage, `num_errors` of them failed; `note` says more in a few words."""


def silent(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
    """Progress that nobody watches."""
