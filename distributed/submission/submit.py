"""A command of ours on a cluster: started there once, found again, followed to its end.

A submission's id is the command's name, a hash of its resolved options, and the number of the attempt. So the same
command finds what it started: where that still runs it follows it, where it has ended it starts the next attempt, which
does only what is left to do.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.imports import CHECKOUT
from distributed.submission.client import ClusterJob, JobServer, UnknownJobError
from distributed.submission.shipping import CONFIG_NAME, stage_checkout
from model.errors import RunFailedError
from model.memory import MEMORY_VARIABLES

PREFIX = "lossight-"
_HASH_DIGITS = 10
_RACES = 5  # how often somebody else may start the same command in our way
_STOP_WAIT_S = 30  # Ray kills 3 s after its SIGTERM if not told; our jobs end in order within 20 s
# Between two looks at the log; longer while nothing comes, for each look fetches all of it.
_LOOK_S, _LOOK_GROWTH, _MAX_LOOK_S = 0.5, 1.5, 5.0
_LOST_LOOKS = 24  # two minutes of refused connections, more where each look has to time out


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command as it was given here, `lossight NAME ARGUMENTS`, and what it means."""

    name: str
    arguments: tuple[str, ...]
    resolved: Mapping[str, Any]  # JSON values
    config: str | None  # the local file among the arguments

    @property
    def base_id(self) -> str:
        """The same for the same name and options, however they were given."""
        text = json.dumps(self.resolved, sort_keys=True)
        return f"{PREFIX}{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]}"

    @property
    def entrypoint(self) -> str:
        """The shell command: `exec`, so that the process whose exit code Ray keeps is ours."""
        words = ["python", "-m", "jobs.cli", self.name, *_with_shipped_config(self.arguments)]
        return f"exec {shlex.join(words)}"


def _with_shipped_config(arguments: Sequence[str]) -> list[str]:
    words = list(arguments)
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            words[index + 1] = CONFIG_NAME
        elif word.startswith("--config="):
            words[index] = f"--config={CONFIG_NAME}"
    return words


def start_or_find(server: JobServer, command: Command, *, env_vars: Mapping[str, str]) -> tuple[ClusterJob, bool]:
    """The command's job on the cluster, and whether it was running already rather than started now.

    Args:
        server: the cluster's job server.
        command: what to run there.
        env_vars: for all processes of the job; Ray shows them to whoever asks, so no secrets.

    Raises:
        InputError: the checkout can't be shipped.
        RunFailedError: the job server fails.
    """
    for _ in range(_RACES):
        earlier = find_attempts(server.jobs(), command.base_id)
        if earlier and not earlier[-1].is_over:
            return earlier[-1], True
        number = _attempt(earlier[-1].id) + 1 if earlier else 1
        job_id = f"{command.base_id}-a{number}"
        with tempfile.TemporaryDirectory(prefix="lossight-submit-") as staged:
            stage_checkout(CHECKOUT, staged, config=command.config)
            is_new = server.submit(
                command.entrypoint,
                job_id=job_id,
                working_dir=staged,
                env_vars={**MEMORY_VARIABLES, **env_vars, "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)},
            )
        if is_new:
            return server.job(job_id), False
    raise RunFailedError(f"{command.base_id}: others keep starting it; follow theirs with the same command")


def find_attempts(jobs: Sequence[ClusterJob], base_id: str) -> list[ClusterJob]:
    """The attempts at one command, the latest last."""
    return sorted((job for job in jobs if job.id.rpartition("-a")[0] == base_id), key=lambda job: _attempt(job.id))


def _attempt(job_id: str) -> int:
    number = job_id.rpartition("-a")[2]
    return int(number) if number.isdecimal() else 0


def follow(
    server: JobServer, job_id: str, *, tell: Callable[[str], None], should_leave: threading.Event
) -> ClusterJob | None:
    """A job that was found, once it has ended, its log told as it grows; None when asked to leave before that.

    Raises:
        RunFailedError: the job server has not answered for minutes, and the job may well go on; or the cluster knows
            the job no longer, as a head that was started anew does.
    """
    told, wait_s, num_lost = 0, _LOOK_S, 0
    while not should_leave.is_set():
        try:
            job = server.job(job_id)  # before its log, so that the log of a job that is over is whole
            log = server.log(job_id)
        except UnknownJobError as error:
            raise RunFailedError(f"{job_id}: the cluster no longer knows the job; the same command goes on") from error
        except RunFailedError:
            num_lost += 1
            if num_lost == _LOST_LOOKS:
                raise
            wait_s = _MAX_LOOK_S
        else:
            num_lost = 0
            if len(log) > told:
                tell(log[told:])
                told, wait_s = len(log), _LOOK_S
            if job.is_over:
                return job
        should_leave.wait(wait_s)
        wait_s = min(_MAX_LOOK_S, wait_s * _LOOK_GROWTH)
    return None
