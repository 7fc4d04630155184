"""The lease of an output: one run at a time writes it, and a run that was taken over learns so before it publishes.

.lease.json  who holds it, the attempt (a fencing number: one more with each taking), heartbeats, held or released

Every change is a compare-and-swap. Ages are told by the store's clock. Knows nothing of what is written under it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import pwd
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from distributed.runs.record import check_usable
from distributed.storage.location import Location, read_versioned, write_if
from model.errors import InputError, LeaseError, LossightError, RunFailedError, StoppedError
from model.json_text import parse_json

LEASE_FILE = ".lease.json"  # hidden: a folder with nothing else counts as empty
_HELD, _RELEASED = "held", "released"
_RENEWALS_PER_TTL = 4  # three may fail
_RELEASE_WAIT_S = 10.0  # for a renewal that is under way


class Process(NamedTuple):
    """A process of some machine. Process numbers are used again, so its start belongs to it.

    Read from Linux's /proc: ticks since the machine's start are the same for all who look. Times of day (psutil's) move
    with the clock, and a living holder would seem dead.
    """

    machine: str  # empty where nothing can be proved
    pid: int
    started: int  # ticks since the machine's start


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Record:
    """Content of the lease file. `holding` is random: equal in two records only if one run wrote both."""

    owner: str
    process: Process
    holding: str
    attempt: int
    heartbeat: int
    ttl_s: float
    taken_at: str
    state: str


class Lease:
    """A lease that this process holds; `hold` makes it.

    Attributes:
        is_after_death: the holder before did not release it: it was killed, or killed itself.
    """

    def __init__(self, out: Location, record: _Record, *, version: str, is_after_death: bool) -> None:
        self.is_after_death = is_after_death
        self._out = out
        self._record = record
        self._version = version
        self._renewed_at = time.monotonic()
        self._why_lost = ""
        self._lock = threading.Lock()

    @property
    def attempt(self) -> int:
        """The fencing number: greater than that of every earlier holder."""
        return self._record.attempt

    def check(self) -> None:
        """Renews the lease now. To be called before anything is made visible.

        Raises:
            LeaseError: it is another run's, or was lost when the store failed for longer than its time to live.
            RunFailedError: the store failed.
        """
        with self._lock:
            self._renew()

    def ends(self, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """The same question, to which the answer is yes, too, once the lease is known to be lost."""
        return lambda: bool(self._why_lost) or should_stop()

    def check_store(self) -> None:
        """Refuses a store that ignores the conditions of writes; what such a one then holds is a released lease.

        Raises:
            InputError: it does, or it heeds none.
        """
        probe = _dump(dataclasses.replace(self._record, state=_RELEASED))
        for version in (None, "0" * 32):
            if write_if(self._out.join(LEASE_FILE), probe, version=version) is not None:
                raise _unfit(self._out, "ignored the condition of a write")
        self.check()

    def keep(self, stopped: threading.Event) -> None:
        """Renews the lease until it is lost or the event is set."""
        while not stopped.wait(self._record.ttl_s / _RENEWALS_PER_TTL):
            with self._lock:
                try:
                    self._renew()
                except RunFailedError as error:
                    if time.monotonic() - self._renewed_at > self._record.ttl_s:
                        self._why_lost = f"{self._out.uri}: the lease expired: {error}"
                except LossightError:
                    return

    def release(self) -> None:
        """Lets the next run take it at once; does nothing if it is lost or the store fails."""
        if not self._lock.acquire(timeout=_RELEASE_WAIT_S):
            return
        try:
            if not self._why_lost:
                with contextlib.suppress(LossightError):
                    self._swap(dataclasses.replace(self._record, state=_RELEASED))
        finally:
            self._lock.release()

    def _renew(self) -> None:
        if self._why_lost:
            raise LeaseError(self._why_lost)
        begun = time.monotonic()
        self._swap(dataclasses.replace(self._record, heartbeat=self._record.heartbeat + 1))
        self._renewed_at = begun

    def _swap(self, record: _Record) -> None:
        file = self._out.join(LEASE_FILE)
        while (written := write_if(file, _dump(record), version=self._version)) is None:
            found = _read(file)
            if found is None or found[0].holding != record.holding:
                self._why_lost = f"{self._out.uri}: {_describe_loss(found and found[0])}"
                raise LeaseError(self._why_lost)
            if found[1] == self._version:
                raise _unfit(self._out, "refused a write whose condition held")
            self._version = found[1]  # an earlier swap of ours went through although it seemed to fail
        self._record, self._version = record, written


@contextmanager
def hold(out: Location, *, ttl_s: float = 60.0) -> Iterator[Lease]:
    """The lease of an output while the block runs; renewed by a thread, and released at the end, however it ends.

    It is taken if nobody has it, if it was released, if its holder is known to be dead (a process of this machine that
    is gone), or if its last heartbeat is older than its time to live.

    Raises:
        LeaseError: another run holds it; or the block stopped because it was lost.
        InputError: something that is no run lies there, or the store does not heed conditions.
    """
    lease = _take(out, ttl_s=ttl_s)
    stopped = threading.Event()
    try:
        lease.check_store()
        threading.Thread(target=lease.keep, args=(stopped,), name="lease", daemon=True).start()
        yield lease
    except StoppedError as error:
        if lease._why_lost:
            raise LeaseError(lease._why_lost) from error
        raise
    finally:
        stopped.set()
        lease.release()


def _take(out: Location, *, ttl_s: float) -> Lease:
    file = out.join(LEASE_FILE)
    found = _read(file)
    if found is None:
        check_usable(out)
    else:
        _check_takable(out, found[0])
    record = _new_record(attempt=found[0].attempt + 1 if found else 1, ttl_s=ttl_s)
    version = write_if(file, _dump(record), version=found and found[1])
    if version is not None:
        return Lease(out, record, version=version, is_after_death=found is not None and found[0].state == _HELD)
    if found is not None and _read(file) == found:
        raise _unfit(out, "refused a write whose condition held")
    return _take(out, ttl_s=ttl_s)  # somebody else was faster: then that one holds it


def _check_takable(out: Location, record: _Record) -> None:
    if record.state == _RELEASED or is_dead(record.process):
        return
    age_s = out.join(LEASE_FILE).age_s() or 0.0
    if age_s <= record.ttl_s:
        raise LeaseError(
            f"{out.uri}: another run holds the lease: {record.owner} since {record.taken_at}, last heartbeat "
            f"{age_s:.0f} s ago; it expires in {record.ttl_s - age_s:.0f} s if there is no other"
        )


def _unfit(out: Location, what: str) -> InputError:
    return InputError(
        f"{out.uri}: expected a store with conditional writes, found one that {what}, so that two runs could mix; "
        f"`lossight doctor --storage {out.uri}` checks it"
    )


def _describe_loss(record: _Record | None) -> str:
    if record is None:
        return "the lease was removed while this run held it"
    return f"taken over by {record.owner} at {record.taken_at} (attempt {record.attempt})"


def _read(file: Location) -> tuple[_Record, str] | None:
    found = read_versioned(file)
    if found is None:
        return None
    try:
        values = parse_json(found[0])
        return _Record(**{**values, "process": Process(**values["process"])}), found[1]
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"{file.uri}: expected a lease, found something else; remove it if no run is at work"
        ) from None


def _dump(record: _Record) -> bytes:
    values = {**dataclasses.asdict(record), "process": record.process._asdict()}
    return json.dumps(values, indent=1).encode() + b"\n"


def _new_record(*, attempt: int, ttl_s: float) -> _Record:
    return _Record(
        owner=_this_owner(),
        process=_this_process(),
        holding=uuid.uuid4().hex,
        attempt=attempt,
        heartbeat=0,
        ttl_s=ttl_s,
        taken_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        state=_HELD,
    )


def _this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    started = _started(pid)
    return Process("" if started is None else _machine(), pid, started or 0)


def _this_owner() -> str:
    """The calling process in words: user@host pid N."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under a number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


def is_dead(process: Process) -> bool:
    """True if the process has certainly ended; False where that can't be known from here."""
    if not process.machine or process.machine != _machine():
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and perhaps hidden from us
        pass
    started = _started(process.pid)
    return started is not None and started != process.started


def _machine() -> str:
    """Differs between machines, between starts of one, and between containers, whose process numbers are their own."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return f"{socket.gethostname()} {stream.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Start time of a process; 0 if it has ended and its parent has not asked yet; None if it can't be seen."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            state, *fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if state in "ZX" else int(fields[18])
