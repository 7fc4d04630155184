"""`lossight submit`: the same command on a cluster, through Ray's job server; follows its log; its exit code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import Field

from distributed.options import NAMED, WHAT, Options, Shown
from jobs.console import say
from jobs.options import parse_flags, parse_options
from jobs.run import DONE, run_job
from jobs.status import describe
from model.errors import InputError

if TYPE_CHECKING:
    from distributed.submission.submit import Command

# What a job needs to know of the store, and is no secret. Keys and tokens stay here: machines have a role.
_TRAVELLING = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_HERE_ONLY = frozenset({"submit", "status"})


class SubmitOptions(Options):
    """Runs a command on a cluster: lossight submit JOB --address http://HEAD:8265 -- ARGS OF JOB.

    Follows its log and ends with its exit code. The same again follows the running job; once that has ended, it starts
    the next attempt. Ctrl-C leaves the job running.
    """

    job: Annotated[str, NAMED] = Field(description="the command: score, train, select, …")
    address: Annotated[str, WHAT, Shown("URL")] = Field(description="the cluster's job server: http://HEAD:8265")
    wait: bool = Field(True, description="only start the job; otherwise its log is followed until it ends")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code, or that of the job."""
    given = sys.argv[1:] if arguments is None else arguments
    at = given.index("--") if "--" in given else len(given)
    return run_job(SubmitOptions, partial(_submit, arguments=given[at + 1 :]), given[:at], command="submit")


def _submit(options: SubmitOptions, *, arguments: list[str]) -> int:
    command = read_command(options.job, arguments)
    env_vars = _travelling_variables()

    from distributed.submission.client import JobServer
    from distributed.submission.submit import follow, start_or_find

    server = JobServer(options.address)
    job, was_running = start_or_find(server, command, env_vars=env_vars)
    with _leaving() as leave:
        say(f"{'already running' if was_running else 'submitted'}: {job.id}")
        if not options.wait:
            say(f"to see how it does: lossight status {job.id} --address {options.address}")
            return DONE
        ended = follow(server, job.id, tell=_tell, should_leave=leave.is_asked)
    if ended is None:
        say(
            f"detached: {job.id} goes on; the same command follows it again, "
            f"lossight status {job.id} --address {options.address} --stop ends it"
        )
        return 128 + leave.signum
    say(f"{ended.id}: {describe(ended)}")
    return DONE if ended.exit_code is None else ended.exit_code


def read_command(name: str, arguments: list[str]) -> Command:
    """The command, its arguments checked here as the cluster would: a slip costs no start there.

    Raises:
        InputError: no command of this name can be submitted, or its arguments are wrong.
    """
    from distributed.submission.submit import Command
    from jobs.cli import COMMANDS

    expected = [command for command in COMMANDS if command not in _HERE_ONLY]
    if name not in expected:
        raise InputError(f"lossight submit: expected a command ({', '.join(expected)}), found {name!r}")
    kind, prog = find_options(name), f"lossight {name}"
    options = parse_options(kind, arguments, prog=prog)
    _check_out(getattr(options, "out", None))
    config = parse_flags(kind, arguments, prog=prog).get("config")
    return Command(name=name, arguments=tuple(arguments), resolved=options.resolved(), config=config)


def find_options(name: str) -> type[Options]:
    """The class of a command's options: its module has it under the command's name."""
    found: type[Options] = getattr(importlib.import_module(f"jobs.{name}"), f"{name.title()}Options")
    return found


def _check_out(out: str | None) -> None:
    if out and "://" not in out and not os.path.isabs(out):
        raise InputError(
            f"--out {out}: expected an s3:// URI or an absolute path that the cluster's machines share, "
            "found a relative path, which would be lost with the job"
        )


def _travelling_variables() -> dict[str, str]:
    found = {name: os.environ[name] for name in _TRAVELLING if os.environ.get(name)}
    for name, value in found.items():
        if "@" in urlsplit(value).netloc:
            raise InputError(f"{name}: expected an endpoint without credentials, which Ray would show to everybody")
    return found


class _Leave:
    """A request to leave: made by a signal, and by which."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.signum = 0

    def ask(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        self.is_asked.set()


@contextmanager
def _leaving() -> Iterator[_Leave]:
    """SIGINT and SIGTERM in the block only ask to leave: the job is not ours to end."""
    leave = _Leave()
    before = {signum: signal.signal(signum, leave.ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield leave
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
