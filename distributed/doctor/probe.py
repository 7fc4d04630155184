"""Checks of a store: it answers, lets us in and passes its trials; each says what to do where it fails.

Works below a scratch folder of its own, and removes it whatever happens.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import shutil
import ssl
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from pyarrow import fs

from distributed.doctor.machine import Finding
from distributed.doctor.trials import TRIALS, WrongError
from distributed.storage import s3
from distributed.storage.location import Location, first_line, locate, reported
from model.errors import LossightError, RunFailedError

# Clients go on trying for minutes; who waits for a doctor shall not.
DEADLINE_S = 15.0
_CONNECT_TIMEOUT_S = 5.0
_ATTEMPTS = 2
_MAX_CLOCK_DIFFERENCE_S = 300.0  # stores refuse from 900 s on
_NETWORK_FIX = "look at the store's load and the network between"
_ADVICE = {  # what a failure says -> what to do
    "no credentials": "give them in the environment, or a role to this machine",
    "refuses": "grant the rights to list, get, put and delete there, or use another key or role",
    "ACCESS_DENIED": "grant the rights to list, get, put and delete there, or use another key or role",
    "Invalid endpoint": "give AWS_ENDPOINT_URL_S3 as http://HOST:PORT or https://HOST:PORT",
    "NoSuchBucket": "create the bucket, or correct the URI",
    "NO_SUCH_BUCKET": "create the bucket, or correct the URI",
    "HTTP status 411": "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required: this store wants uploads of known length",
    "RequestTimeTooSkewed": "set this machine's clock",
    "PermanentRedirect": "set AWS_REGION to the bucket's",
    "NETWORK_CONNECTION": _NETWORK_FIX,
    "disk is full": "make room",
    "Not a directory": "give a folder, not a file",
    "Permission denied": "give a folder that you may write",
    "Read-only": "give a folder that you may write",
    "damaged": "bytes change on their way or at rest: use another store",
}

Check = Callable[[Location], str]  # what was found; raises what is wrong


def check_storage(uri: str, *, deadline_s: float = DEADLINE_S) -> Iterator[Finding]:
    """Checks of a path or an s3:// URI; they end early where nothing further can succeed.

    Args:
        uri: what exists there stays as it is; it need not exist.
        deadline_s: of each check.

    Raises:
        InputError: no such location can be.
    """
    location = _impatient(locate(uri))
    scratch = location.join(f".lossight-doctor-{uuid.uuid4().hex[:12]}")
    examine = functools.partial(_examine, deadline_s=deadline_s)
    if not location.is_local:
        for name, check in _FIRST.items():
            finding = examine(name, check, scratch)
            yield finding
            if finding.state == "failed":
                return
        yield _examine_clock(scratch)
    created = _missing_folders(location) if location.is_local else []
    try:
        for name, check in TRIALS.items():
            finding = examine(name, check, scratch)
            yield finding
            if finding.state == "failed" and name == next(iter(TRIALS)):
                break
    finally:  # also when nobody asks for more
        finding = examine("clean-up", functools.partial(_remove, created=created), scratch)
    yield finding


def check_reachable(uri: str, *, deadline_s: float = DEADLINE_S) -> None:
    """Passes where a store answers in time and lets us in; a path always does. Who would wait for minutes asks first.

    Raises:
        RunFailedError: it does not, and what to do.
        InputError: no such location can be.
    """
    location = locate(uri)
    if location.is_local:
        return
    for name, check in _FIRST.items():
        finding = _examine(name, check, location, deadline_s=deadline_s)
        if finding.state == "failed":
            raise RunFailedError(f"{uri}: storage failed: {finding.found}; {finding.fix}")


def compare_clocks(store: datetime.datetime, here: datetime.datetime) -> Finding:
    """Check that the store's time and this machine's agree well enough for signatures."""
    seconds = (here - store).total_seconds()
    found = f"this machine is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the store"
    if abs(seconds) > _MAX_CLOCK_DIFFERENCE_S:
        return Finding(name="clock", state="warning", found=found, fix="set the clock: stores refuse from 900 s on")
    return Finding(name="clock", state="ok", found=found)


def _impatient(location: Location) -> Location:
    """The same location, whose clients give up before the deadline: the process could not end while pyarrow tries."""
    if location.is_local:
        return location
    (options,) = location.filesystem.__reduce__()[1]
    filesystem = fs.S3FileSystem(
        endpoint_override=options["endpoint_override"],
        region=location.filesystem.region,
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_CONNECT_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
    )
    return location._replace(filesystem=filesystem)


def _examine(name: str, check: Check, location: Location, *, deadline_s: float) -> Finding:
    """The finding of a check that gets so much time; a thread that is late is left behind."""
    findings: list[Finding] = []
    thread = threading.Thread(target=lambda: findings.append(_tried(name, check, location)), daemon=True)
    thread.start()
    thread.join(deadline_s)
    if findings:
        return findings[0]
    return Finding(name=name, state="failed", found=f"no success within {deadline_s:g} s", fix=_NETWORK_FIX)


def _tried(name: str, check: Check, location: Location) -> Finding:
    try:
        return Finding(name=name, state="ok", found=check(location))
    except WrongError as error:
        return Finding(name=name, state="failed", found=str(error), fix=error.fix)
    except LossightError as error:
        found = str(error).partition("storage failed: ")[2] or str(error)
    except Exception as error:  # a finding too: a store may answer anything
        found = f"unexpected {type(error).__name__}: {first_line(error)}"
    fix = next((fix for said, fix in _ADVICE.items() if said in found), "see what the store's log says")
    return Finding(name=name, state="failed", found=found, fix=fix)


def _reach(location: Location) -> str:
    """Any answer will do; an unsigned request takes no retries and shows no secret."""
    url = _endpoint(location)
    host = urlsplit(url).netloc
    try:
        _ask(url)
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # that one speaks; the store's clients have their own certificates
            fix = "check AWS_ENDPOINT_URL_S3 and AWS_REGION, the network, and that the store runs"
            raise WrongError(f"expected a store at {host}, found {first_line(reason)}", fix=fix) from error
    return host


def _examine_clock(location: Location) -> Finding:
    try:
        store = parsedate_to_datetime(_ask(_endpoint(location)))
    except (OSError, ValueError):
        return Finding(name="clock", state="ok", found="the store doesn't say its time")
    return compare_clocks(store, datetime.datetime.now(datetime.UTC))


def _endpoint(location: Location) -> str:
    """URL that the clients use, without a password that someone may have put into it."""
    url = urlsplit(s3.endpoint(location.filesystem))
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def _ask(url: str) -> str:
    """The date that a server answers with; empty if it says none."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310
    try:
        answer = urllib.request.urlopen(request, timeout=_CONNECT_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return str(answer.headers["Date"] or "")


def _access(scratch: Location) -> str:
    with reported(scratch.uri):
        s3.check_listing(scratch.filesystem, scratch.path)
    return f"may list {scratch.path.partition('/')[0]}"


_FIRST: dict[str, Check] = {"endpoint": _reach, "access": _access}


def _remove(scratch: Location, *, created: list[str]) -> str:
    with reported(scratch.uri):
        if scratch.is_local:
            shutil.rmtree(scratch.path, ignore_errors=not os.path.isdir(scratch.path))
            for folder in created:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        else:
            found = s3.list_below(scratch.filesystem, scratch.path) or []
            s3.delete(scratch.filesystem, [path for path, _, _ in found])
    return "nothing is left behind"


def _missing_folders(location: Location) -> list[str]:
    """Folders that are not there yet, the deepest first."""
    missing, path = [], location.path
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing
