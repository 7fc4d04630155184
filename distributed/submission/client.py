"""Ray's job server, asked over HTTP: a moving interface of Ray's, used here and nowhere else. Knows no attempts.

Credentials of stores are never sent. The token that a cluster may ask for is Ray's matter: its client finds it in
RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from model.errors import InputError, RunFailedError

_TIMEOUT_S = 30.0  # of an answer's beginning; Ray's client would wait for ever
_CONNECT_TIMEOUT_S = 10.0
_NEEDED = ("ray", "aiohttp", "requests")  # what the extra brings, as far as the client needs it
_ADDRESS = re.compile(r"https?://[^/@\s:]+(:[0-9]{1,5})?/?")
_ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_CHATTY = (
    "ray._private.authentication.authentication_token_setup",
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
_OVER = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
_TERMINATED, _UNKNOWN = 143, 3  # exit codes of jobs that were stopped, or have none


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """One submission, as the cluster tells of it."""

    id: str
    state: str  # PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED: Ray's words
    command: str
    failure: str  # why it could not be run; of what was run, the log says all
    exit_code: int | None  # None until it has ended
    started_s: float | None  # since 1970
    ended_s: float | None

    @property
    def is_over(self) -> bool:
        """True once it has ended, one way or another."""
        return self.state in _OVER


class UnknownJobError(InputError):
    """The cluster knows no job of this id: it never did, or its head was started anew."""


class JobServer:
    """The job server of a cluster.

    Raises:
        InputError: at any call: the address is none of a job server, or the cluster refuses our token.
        RunFailedError: at any call: nobody answers, or the server fails.
    """

    def __init__(self, address: str) -> None:
        if not _ADDRESS.fullmatch(address):
            shown = re.sub(r"//[^/]*@", "//…@", address)  # a password may stand there
            raise InputError(f"--address {shown}: expected the cluster's job server, such as http://HEAD:8265")
        self.address = address.rstrip("/")
        _check_installed()
        with self._explained():
            self._client = _new_client(self.address)

    def submit(self, entrypoint: str, *, job_id: str, working_dir: str, env_vars: Mapping[str, str]) -> bool:
        """Hands a shell command in, to be run on the head node below a copy of the folder; False: the id is taken."""
        runtime_env = {"working_dir": working_dir, "env_vars": dict(env_vars)}
        with self._explained():
            try:
                self._client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return False
        return True

    def jobs(self) -> list[ClusterJob]:
        """All submissions that the cluster remembers, in the order of their start."""
        with self._explained():
            details = self._client.list_jobs()
        found = [_job_of(detail) for detail in details if detail.submission_id]
        return sorted(found, key=lambda job: (job.started_s or 0, job.id))

    def job(self, job_id: str) -> ClusterJob:
        """One submission.

        Raises:
            UnknownJobError: the cluster knows none of that id.
        """
        with self._explained(job_id):
            return _job_of(self._client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """Output of the job so far; Ray's own lines come first."""
        with self._explained(job_id):
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> bool:
        """Asks the job to end; False where it had ended already."""
        with self._explained(job_id):
            return bool(self._client.stop_job(job_id))

    @contextmanager
    def _explained(self, job_id: str = "") -> Iterator[None]:
        from ray.exceptions import AuthenticationError
        from requests import RequestException

        place = f"--address {self.address}"
        try:
            yield
        except AuthenticationError as error:
            # Ray's text would do, but for its length.
            found = "none" if "required" in str(error) else "another"
            raise InputError(
                f"{place}: expected the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, found {found}"
            ) from error
        except (RequestException, ConnectionError) as error:
            raise RunFailedError(f"{place}: expected a Ray job server, found none: {_last_line(str(error))}") from error
        except RuntimeError as error:
            if job_id and "status code 404" in str(error):
                raise UnknownJobError(
                    f"{place}: expected the id of a job, found {job_id!r}, which it does not know"
                ) from error
            raise RunFailedError(f"{place}: the job server fails: {_last_line(str(error))}") from error


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"expected the extra 'cluster' (pip install --editable '.[cluster]'), found no {missing[0]}")


def _new_client(address: str) -> Any:
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Gives up where Ray's would wait."""

        def _do_request(self, method: str, endpoint: str, **arguments: Any) -> Any:
            return super()._do_request(method, endpoint, timeout=(_CONNECT_TIMEOUT_S, _TIMEOUT_S), **arguments)

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    tokens.maybe_enable_token_auth_if_token_available()  # as `ray start` and ray.init do; its client does not
    # Ray lets these win over what its caller says; our flag was typed for this very call.
    hidden = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        return Client(address)
    finally:
        os.environ.update(hidden)


def _job_of(detail: Any) -> ClusterJob:
    state = str(detail.status)
    is_over = state in _OVER
    return ClusterJob(
        id=detail.submission_id,
        state=state,
        command=detail.entrypoint,
        failure=_failure(detail) if state == "FAILED" and detail.driver_exit_code is None else "",
        exit_code=_exit_code(state, detail.driver_exit_code) if is_over else None,
        started_s=detail.start_time and detail.start_time / 1000,
        ended_s=detail.end_time and detail.end_time / 1000 if is_over else None,
    )


def _exit_code(state: str, told: int | None) -> int:
    """Exit code as a shell would give it: 128 + the number of the signal that ended the process."""
    if state == "STOPPED":
        return _TERMINATED
    if told is None:
        return 0 if state == "SUCCEEDED" else _UNKNOWN
    return told if told >= 0 else 128 - told


def _failure(detail: Any) -> str:
    return _last_line(str(detail.message or detail.error_type or ""))


def _last_line(text: str) -> str:
    """Last line of a text of Ray's: a stack may stand before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
