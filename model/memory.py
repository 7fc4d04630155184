"""Memory of freed tensors, kept by the process for the next ones.

The C library of Linux gives every freed block of 32 MiB or more back to the system, which zeroes each page of the next
one. A pass on a CPU makes and frees hundreds of tensors: of 16 images through the paper's hourglass that took 47 % of
the time, of a training step of the small one 25 %. For it the process holds on to the most memory that it once had.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of mallopt's options
_LARGEST_KEPT, _MOST_KEPT = 2**30, 2**31 - 1  # bytes: of a block, and of all free ones together

# The same for a process that is yet to start. Its other threads, in which Ray calls actors and training loops, would
# take blocks from pools of their own, none over 64 MiB: so there is to be one pool.
MEMORY_VARIABLES = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(_LARGEST_KEPT),
    "MALLOC_TRIM_THRESHOLD_": str(_MOST_KEPT),
}


def keep_freed_memory() -> None:
    """Keeps what the main thread frees from now on; does nothing where the C library is not glibc."""
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, _MOST_KEPT)
