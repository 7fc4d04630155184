"""`lossight status`: the jobs that were submitted to a cluster and how they do; one of them with the end of its log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from distributed.options import NAMED, WHAT, Options, Shown
from jobs.console import format_seconds, say, show_table
from jobs.run import DONE, run_job
from model.errors import InputError

if TYPE_CHECKING:
    from distributed.submission.client import ClusterJob, JobServer

_LOG_LINES = 20


class StatusOptions(Options):
    """Lists what was submitted to a cluster; with an ID, that job and the end of its log."""

    id: Annotated[str | None, NAMED] = Field(None, description="id of one job, as `lossight submit` printed it")
    address: Annotated[str, WHAT, Shown("URL")] = Field(description="the cluster's job server: http://HEAD:8265")
    stop: bool = Field(
        False, description="ask the job to end: batches in flight are finished, the same command goes on"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(StatusOptions, _status, arguments, command="status")


def _status(options: StatusOptions) -> int:
    from distributed.submission.client import JobServer
    from distributed.submission.submit import PREFIX

    if options.stop and options.id is None:
        raise InputError("--stop: expected the ID of one job, found none")
    server = JobServer(options.address)
    if options.id is not None:
        _show_one(server, options.id, is_to_stop=options.stop)
        return DONE
    jobs = [job for job in server.jobs() if job.id.startswith(PREFIX)]
    show_table("jobs", ["id", "state", "for"], [[job.id, describe(job), _duration(job)] for job in jobs])
    return DONE


def _show_one(server: JobServer, job_id: str, *, is_to_stop: bool) -> None:
    job = server.job(job_id)
    if is_to_stop and server.stop(job_id):
        say(f"{job_id}: asked to stop; it finishes what is begun, and is killed after 30 s")
        return
    say(f"{job.id}: {describe(job)}, {_duration(job)}")
    say(job.command)
    for line in server.log(job_id).splitlines()[-_LOG_LINES:]:
        say(f"  {line}")


def describe(job: ClusterJob) -> str:
    """A job's state in words, with its exit code once it has one."""
    failure = f": {job.failure}" if job.failure else ""
    return job.state.lower() + ("" if job.exit_code is None else f", exit code {job.exit_code}") + failure


def _duration(job: ClusterJob) -> str:
    return "-" if job.started_s is None else format_seconds((job.ended_s or time.time()) - job.started_s)


if __name__ == "__main__":
    sys.exit(main())
