"""Labelled rows as training batches: Arrow in, tensors out. Imports without Ray."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from distributed.tables.labelled import labels_of
from distributed.tables.reader import boxes, image_buffers
from distributed.tables.references import read_errors
from model.degradation import degrade
from model.errors import ImageError, InputError
from model.example import Augmentation, Example, make_example, sample_view
from model.fit import Batch
from model.spec import ModelSpec

if TYPE_CHECKING:
    from distributed.training.options import TrainingJob


class Collated(NamedTuple):
    """Some rows as a batch, on the CPU."""

    batch: Batch  # at most `num_rows` images: unreadable ones are left out
    num_rows: int
    unreadable: Counter[str]  # reason -> images


@dataclass(frozen=True, kw_only=True)
class Collator:
    """Turns labelled rows into batches: decoded, augmented and, if asked, degraded.

    A row's augmentation and damage depend on seed, epoch and its sample_id alone, whichever worker and batch it meets.
    """

    spec: ModelSpec
    augmentation: Augmentation
    seed: int
    epoch: int
    threads: Executor
    is_degraded: bool = False

    def __call__(self, rows: pa.Table) -> Collated:
        """The batch of some rows; one blank image without labels if none can be read."""
        labels, ids = labels_of(rows), rows["sample_id"].to_pylist()
        made = list(
            self.threads.map(
                self._example_or_reason, image_buffers(rows), boxes(rows), labels.keypoints, labels.visibility, ids
            )
        )
        made = [before or after for before, after in zip(read_errors(rows), made, strict=True)]
        examples = [each for each in made if isinstance(each, Example)] or [self._blank()]
        pixels, keypoints, is_labelled = (torch.from_numpy(np.stack(part)) for part in zip(*examples, strict=True))
        unreadable = Counter(each for each in made if isinstance(each, str))
        return Collated(Batch(pixels, keypoints, is_labelled), len(rows), unreadable)

    def _example_or_reason(
        self,
        image: memoryview,
        box: np.ndarray | None,
        keypoints: np.ndarray,
        visibility: np.ndarray,
        sample_id: str,
    ) -> Example | str:
        rng = np.random.default_rng([self.seed, self.epoch, zlib.crc32(sample_id.encode())])
        view = sample_view(self.augmentation, rng=rng)
        try:
            made = make_example(image, box, keypoints=keypoints, visibility=visibility, spec=self.spec, view=view)
        except ImageError as error:
            return error.reason
        return made._replace(pixels=degrade(made.pixels, rng=rng)) if self.is_degraded else made

    def _blank(self) -> Example:
        """Teaches nothing, and keeps the ranks of a group in step."""
        size, count = self.spec.input_size, self.spec.skeleton.num_keypoints
        return Example(np.zeros((size, size, 3), np.uint8), np.zeros((count, 2), np.float32), np.zeros(count, np.bool_))


def check_readable(job: TrainingJob, num_rows: int, unreadable: Counter[str]) -> None:
    """Passes if few enough of so many rows were unreadable.

    Raises:
        InputError: too many are, by `--max-error-rate`.
    """
    num_bad, allowed = unreadable.total(), job.options.max_error_rate
    if num_bad > allowed * num_rows:
        raise InputError(
            f"{job.labelled.location.uri}: expected at most {allowed:.1%} unreadable images (--max-error-rate), "
            f"found {num_bad} among {num_rows}: {dict(unreadable)}"
        )


def one_ahead(tables: Iterator[pa.Table], collate: Collator) -> Iterator[Collated]:
    """The batches of an epoch; the next one is made while this one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as ahead:

        def make_next() -> Collated | None:
            rows = next(tables, None)
            return None if rows is None else collate(rows)

        upcoming = ahead.submit(make_next)
        while (made := upcoming.result()) is not None:
            upcoming = ahead.submit(make_next)
            yield made
