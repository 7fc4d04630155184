"""One command for a machine with a GPU: checks, rates, a profile, and scores compared with a CPU's.

It needs torch, NumPy and OpenCV. What else is missing is replaced here, or left out and named.
"""

from benchmarks.gpu.machine import replace_missing

replace_missing()  # before `model` is imported: here, and in the processes that a DataLoader starts
