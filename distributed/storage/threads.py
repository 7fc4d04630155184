"""Threads that ask a disk or a store for many things at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from distributed.storage import s3
from distributed.storage.location import Location

_DISK_THREADS = 16  # of a store, as many as requests may be in flight

Item = TypeVar("Item")
Result = TypeVar("Result")


def ask_at_once(location: Location, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function's results for all items, in order, each a few small reads of this location."""
    return in_threads(function, items, num_threads=_DISK_THREADS if location.is_local else s3.IN_FLIGHT)


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, num_threads: int) -> list[Result]:
    """The function's results for all items, in order; after an error no further item is begun."""
    if num_threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="items") as threads:
        futures = [threads.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
