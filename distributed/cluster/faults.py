"""Ray's exceptions as our errors: one line, and whose fault it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayTaskError

from distributed.storage.location import first_line
from model.errors import LossightError, RunFailedError


@contextmanager
def reported() -> Iterator[None]:
    """Lets our own errors out of Ray's wrapping, and turns Ray's into one line.

    Raises:
        LossightError: whichever was the cause.
    """
    try:
        yield
    except Exception as error:
        cause = _find_ours(error)
        if cause is error:
            raise
        if cause is not None:
            cause.args = (first_line(cause),)  # Ray Data adds advice of its own to the text
            raise cause from error
        raise RunFailedError(f"compute failed: {_reason(error)}") from error


def _find_ours(error: BaseException | None) -> LossightError | None:
    while error is not None:
        cause = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, LossightError) and not isinstance(error, RayTaskError):  # Ray's copies have stacks in them
            return error
        error = cause
    return None


def _reason(error: BaseException) -> str:
    """The last line that names an error: Ray's own text has stacks before it, and hints after."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Invalid)\b", line)]
    return (named or lines or [type(error).__name__])[-1]
