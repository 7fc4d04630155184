"""An object store as `location` needs it beyond pyarrow: ETags, conditional puts, listings with versions; on s3fs.

Knows `bucket/key` paths only. For small objects, and images, each one request. The pyarrow file system says which store
it is, so that a pickled location leads to the same one anywhere; credentials come from the environment or a role.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

from pyarrow import fs

ATTEMPTS = 10  # three gave up after 2 s of SlowDown; ten rode out 90 s
TIMEOUT_S = 30.0
IN_FLIGHT = 128  # requests at once of one process: at 40 ms each, three thousand a second

_DELETED_AT_ONCE = 1000  # the protocol's limit
_CONFLICT_ATTEMPTS = 6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_LOST, _CONFLICT = 412, 409
_SKEW_S = 890.0  # stores refuse from 900 s on, and tell whole seconds
# Refusals of one object, not of these keys: the others may well be read. Archived ones and those of a key of their own.
_DENIED_CODES = frozenset(
    ["AccessDenied", "AllAccessDisabled", "InvalidObjectState", "InvalidRequest", "KeyTooLongError"]
)
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
    with _explained():
        try:
            found = client(filesystem).find(path, detail=True)
        except FileNotFoundError:  # the bucket
            return None
    if not found and "/" in path:
        return None
    return [  # some stores keep an object in a folder's place
        (name, info["size"], _version(info))
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")
    ]


def check_listing(filesystem: fs.FileSystem, path: str) -> None:
    """Passes if we may list what lies below a folder, there or not; the bucket has to be.

    Raises:
        OSError: the store refuses, or has no such bucket.
    """
    bucket, _, key = path.partition("/")
    with _explained():
        client(filesystem).call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)


def read(
    filesystem: fs.FileSystem, path: str, *, span: tuple[int, int] | None = None, most_bytes: int | None = None
) -> tuple[bytes, str] | None:
    """Content and version of a small object, or of its bytes from the first to before the last; None if it is gone.

    Raises:
        PermissionError: the object is forbidden.
        OSError: the store failed; with errno EFBIG where there are more than `most_bytes`, which are not read.
    """
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from fsspec.asyn import sync

    bucket, _, key = path.partition("/")
    store = client(filesystem)
    part = {"Range": f"bytes={span[0]}-{span[1] - 1}"} if span else {}

    async def get() -> tuple[bytes | None, str]:
        answer = await store._call_s3("get_object", Bucket=bucket, Key=key, **part)
        async with answer["Body"] as body:
            is_too_large = most_bytes is not None and answer["ContentLength"] > most_bytes
            return None if is_too_large else await body.read(), _version(answer)

    data, version = None, ""
    with _explained():
        for attempt in range(ATTEMPTS):
            try:
                data, version = sync(store.loop, get)
                break
            except FileNotFoundError:
                return None
            except (BotoCoreError, ClientError):  # a request is repeated, but not one whose answer broke off
                if attempt + 1 == ATTEMPTS:
                    raise
                back_off(attempt)
    if data is None:
        raise OSError(errno.EFBIG, f"expected at most {most_bytes} B, found more")
    return data, version


def back_off(attempt: int) -> None:
    """Waits, longer after each attempt: 0.1 s at most after the first."""
    time.sleep(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311


def write_if(filesystem: fs.FileSystem, path: str, data: bytes, *, version: str | None) -> str | None:
    """The new version, or None where the object's version was not the given one (None: where something was there).

    Equal contents have equal versions: who must tell them apart writes a count into them.
    """
    bucket, _, key = path.partition("/")
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}
    # Several layers below repeat a put, not all of which say so. Where the first one won and its answer was lost, the
    # second is refused; then the object bears our mark.
    mark = {"writer": uuid.uuid4().hex}
    put = {"Bucket": bucket, "Key": key, "Body": data, "Metadata": mark, **condition}
    for attempt in range(_CONFLICT_ATTEMPTS):
        with _explained():
            try:
                return _version(client(filesystem).call_s3("put_object", **put))
            except OSError as error:
                refusal = _refusal(error)
                # If-Match on what is gone is a NoSuchKey; a missing bucket is a failure.
                if refusal is None or not (_status(refusal) in (_LOST, _CONFLICT) or _code(refusal) == "NoSuchKey"):
                    raise
                found = _head(filesystem, path)
                if found and found["Metadata"] == mark:
                    return _version(found)
                if _status(refusal) != _CONFLICT or (found and _version(found)) != version:
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
    for first in range(0, len(paths), _DELETED_AT_ONCE):
        bucket = paths[first].partition("/")[0]
        keys = [{"Key": path.partition("/")[2]} for path in paths[first : first + _DELETED_AT_ONCE]]
        # The file system's own way to delete many passes over the errors in an answer.
        with _explained():
            answer = client(filesystem).call_s3(
                "delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True}
            )
        for failure in answer.get("Errors", ()):
            raise OSError(f"{failure.get('Key')} was not deleted: {failure.get('Code')} {failure.get('Message')}")


def endpoint(filesystem: fs.FileSystem) -> str:
    """The URL that requests go to."""
    return str(client(filesystem).s3.meta.endpoint_url)


def client(filesystem: fs.FileSystem) -> Any:
    """This process's s3fs client of the store; made once, for it takes a third of a second. Safe among threads."""
    (options,) = filesystem.__reduce__()[1]  # pyarrow has no other way to ask for the endpoint
    known = (os.getpid(), options["endpoint_override"], filesystem.region)  # connections don't survive a fork
    with _clients_lock:
        if known not in _clients:
            _clients[known] = _new_client(known[1], region=known[2])
        return _clients[known]


