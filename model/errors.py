"""The exception tree, drawn once. The jobs turn it into exit codes; a traceback is shown only for what is not in it.

LossightError
├── InputError      exit 2: an argument, a configuration or an input is at fault; don't retry
│   ├── BundleError a model bundle that cannot be read
│   └── DamagedError a file whose content is not what was written
├── RunFailedError  exit 3: storage or compute failed; the same command resumes
├── LeaseError      exit 4: another run holds the lease of the output, or has taken it over
└── StoppedError    exit 130 or 143: asked to stop, and did so in order; the same command goes on
ImageError          one unreadable image: becomes that row's `error`, never ends a run
"""

from __future__ import annotations


class LossightError(Exception):
    """An error told to a user in one line: the offending thing, the expected, the found."""

    exit_code = 3


class InputError(LossightError):
    """An argument, a configuration or an input is at fault: running again will not help."""

    exit_code = 2


class BundleError(InputError):
    """A model bundle is incomplete, altered or of another format version."""


class DamagedError(InputError):
    """A file does not hold what was written: reading it again did not help."""


class RunFailedError(LossightError):
    """Storage or compute failed: the same command may succeed later."""


class LeaseError(LossightError):
    """Another run of the same output is at work, or has taken the output over: this one publishes nothing."""

    exit_code = 4


class StoppedError(LossightError):
    """The run was asked to stop; what it has done is kept."""

    exit_code = 143


class ImageError(Exception):
    """One image that cannot be used. `reason` is the word written into the row's `error` column."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
