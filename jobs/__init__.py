"""Thin entry points, one module a command: parse, call one function, report, exit code."""

import sys
from pathlib import Path

# The checkout first: another package named `distributed` (Dask's) may lie in site-packages.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
