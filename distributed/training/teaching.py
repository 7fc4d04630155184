"""Teaching the keypoint head of a fitted model: its inputs and the truth, from labelled rows of all ranks.

# B batch, K keypoints, F inputs
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from distributed.tables.labelled import COLUMNS
from distributed.tables.reader import plan_bins, read_bin
from distributed.training.data import Collated, Collator, check_readable
from distributed.training.options import TrainingJob
from distributed.training.rank import Rank
from model.calibration import Calibration, fit_calibration
from model.example import AUGMENTATIONS
from model.fit import Batch
from model.heatmap import decode_heatmaps, encode_heatmaps
from model.keypoint_head import KeypointHead, KeypointJudge
from model.keypoint_inputs import keypoint_inputs
from model.keypoint_teaching import Lesson, join_lessons, teach
from model.metrics import PCK_THRESHOLD, normalised_distances, torso_lengths
from model.objective import keypoint_losses
from model.pose_model import PoseModel

MOST_ROWS = 20_000  # of larger tables a sample teaches: 5,000 rows taught as well as more
_ROWS_A_PASS = 64


def teach_head(job: TrainingJob, rank: Rank, model: PoseModel) -> Calibration | None:
    """Teaches the keypoint head of a fitted model, in place, the same on all ranks; other heads have learnt already.

    Returns:
        The calibration on what taught it; None for other heads, or too few rows.

    Raises:
        InputError: too many images can't be read.
    """
    head = model.loss_head
    if not isinstance(head, KeypointHead):
        return None
    model.eval()
    judges = [judge for judge in (head.plain, head.mirrored) if judge is not None]
    # An estimator misses little of the rows that it was trained on, so these alone don't show how its misses look.
    as_they_are, degraded = (_lessons(job, rank, model, head, is_degraded=each) for each in (False, True))
    lessons = [join_lessons(each) for each in zip(as_they_are, degraded, strict=True)]
    for judge, lesson in zip(judges, lessons, strict=True):
        judge.cpu()
        teach(judge, lesson, seed=job.options.seed)
        judge.to(rank.device)
    rank.take_from_first(head.state_dict().values())
    return _calibrate(head.plain, lessons[0])


def _calibrate(judge: KeypointJudge, lesson: Lesson) -> Calibration | None:
    with torch.inference_mode():
        predicted = judge(lesson.inputs.to(judge.mean.device)).predicted_loss.cpu()
    pck = 1 - lesson.is_missed.nanmean(dim=1)
    return fit_calibration(predicted.numpy(), true_loss=lesson.true_loss.numpy(), pck=pck.numpy(), copies=2)


def _lessons(job: TrainingJob, rank: Rank, model: PoseModel, head: KeypointHead, *, is_degraded: bool) -> list[Lesson]:
    """One lesson a judge, of all ranks' shares of the labelled rows, on the CPU."""
    mine, seen, unreadable = [], 0, Counter[str]()
    with torch.inference_mode():
        for collated in _batches(job, rank, is_degraded=is_degraded):
            batch = Batch(*(tensor.to(rank.device) for tensor in collated.batch))
            mine.append(_lessons_of(batch, model, head))
            seen += collated.num_rows
            unreadable.update(collated.unreadable)
    of_all = rank.gather((seen, unreadable))
    check_readable(job, sum(each for each, _ in of_all), sum((each for _, each in of_all), Counter()))
    joined = [join_lessons(of_judge) for of_judge in zip(*mine, strict=True)]
    gathered = [lessons for lessons in rank.gather(joined) if lessons]
    return [join_lessons(of_judge) for of_judge in zip(*gathered, strict=True)]


def _batches(job: TrainingJob, rank: Rank, *, is_degraded: bool) -> Iterator[Collated]:
    """This rank's share of the rows; each rank reads other row groups."""
    share = MOST_ROWS / max(MOST_ROWS, job.labelled.num_rows)
    with ThreadPoolExecutor(job.options.decode_threads, thread_name_prefix="decode") as threads:
        collate = Collator(
            spec=job.spec,
            augmentation=AUGMENTATIONS["none"],
            seed=job.options.seed,
            epoch=job.options.epochs,
            threads=threads,
            is_degraded=is_degraded,
        )
        for bin_ in plan_bins(job.labelled.segments, max_bytes=1)[rank.index :: rank.world_size]:
            for rows in read_bin(job.labelled.location, bin_, columns=COLUMNS, images=job.labelled.images):
                kept = rows.filter([is_in_share(name, share=share) for name in rows["sample_id"].to_pylist()])
                for start in range(0, len(kept), _ROWS_A_PASS):
                    yield collate(kept.slice(start, _ROWS_A_PASS))


def is_in_share(key: str, *, share: float) -> bool:
    """True for this share of all keys, drawn by a hash."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) < share * 2**64


def _lessons_of(batch: Batch, model: PoseModel, head: KeypointHead) -> list[Lesson]:
    spec = model.spec
    images = model.normalise(batch.pixels)
    heatmaps = model.estimator(images).heatmaps.float()
    targets = encode_heatmaps(
        batch.keypoints, input_size=spec.input_size, heatmap_size=spec.heatmap_size, sigma=spec.sigma
    )
    losses = keypoint_losses(heatmaps, targets, batch.labelled)
    truth = {
        "keypoint_loss": torch.where(batch.labelled, losses, torch.nan).cpu(),
        "is_missed": _misses(heatmaps[:, -1], batch, model),
    }
    views = [None] if head.mirrored is None else [None, model.mirrored_heatmaps(images)]
    return [
        Lesson(
            inputs=keypoint_inputs(heatmaps[:, -1], view, skeleton=spec.skeleton, sigma=spec.sigma).cpu(),
            **truth,
        )
        for view in views
    ]


def _misses(heatmaps: Tensor, batch: Batch, model: PoseModel) -> Tensor:
    """(B, K) 1 where the prediction is beyond 0.2 torsos, 0 within, NaN where there is no label or no torso."""
    predicted = decode_heatmaps(heatmaps, input_size=model.spec.input_size).keypoints.cpu().numpy()
    true, is_labelled = batch.keypoints.cpu().numpy(), batch.labelled.cpu().numpy()
    lengths = torso_lengths(true, is_labelled, model.spec.skeleton)
    distances = normalised_distances(predicted, true, is_labelled, reference_lengths=lengths)
    return torch.from_numpy(np.where(np.isnan(distances), np.nan, distances > PCK_THRESHOLD).astype(np.float32))
