"""A proxy in front of a real S3 server that fails as stores and networks do, on demand. A tool of tests, not a test.

Requests pass byte by byte, the Host header too, so that their signatures stay valid.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# What AWS answers (ExpiredToken is a 400 there), and the last what stores do that know no uploads in chunks.
_ERRORS = {
    "slow_down": ("503 Slow Down", "SlowDown"),
    "internal_error": ("500 Internal Server Error", "InternalError"),
    "access_denied": ("403 Forbidden", "AccessDenied"),
    "expired_token": ("400 Bad Request", "ExpiredToken"),
    "length_required": ("411 Length Required", "MissingContentLength"),
}


@dataclass(kw_only=True)
class Fault:
    """Failure of requests; of several faults, the first that strikes counts."""

    # one of _ERRORS, or reset, lost_answer, black_hole, truncate, short (half, and the head says so), flip_byte, slow,
    # no_conditions
    kind: str
    on: str = ""  # operations, as "GET LIST"; all if empty
    path: str = ""  # what the request's target contains
    after: int = 0  # so many that match pass first
    times: float = float("inf")  # then so many are hit at most,
    share: float = 1.0  # each with this probability
    bytes_per_s: float = 1e6  # of the kind "slow"
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.kind)  # noqa: S311

    def strikes(self, operation: str, target: str) -> bool:
        """True if this request is hit; counts it if it could have been."""
        if operation not in (self.on.split() or [operation]) or self.path not in target:
            return False
        self.after -= 1
        if self.after >= 0 or self.times <= 0 or self.rng.random() >= self.share:
            return False
        self.times -= 1
        return True


class FaultProxy:
    """Passes requests on, but for its faults; `counts` them by operation: the method, or LIST for a GET that lists."""

    def __init__(self, upstream: str, *, uri: str, latency_s: float = 0) -> None:
        self.uri = uri  # of the bucket
        self.latency_s = latency_s  # of each answer
        self.endpoint = ""
        self.counts: Counter[str] = Counter()
        self.num_failed = 0
        self._upstream = upstream.rpartition("//")[2].split(":")
        self._faults: tuple[Fault, ...] = ()

    def fail(self, kind: str, **how: object) -> None:
        """From now on requests fail; `how` is what a Fault takes."""
        self._faults += (Fault(kind=kind, **how),)  # type: ignore[arg-type]

    def heal(self) -> None:
        """Takes all faults back."""
        self._faults = ()

    @contextmanager
    def running(self) -> Iterator[FaultProxy]:
        """Listens on a free port of this machine, in a thread of its own, while the block runs."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="faultproxy")
        thread.start()
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), loop).result(10)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(_stop(server), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client is done, or the proxy
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        if re.search(rb"\r\nexpect: 100-continue", head, re.I):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = head + await _read_body(reader, head)
        method, target = head.decode("latin1").split(" ", 2)[:2]
        operation = "LIST" if method == "GET" and "list-type=" in target else method
        self.counts[operation] += 1
        await asyncio.sleep(self.latency_s)
        fault = next((fault for fault in self._faults if fault.strikes(operation, target)), Fault(kind="none"))
        self.num_failed += fault.kind != "none"
        if fault.kind == "black_hole":
            await asyncio.sleep(3600)
        if fault.kind == "reset":
            return _reset(writer)
        answer = _error(*_ERRORS[fault.kind]) if fault.kind in _ERRORS else await self._ask(request, method)
        if fault.kind == "lost_answer":
            return _reset(writer)
        answer_head, body = answer
        return await _reply(writer, fault, answer_head, b"" if method == "HEAD" else body)

    async def _ask(self, request: bytes, method: str) -> tuple[bytes, bytes]:
        """Head and body of the server's answer, over a connection of its own."""
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            while b" 100 " in head[:15]:
                head = await reader.readuntil(b"\r\n\r\n")
            return head, b"" if method == "HEAD" else await _read_body(reader, head)
        finally:
            writer.close()


async def _reply(writer: asyncio.StreamWriter, fault: Fault, head: bytes, body: bytes) -> bool:
    if fault.kind == "no_conditions" and b" 412 " in head[:15]:  # signed headers can't be taken away: lie
        head, body = b'HTTP/1.1 200 OK\r\nETag: "none"\r\nContent-Length: 0\r\n\r\n', b""
    middle = len(body) // 2
    if fault.kind == "flip_byte" and body:
        body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    if fault.kind == "short" and body:
        head, body = _shortened(head, middle), body[:middle]
    is_cut = fault.kind == "truncate" and bool(body)
    body = body[:middle] if is_cut else body
    step = 4096 if fault.kind == "slow" else len(body) or 1
    writer.write(head)
    for start in range(0, len(body), step):
        writer.write(body[start : start + step])
        await asyncio.sleep(step / fault.bytes_per_s if fault.kind == "slow" else 0)
    await writer.drain()
    return not is_cut


def _shortened(head: bytes, num_bytes: int) -> bytes:
    """The head of an answer of so many bytes, as a store would write it that holds no more."""
    head = re.sub(rb"(?i)(\r\ncontent-length: *)\d+", rb"\g<1>%d" % num_bytes, head)
    found = re.search(rb"(?i)\r\ncontent-range: *bytes (\d+)-", head)
    last = int(found[1]) + num_bytes - 1 if found else 0
    return re.sub(rb"(?i)(\r\ncontent-range: *bytes \d+-)\d+", rb"\g<1>%d" % last, head)


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    """The body as it came: chunks keep their framing."""
    if length := re.search(rb"\r\ncontent-length: *(\d+)", head, re.I):
        return await reader.readexactly(int(length[1]))
    body = b""
    is_open = bool(re.search(rb"\r\ntransfer-encoding: *chunked", head, re.I))
    while is_open:
        line = await reader.readuntil(b"\r\n")
        body += line
        if size := int(line.split(b";")[0], 16):
            body += await reader.readexactly(size + 2)
        while is_open and not size:  # trailers, and the empty line after them
            line = await reader.readuntil(b"\r\n")
            body += line
            is_open = line != b"\r\n"
    return body


def _error(status: str, code: str) -> tuple[bytes, bytes]:
    # As long as AWS's: clients were seen to stumble over errors that are longer than what they asked for.
    ids = f"<RequestId>{'0123456789ABCDEF' * 2}</RequestId><HostId>{'a1b2' * 19}</HostId>"
    xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Try.</Message>{ids}</Error>'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(xml)}\r\n\r\n"
    return head.encode(), xml.encode()


def _reset(writer: asyncio.StreamWriter) -> bool:
    at_once = struct.pack("ii", 1, 0)  # closing then sends RST, not FIN
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    writer.transport.abort()
    return False


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
