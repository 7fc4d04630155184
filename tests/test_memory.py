"""Freed tensors' memory, with and without the setting, by the pages that the system had to zero."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from model.memory import MEMORY_VARIABLES

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")

# Least kiB of pages zeroed for one of ten rounds of blocks, 240 MiB in all, asked for as PyTorch does for tensors; in
# the main thread or another.
_PROGRAM = """
import ctypes, resource, sys, threading
from model.memory import keep_freed_memory

libc = ctypes.CDLL(None)

def take(num_mib):
    block, size = ctypes.c_void_p(), num_mib * 2**20
    libc.posix_memalign(ctypes.byref(block), ctypes.c_size_t(64), ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    return block

def count():
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        first, second = take(100), take(60)
        libc.free(first)
        third = take(80)
        libc.free(second)
        libc.free(third)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

found = []
if "keep" in sys.argv:
    keep_freed_memory()
if "thread" in sys.argv:
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
else:
    count()
print(min(found) * resource.getpagesize() // 1024)
"""


def zeroed_kib(*words: str, variables: Mapping[str, str] = {}) -> int:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **variables}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *words], env=environment, capture_output=True, check=True, text=True
    )
    return int(done.stdout)


def test_memory_of_freed_tensors_is_used_again() -> None:
    assert zeroed_kib() > 230 * 1024  # else there is nothing to be won
    assert zeroed_kib("keep") < 10 * 1024


def test_a_process_that_is_told_by_variables_does_so_in_all_threads() -> None:
    assert zeroed_kib("thread", variables=MEMORY_VARIABLES) < 10 * 1024
