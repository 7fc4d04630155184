"""A week of a fleet for tests of triage: seven nights with what nights have, and a triage that is killed at any point.

    2026-11-16  ordinary              2026-11-20  one of its files is cut short
    2026-11-17  ordinary              2026-11-21  dark
    2026-11-18  nobody ran a triage   2026-11-22  ordinary
    2026-11-19  with it comes a late file of the 16th

A stand-in for the model has a known answer: the darker an image, the greater its predicted loss.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import distributed.storage.bundles
from distributed.ingest.fleet import row_of
from distributed.runs.progress import silent
from distributed.schema import POOL
from distributed.scoring.scorer import LossScorer
from distributed.storage import location
from distributed.storage.bundles import read_bundle
from distributed.storage.location import list_names, locate, write_bytes
from distributed.tables.parquet import Row, write_rows
from distributed.tables.scores import find_parts
from distributed.triage.options import TriageOptions
from distributed.triage.triage import triage_nights
from model.pose_model import PoseModel, Prediction
from model.synthetic import generate_fleet

NIGHT_ROWS = 24
LATE_ROWS = 6
BUDGET = 4
NIGHTS = [datetime.date(2026, 11, 16) + datetime.timedelta(days=number) for number in range(7)]
MORNING = NIGHTS[-1] + datetime.timedelta(days=1)  # after the last night
MISSED, WITH_LATE, CORRUPT, DARK = NIGHTS[2], NIGHTS[3], NIGHTS[4], NIGHTS[5]
LATE_PATH = f"date={NIGHTS[0]}/late/part-00000.parquet"

PoolRow = tuple[str, int]  # file and row


# The pool


@cache
def fleet() -> list[Row]:
    """The rows of all nights, in an order that makes the nights alike: each has frames of all drives.

    They have no times: drives are so short that a gap would leave a row or two of each.
    """
    count = len(NIGHTS) * NIGHT_ROWS + LATE_ROWS
    rows = [row_of(sample) for sample in generate_fleet(seed=5, num_samples=count, unreadable_share=0.0)]
    return [{**{name: row[name] for name in POOL.names}, "captured_at": None} for row in rows]


def rows_of(night: datetime.date) -> list[Row]:
    """The rows of a night, the late ones not among them."""
    rows = fleet()[LATE_ROWS + NIGHTS.index(night) :: len(NIGHTS)]
    return [{**row, "image": darkened(row["image"])} for row in rows] if night == DARK else rows


def camera_field() -> pa.Field:
    """A column of metadata."""
    return pa.field("camera", pa.string())


def darkened(image: bytes) -> bytes:
    """The image at a tenth of its brightness."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    encoded: bytes = cv2.imencode(".jpg", (pixels * 0.1).astype(np.uint8))[1].tobytes()
    return encoded


def deliver(place: str, night: datetime.date) -> None:
    """Delivery of a night's files to the pool: two files, and whatever else the night has."""
    rows, folder = rows_of(night), locate(f"{place}/pool/date={night}")
    write_rows(folder.join("a"), rows[: NIGHT_ROWS // 2], POOL)
    write_rows(folder.join("b"), rows[NIGHT_ROWS // 2 :], POOL)
    if night == WITH_LATE:
        write_rows(locate(f"{place}/pool/{LATE_PATH}").parent, fleet()[:LATE_ROWS], POOL)
    if night == CORRUPT:
        write_bytes(folder.join("cut.parquet"), b"PAR1 and then the disk was full")


# The triage


class BrightnessModel(nn.Module):
    """Predicts a loss of minus the mean of an image's crop."""

    def __init__(self, model: PoseModel) -> None:
        super().__init__()
        self.spec, self.embedding_dim = model.spec, model.embedding_dim

    def forward(self, pixels: torch.Tensor) -> Prediction:
        """The prediction of crops (B, S, S, 3)."""
        size, count = self.spec.heatmap_size, self.spec.skeleton.num_keypoints
        heatmaps = torch.zeros(1).expand(len(pixels), 1, count, size, size)
        loss = -pixels.float().mean(dim=tuple(range(1, pixels.ndim)))
        unknown = torch.full(heatmaps.shape[:1] + heatmaps.shape[2:3], torch.nan)
        return Prediction(heatmaps, loss, unknown, torch.zeros(len(pixels), self.embedding_dim))


@contextmanager
def brightness_scored() -> Iterator[Counter[PoolRow]]:
    """In the block, scores say how dark images are; how often each row of the pool was scored."""
    scored: Counter[PoolRow] = Counter()
    score = LossScorer._score

    def counted(scorer: LossScorer, rows: Any) -> Any:
        scored.update(zip(rows["pool_file"].to_pylist(), rows["pool_row"].to_pylist(), strict=True))
        return score(scorer, rows)

    def stand_in(place: Any) -> Any:
        bundle = read_bundle(place)
        return dataclasses.replace(bundle, model=BrightnessModel(bundle.model))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.storage.bundles, "read_bundle", stand_in)
        patch.setattr(LossScorer, "_score", counted)
        yield scored


def options_of(place: str, model: str, **changes: Any) -> TriageOptions:
    """A triage of the pool of a place."""
    return TriageOptions(
        pool=f"{place}/pool",
        model=model,
        out=f"{place}/triage",
        **{"debug": True, "budget": BUDGET, "control_share": 0.25, "drift_min_rows": 10, "report": False, **changes},
    )


def triage(
    options: TriageOptions, *, until: datetime.date | None = None, today: datetime.date = MORNING
) -> list[dict[str, Any]]:
    """The records of the nights that a triage says it has done."""
    return list(triage_nights(options.model_copy(update={"date": until}), today=today, progress=silent))


# What came of it


def held_rows(options: TriageOptions) -> set[PoolRow]:
    """Rows of the pool that the scores on storage hold, published or not."""
    nights, held = locate(options.out).join("nights"), set()
    for night in list_names(nights)[0]:
        for scores in list_names(nights.join(night))[0]:
            for part in find_parts(nights.join(night, scores)):
                for rows in part.files.values():
                    held |= {(rows.path, row) for start, stop in rows.ranges for row in range(start, stop)}
    return held


def pool_rows(options: TriageOptions) -> set[PoolRow]:
    """Rows of the readable files of the pool."""
    pool, found = locate(options.pool), set()
    for file in location.list_files(pool, suffix="part-00000.parquet"):
        data = location.read_bytes(pool._replace(path=file.path))
        path = file.path[len(pool.path) + 1 :]
        found |= {(path, row) for row in range(pq.read_metadata(io.BytesIO(data)).num_rows)}
    return found
