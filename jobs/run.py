"""How every job runs: parse, call, report, exit code. Errors are one line; a traceback only with --verbose."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType

from jobs.options import Config, parse_options
from model.errors import LossightError

DONE, DEGRADED, INTERRUPTED, TERMINATED = 0, 1, 130, 143


def run_job(
    config_class: type[Config], job: Callable[[Config], int], arguments: list[str] | None, *, command: str
) -> int:
    """Runs one job with its arguments (default: the process's) and returns its exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        _check_imports()
        return job(parse_options(config_class, arguments, prog=f"lossight {command}"))
    except LossightError as error:
        if "--verbose" in arguments:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command resumes", INTERRUPTED)


def _check_imports() -> None:
    import distributed
    from distributed.imports import check_is_ours

    check_is_ours(str(distributed.__file__), where="here")


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    del frame
    _fail("terminated; the same command resumes", TERMINATED)
    sys.exit(128 + signum)


def _fail(message: str, exit_code: int) -> int:
    sys.stderr.write(f"lossight: {message}\n")
    return exit_code
