"""One command for a machine with a GPU: checks, rates, a profile, and scores compared with a CPU's.

It needs torch, NumPy and OpenCV. What else is missing is replaced here, or left out and named.
"""

import sys
from importlib.util import find_spec

for _name in ("numpy", "torch", "cv2"):
    if find_spec(_name) is None:
        print(f"benchmarks.gpu: expected the packages numpy, torch and cv2 (OpenCV), found no {_name}", file=sys.stderr)
        sys.exit(2)

from benchmarks.gpu.machine import replace_missing  # noqa: E402

replace_missing()  # before `model` is imported: here, and in the processes that a DataLoader starts
