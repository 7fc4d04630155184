"""Training in the calling process, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import torch

from distributed.runs.logbook import Logbook, State
from distributed.tables.labelled import COLUMNS
from distributed.tables.shuffle import shuffled_rows
from distributed.training.fitting import fit_rank
from distributed.training.options import TrainingJob
from distributed.training.rank import Notice, Rank


def fit_in_process(
    job: TrainingJob, tell: Callable[[State], None], should_stop: Callable[[], bool], *, attempt: int
) -> None:
    """Fits the job's model as the only rank; `should_stop` is asked between steps."""
    log = Logbook()

    def count_rows(num_rows: int, errors: Mapping[str, int], note: str) -> None:
        log.add(num_rows, errors, note)
        tell(log.read())

    def read_epoch(epoch: int) -> Iterator[pa.Table]:
        return shuffled_rows(
            job.labelled,
            columns=COLUMNS,
            batch_size=job.options.rows_per_batch(1),
            seed=job.options.seed * 1_000_003 + epoch,
        )

    fit_rank(
        job,
        Rank(
            index=0,
            world_size=1,
            attempt=attempt,
            device=torch.device(job.options.device),
            wrap=lambda model: model,
            read_epoch=read_epoch,
            look_up=lambda: Notice.STOP if should_stop() else Notice.NONE,
            count_rows=count_rows,
            count_from=log.count_from,
            end_epoch=lambda _: None,
        ),
    )
