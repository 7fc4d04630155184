"""What `location` asks of an object store beyond pyarrow: ETags, conditional puts, listings with versions; by botocore.

Knows `bucket/key` paths only. Never for bulk data. Where to is what the pyarrow file system says, so that a pickled
location leads to the same store anywhere; who asks is the environment or a role.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from pyarrow import fs

ATTEMPTS = 10  # three gave up after 2 s of SlowDown; ten rode out 90 s
TIMEOUT_S = 30.0

_PAGE_KEYS = 1000  # the protocol's limit, for listings and for deletions
_CONFLICT_ATTEMPTS = 6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_LOST, _CONFLICT, _MISSING = 412, 409, 404
_EXPIRED_CODES = frozenset(["ExpiredToken", "InvalidToken", "TokenRefreshRequired"])  # refusals that are no 403

_clients: dict[tuple[int, str, str], Any] = {}
_clients_lock = threading.Lock()


def stat(filesystem: fs.FileSystem, path: str) -> tuple[int, str] | None:
    """Size in bytes and version of an object; None if there is none of that name."""
    head = _head(filesystem, path)
    return None if head is None else (head["ContentLength"], _version(head))


def age_s(filesystem: fs.FileSystem, path: str) -> float | None:
    """Seconds since an object was written, by the store's clock (which counts whole ones); None if it is not there.

    0 where the store doesn't say what time it is.
    """
    head = _head(filesystem, path)
    if head is None:
        return None
    now = head["ResponseMetadata"]["HTTPHeaders"].get("date")
    return 0.0 if now is None else float((parsedate_to_datetime(now) - head["LastModified"]).total_seconds())


def list_below(filesystem: fs.FileSystem, path: str) -> list[tuple[str, int, str]] | None:
    """Path, size and version of each object below a folder, in any order; None if there is no such folder."""
    bucket, _, key = path.partition("/")
    pages = client(filesystem).get_paginator("list_objects_v2")
    prefix = f"{key}/" if key else ""
    found, is_there = [], not key
    try:
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE_KEYS}):
            for entry in page.get("Contents", ()):
                is_there = True
                if not entry["Key"].endswith("/"):  # an object that stands for a folder
                    found.append((f"{bucket}/{entry['Key']}", entry["Size"], _version(entry)))
    except ClientError as error:
        if _status(error) != _MISSING:
            raise
        return None
    return found if is_there else None


def read(filesystem: fs.FileSystem, path: str) -> tuple[bytes, str] | None:
    """Content and version of a small object; None if it is not there."""
    bucket, _, key = path.partition("/")
    for attempt in range(ATTEMPTS):
        try:
            answer = client(filesystem).get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if _status(error) != _MISSING:
                raise
            return None
        try:
            return answer["Body"].read(), _version(answer)
        except BotoCoreError:  # it repeats a request, but not one whose answer broke off
            if attempt + 1 == ATTEMPTS:
                raise
            back_off(attempt)
    raise AssertionError("unreachable")


def back_off(attempt: int) -> None:
    """Waits, longer after each attempt: 0.1 s at most after the first."""
    time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311


def write_if(filesystem: fs.FileSystem, path: str, data: bytes, *, version: str | None) -> str | None:
    """The new version, or None where the object's version was not the given one (None: where something was there).

    Equal contents have equal versions: who must tell them apart writes a count into them.
    """
    bucket, _, key = path.partition("/")
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}
    for attempt in range(_CONFLICT_ATTEMPTS):
        try:
            return _version(client(filesystem).put_object(Bucket=bucket, Key=key, Body=data, **condition))
        except ClientError as error:
            if not _is_lost(error):
                raise
            found = read(filesystem, path)
            # Our own first put may have won, its answer been lost, and the client's second put met it.
            if found and found[0] == data and error.response["ResponseMetadata"].get("RetryAttempts"):
                return found[1]
            if _status(error) != _CONFLICT or (found and found[1]) != version:
                return None
            if attempt + 1 == _CONFLICT_ATTEMPTS:
                raise  # writers kept each other from winning
            time.sleep(random.uniform(0, _FIRST_PAUSE_S * 2**attempt))  # noqa: S311
    raise AssertionError("unreachable")


def delete(filesystem: fs.FileSystem, paths: Sequence[str]) -> None:
    """Removes objects of one bucket; those that are not there are passed over.

    Raises:
        OSError: the store kept one of them.
    """
    for first in range(0, len(paths), _PAGE_KEYS):
        bucket = paths[first].partition("/")[0]
        keys = [{"Key": path.partition("/")[2]} for path in paths[first : first + _PAGE_KEYS]]
        answer = client(filesystem).delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        for failure in answer.get("Errors", ()):
            raise OSError(f"{failure.get('Key')} was not deleted: {failure.get('Code')} {failure.get('Message')}")


def explain(error: BotoCoreError | ClientError) -> str:
    """What a failure means to a user; no text of the store's where it could quote what was signed."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    if not isinstance(error, ClientError):
        return str(error)
    code, action = str(error.response["Error"].get("Code")), error.operation_name
    if code == "RequestTimeTooSkewed":
        return f"{code} at {action}: this machine's clock is not the store's"
    if code in _EXPIRED_CODES or _status(error) == 403:
        return f"the store refuses these credentials ({code} at {action}): check the keys or the role, and their rights"
    if code == "400":  # the answer to a HEAD has no body that would say more
        return f"{code} at {action}: check the credentials (an expired token?) and the region"
    return f"{code} at {action}: {error.response['Error'].get('Message') or 'no reason given'}"


def _head(filesystem: fs.FileSystem, path: str) -> dict[str, Any] | None:
    bucket, _, key = path.partition("/")
    if not key:
        return None
    try:
        return dict(client(filesystem).head_object(Bucket=bucket, Key=key))
    except ClientError as error:
        if _status(error) != _MISSING:
            raise
        return None


def _version(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _is_lost(error: ClientError) -> bool:
    # If-Match on what is gone is a 404, as is a missing bucket: that one is a failure.
    return _status(error) in (_LOST, _CONFLICT) or error.response["Error"].get("Code") == "NoSuchKey"


def client(filesystem: fs.FileSystem) -> Any:
    """This process's client of the store; made once, for it takes a third of a second. Safe among threads."""
    (options,) = filesystem.__reduce__()[1]  # pyarrow has no other way to ask for the endpoint
    endpoint, region = options["endpoint_override"], filesystem.region
    with _clients_lock:
        known = (os.getpid(), endpoint, region)  # connections don't survive a fork
        if known not in _clients:
            _clients[known] = _new_client(endpoint, region=region)
        return _clients[known]


def _new_client(endpoint: str, *, region: str) -> Any:
    import botocore.session
    from botocore.config import Config

    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"  # as pyarrow reads it
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        s3={"addressing_style": "path" if endpoint else "auto"},  # as pyarrow does
        ignore_configured_endpoint_urls=True,
    )
    session = botocore.session.get_session()
    return session.create_client("s3", region_name=region, endpoint_url=endpoint or None, config=config)
