"""A training on Ray Train workers: where a rank's rows, notices and restarts come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray.train
import ray.train.torch
import torch

from distributed.cluster.tables import read_shuffled
from distributed.cluster.work import is_being_preempted, train_on_workers, watched
from distributed.runs.logbook import State
from distributed.runs.remote_log import RemoteLog
from distributed.storage.location import delete_folders
from distributed.tables.labelled import COLUMNS
from distributed.training.fitting import fit_rank
from distributed.training.options import TrainingJob
from distributed.training.rank import Notice, Rank
from model.errors import InputError

_RECORDS = "_ray_train"  # Ray Train's own, below the output while it works


def fit_on_workers(
    job: TrainingJob,
    tell: Callable[[State], None],
    should_stop: Callable[[], bool],
    *,
    attempt: int,
) -> None:
    """Trains on as many workers as the options say; a worker that dies takes the others back to the last checkpoint.

    Raises:
        InputError: the training can't end in anything useful.
        RunFailedError: storage failed, or workers died too often.
    """
    options = job.options
    with watched(tell, should_stop=should_stop) as log:
        try:
            train_on_workers(
                _work,
                {"job": job, "log": log, "attempt": attempt},
                dataset=read_shuffled(job.labelled, columns=COLUMNS, seed=options.seed),
                min_workers=options.min_workers,
                max_workers=options.max_workers,
                cpus=options.cpus_per_worker,
                gpus=options.gpus_per_worker,
                max_failures=options.max_failures,
                records=job.out.join(_RECORDS),
            )
        finally:  # however Ray ended: a worker that meets the fault of another returns at once, and ends well
            if fault := log.read().fault:
                raise InputError(fault)
    delete_folders(job.out, prefix=_RECORDS)


def _work(shared: dict[str, Any]) -> None:
    """The loop of each worker. A fault of the input is told to the log as well: Ray would try again and again."""
    log: RemoteLog = shared["log"]
    if log.read().fault:  # a worker found it, and the others were started anew
        return
    try:
        fit_rank(shared["job"], _rank(shared, log))
    except InputError as error:
        log.fail_run(str(error))
        raise


def _rank(shared: dict[str, Any], log: RemoteLog) -> Rank:
    job: TrainingJob = shared["job"]
    context = ray.train.get_context()
    world_size = context.get_world_size()
    shard = ray.train.get_dataset_shard("train")
    device = ray.train.torch.get_device()

    def read_epoch(epoch: int) -> Iterator[pa.Table]:
        del epoch  # each run of the dataset is in an order of its own
        return iter(shard.iter_batches(batch_size=job.options.rows_per_batch(world_size), batch_format="pyarrow"))

    def look_up() -> Notice:
        found = Notice.PREEMPTION if is_being_preempted() else Notice.NONE
        found = Notice.STOP if log.must_stop() else found
        if world_size == 1:
            return found
        value = torch.tensor(found.value, device=device)
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)  # all see the same, or they would part
        return Notice(int(value))

    return Rank(
        index=context.get_world_rank(),
        world_size=world_size,
        attempt=shared["attempt"],
        device=device,
        wrap=ray.train.torch.prepare_model,
        read_epoch=read_epoch,
        look_up=look_up,
        count_rows=log.add,
        count_from=log.count_from,
        end_epoch=lambda entry: ray.train.report({"epoch": entry["epoch"], "pose_loss": entry["pose_loss"]}),
    )
