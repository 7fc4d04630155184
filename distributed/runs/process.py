"""Which process this is, in words and beyond doubt, and whether another one is known to be dead. Linux's /proc only.

Elsewhere nothing can be proved, and nothing is claimed.
"""

from __future__ import annotations

import os
import pwd
import socket
from typing import NamedTuple


class Process(NamedTuple):
    """A process of some machine; numbers of processes come back, so its start belongs to it."""

    machine: str  # empty where nothing can be proved
    pid: int
    started: int  # ticks since the machine's start


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    started = _started(pid)
    return Process("" if started is None else _machine(), pid, started or 0)


def this_owner() -> str:
    """The calling process in words: user@host pid N."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs under a number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


def is_dead(process: Process) -> bool:
    """Whether the process has certainly ended; False where that can't be known from here."""
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
    """When a process began; 0 if it has ended and its parent has not asked yet; None if it can't be seen."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            state, *fields = stream.read().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if state in "ZX" else int(fields[18])
