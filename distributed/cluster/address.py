"""The Ray cluster that this process is to join, if there is one. Imports without Ray."""

from __future__ import annotations

import os
import sys

VARIABLE = "RAY_ADDRESS"  # set by Ray for the jobs that are submitted to a cluster


def named_address() -> str | None:
    """The cluster's address by the environment; None where it names none."""
    return os.environ.get(VARIABLE)


def has_cluster() -> bool:
    """True if the environment names a cluster, or this process has joined one that it did not start itself."""
    ray = sys.modules.get("ray")
    node = ray._private.worker._global_node if ray is not None and ray.is_initialized() else None
    return named_address() is not None or (node is not None and not node.is_head())
