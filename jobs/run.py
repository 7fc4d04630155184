"""The frame of every job: parse, call, report, exit code. Errors are one line; a traceback only with --verbose."""

from __future__ import annotations

import atexit
import itertools
import json
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType

from jobs.console import json_lines, tell
from jobs.options import Kind, parse_options
from model.errors import LossightError, StoppedError

# 1 is left to what ends a process past our code: a crash, which schedulers may retry.
DONE, FAILED, DEGRADED = 0, 3, 5
# Of a stop in order, before the run is left as it is: schedulers give 30 s or more, and nothing is lost either way.
GRACE_S = 20.0
_ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}  # exit code: 128 + the number


def run_job(kind: type[Kind], job: Callable[[Kind], int], arguments: list[str] | None, *, command: str) -> int:
    """Runs one job with its arguments (default: the process's) and returns its exit code."""
    if arguments is None:
        arguments = sys.argv[1:]
    before = {signum: signal.signal(signum, _leave) for signum in _ENDS}
    is_verbose, is_json = "--verbose" in arguments, _asks_for_json(arguments)
    _await_last_word(command, is_json=is_json)
    with json_lines(command) if is_json else nullcontext(), _threads_in_one_line(is_verbose=is_verbose):
        try:
            exit_code = _run(kind, job, arguments, command=command, is_verbose=is_verbose)
            if is_json:
                tell(f"ended with exit code {exit_code}", level="error" if exit_code else "info", exit_code=exit_code)
            return exit_code
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """True if the log is to be JSON; asked before anything can fail."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return ("--log-format", "json") in itertools.pairwise(words)


def _run(kind: type[Kind], job: Callable[[Kind], int], arguments: list[str], *, command: str, is_verbose: bool) -> int:
    try:
        return job(parse_options(kind, arguments, prog=f"lossight {command}"))
    except Exception as error:
        if is_verbose:
            traceback.print_exc()
        if isinstance(error, LossightError):
            return _fail(str(error), error.exit_code)
        return _fail(f"unexpected {type(error).__name__}: {error} (--verbose shows where)", FAILED)


_waiting: list[subprocess.Popen[bytes]] = []  # the shell below, of which one is enough


def _await_last_word(command: str, *, is_json: bool) -> None:
    """A watcher that writes one line should the process end without `_say_last_word`.

    Ray ends it from native code when its raylet is lost, the kernel when memory is, and a decoder may crash: no handler
    of ours runs then. So a shell waits at the other end of a pipe, and speaks when that closes without a word.
    """
    if _waiting:
        return
    line = "lossight: ended from outside: Ray or memory was lost, or an image killed it; the same command goes on"
    if is_json:
        line = json.dumps({"time": "%s", "level": "error", "command": command, "message": line})
    say = f"printf '{line}\\n' $(date -u +%FT%TZ)" if is_json else f"echo '{line}'"
    waiting = subprocess.Popen(  # noqa: S603 - a line of our own
        ["/bin/sh", "-c", f"read -r said || {say} >&2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    _waiting.append(waiting)


@atexit.register  # before Ray is imported, hence called after Ray has left its cluster, which can end the process too
def _say_last_word() -> None:
    while _waiting:
        with suppress(BrokenPipeError):
            _waiting.pop().communicate(b"ended by itself\n")


@contextmanager
def _threads_in_one_line(*, is_verbose: bool) -> Iterator[None]:
    """Handler for exceptions that a thread does not catch: one line, as for the job's own."""
    before = threading.excepthook

    def report(found: threading.ExceptHookArgs) -> None:
        if is_verbose:
            before(found)
        name = found.thread.name if found.thread else "unknown"
        tell(f"lossight: thread {name}: unexpected {found.exc_type.__name__}: {found.exc_value}")

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


class Stop:
    """Request to stop the run, and the signal that made it."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def is_asked(self) -> bool:
        """True from the first signal on."""
        return self.signum is not None


@contextmanager
def stopping_in_order() -> Iterator[Stop]:
    """A first SIGINT or SIGTERM in the block only asks to stop; a second, or `GRACE_S` later, ends the process.

    Raises:
        StoppedError: as the block raises it, with the exit code of the signal.
    """
    stop = Stop()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.is_asked():
            _leave(stop.signum or signum, frame)
        stop.signum = signum
        tell(
            f"lossight: {_ENDS[signal.Signals(signum)]}: finishing what is begun; again to leave at once",
            level="warning",
        )
        signal.signal(signal.SIGALRM, ask)
        signal.setitimer(signal.ITIMER_REAL, GRACE_S)

    before = {signum: signal.signal(signum, ask) for signum in _ENDS}
    try:
        yield stop
    except StoppedError as error:
        error.exit_code = 128 + (stop.signum or signal.SIGTERM)
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _leave(signum: int, frame: FrameType | None) -> None:
    """Ends the process by SystemExit: Python may die of the signal itself where a KeyboardInterrupt meets an import."""
    del frame
    sys.exit(_fail(f"{_ENDS[signal.Signals(signum)]}; the same command goes on", 128 + signum))


def _fail(message: str, exit_code: int) -> int:
    _say_last_word()
    tell(f"lossight: {message}")
    return exit_code
