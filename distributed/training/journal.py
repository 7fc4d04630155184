"""What a training writes for those who watch it: one line an epoch, and the same for TensorBoard.

Both are made anew from the history at the end of each epoch: an epoch that was done twice, since a worker died in
between, is in them once.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distributed.storage.location import Location, write_bytes

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FILE = "tensorboard/events.out.tfevents.0.lossight"


def write_journal(out: Location, history: Sequence[dict[str, Any]]) -> None:
    """Writes metrics.jsonl and a TensorBoard event file with every number of every epoch."""
    lines = [json.dumps(epoch, sort_keys=True) for epoch in history]
    write_bytes(out.join(METRICS_FILE), "\n".join([*lines, ""]).encode())
    write_bytes(out.join(TENSORBOARD_FILE), _events(history))


def _events(history: Sequence[dict[str, Any]]) -> bytes:
    from tensorboardX import SummaryWriter  # takes a while, and only training needs it

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for epoch in history:
                for name, value in epoch.items():
                    if isinstance(value, int | float) and name not in ("epoch", "ended_at"):
                        writer.add_scalar(name, value, epoch["epoch"], walltime=epoch["ended_at"])
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