def _new_client(endpoint: str, *, region: str) -> Any:
    import s3fs  # half a second, which only users of a store shall wait for

    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"  # as pyarrow reads it
    store = s3fs.S3FileSystem(
        endpoint_url=endpoint or None,
        client_kwargs={"region_name": region},
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS},
            "max_pool_connections": IN_FLIGHT,
            "connect_timeout": TIMEOUT_S,
            "read_timeout": TIMEOUT_S,
            "s3": {"addressing_style": "path" if endpoint else "auto"},  # as pyarrow does
            "ignore_configured_endpoint_urls": True,
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    store.retries = 1  # botocore retries already; the two would multiply
    return store


def _head(filesystem: fs.FileSystem, path: str) -> dict[str, Any] | None:
    bucket, _, key = path.partition("/")
    if not key:
        return None
    with _explained(), contextlib.suppress(FileNotFoundError):
        return dict(client(filesystem).call_s3("head_object", Bucket=bucket, Key=key))
    return None


def _version(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


@contextmanager
def _explained() -> Iterator[None]:
    """Turns every failure of a store into an OSError of one line that tells a user what to do.

    It is a PermissionError where the store knows these credentials, and refuses what was asked for.
    """
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        refusal = _refusal(error)
        is_denied = refusal is not None and _code(refusal) in _DENIED_CODES
        raise (PermissionError if is_denied else OSError)(_explain(error)) from error


def _explain(error: Exception) -> str:
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return "no credentials: expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    refusal = _refusal(error)
    if refusal is None:
        return next(iter(str(error).splitlines()), type(error).__name__)
    # No text of the store's where it could quote what was signed.
    code, what = _code(refusal), f"{_code(refusal)} at {refusal.operation_name}"
    if code == "RequestTimeTooSkewed" or (_status(refusal) == 403 and _is_clock_wrong(refusal)):
        return f"{what}: this machine's clock is not the store's"
    if code in _EXPIRED_CODES or _status(refusal) == 403:
        return f"the store refuses these credentials ({what}): check the keys or the role, and their rights"
    if code == "400":  # the answer to a HEAD has no body that would say more
        return f"{what}: check the credentials (an expired token?) and the region"
    return f"{what}: {refusal.response['Error'].get('Message') or 'no reason given'}".splitlines()[0]


def _is_clock_wrong(refusal: Any) -> bool:
    """True where an answer says so by its time: one to a HEAD has no body that would."""
    told = refusal.response["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    return told is not None and abs(parsedate_to_datetime(told).timestamp() - time.time()) > _SKEW_S


def _refusal(error: Exception) -> Any:
    """The store's answer behind an error of s3fs, as botocore's ClientError; None where none came."""
    from botocore.exceptions import ClientError

    return next((found for found in (error, error.__cause__) if isinstance(found, ClientError)), None)


def _status(refusal: Any) -> int:
    return int(refusal.response["ResponseMetadata"]["HTTPStatusCode"])


def _code(refusal: Any) -> str:
    return str(refusal.response["Error"].get("Code"))
