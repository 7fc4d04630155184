"""One verdict on a pool row out of the answers that a labelling tool holds of it. Pure: reads and writes nothing.

# K keypoints
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from distributed.ingest.answers import Answer
from distributed.ingest.options import Annotators, Take
from model.metrics import PCK_THRESHOLD, torso_lengths
from model.skeleton import Skeleton

# In the table. `confirmed`: a person submitted the prediction as it was; `accepted`: nobody touched it, see `Take`.
LABELLED = ("labelled", "partial", "confirmed", "accepted")
# Left out because of a fault, not because an annotator wanted it so.
FAULTS = ("twice", "disagree", "other_size", "other_id", "unclear", "not_in_pool")

_SAME_PX = 0.02  # two roundings to two decimals
_SHARE_OF_EXTENT = 0.05  # instead of 0.2 torsos, where a skeleton has none: about as long on a standing person

Points = NDArray[np.float64]  # (K, 2) image pixels
Visibility = NDArray[np.uint8]  # (K,)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules for answers that leave a doubt."""

    skeleton: Skeleton
    take: Take = "touched"
    annotators: Annotators = "newest"
    rounding_px: float = 0.0  # error of a coordinate that the tool made


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The verdict on a row: one of `LABELLED`, of `FAULTS`, `untouched`, `incomplete`, or that of the answer."""

    outcome: str
    why: str | None = None
    keypoints: Points | None = None  # only if labelled
    visibility: Visibility | None = None
    disagree: bool = False  # annotators placed a keypoint apart
    num_outside: int = 0  # keypoints outside the image, which count as not labelled
    annotators: tuple[str, ...] = field(default=())
    seconds: float | None = None  # that the annotator whose answer counts had it open; None: not known


def settle(
    answers: Sequence[Answer], *, size: tuple[int, int] | None, predicted: Points | None, rules: Rules
) -> Settled:
    """The verdict on a row of which an export has these answers, at least one.

    Args:
        answers: of one row, in the order of the file.
        size: width, height of the image as stored; None where it can't be read.
        predicted: (K, 2) the keypoints as they were exported; None where there was no pose.
        rules: what to make of untouched and partial poses, and of several annotators.
    """
    by = tuple(dict.fromkeys(each.annotator for each in answers if each.annotator))
    fault = _fault(answers, size)
    if fault:
        return replace(fault, annotators=by)
    if len({each.entry for each in answers}) > 1:
        answers = answers[:1]  # the same twice
    poses = [_arrays(each, rules.skeleton) for each in answers if each.verdict == "pose"]
    disagree = len({each.verdict for each in answers}) > 1 or _disagree(poses, rules.skeleton)
    chosen = max(enumerate(answers), key=lambda item: (item[1].at, item[0]))[1]
    points, visibility = _arrays(chosen, rules.skeleton)
    if rules.annotators == "consensus" and len(answers) > 1:
        if poses and len(poses) < len(answers):
            chosen = replace(chosen, verdict="disagree", why=", ".join({each.verdict: None for each in answers}))
        elif poses:
            points, visibility = _consensus(poses, rules.skeleton)
            if not visibility.any():
                chosen = replace(chosen, verdict="disagree", why="on every keypoint")
    if chosen.verdict != "pose":
        return Settled(outcome=chosen.verdict, why=chosen.why, disagree=disagree, annotators=by)
    outcome = _outcome(points, visibility, predicted, is_submitted=chosen.is_submitted, rules=rules)
    if outcome not in LABELLED:
        return Settled(outcome=outcome, disagree=disagree, annotators=by)
    is_outside = (visibility > 0) & ~_is_inside(points, size)
    return Settled(
        outcome=outcome,
        keypoints=points,
        visibility=np.where(is_outside, 0, visibility).astype(np.uint8),
        disagree=disagree,
        num_outside=int(is_outside.sum()),
        annotators=by,
        seconds=chosen.seconds,
    )


def _fault(answers: Sequence[Answer], size: tuple[int, int] | None) -> Settled | None:
    """The fault of answers that can't be used, whatever they say."""
    for each in answers:
        if size and each.size and each.size != size:
            found = "annotated at {}x{} px, stored are {}x{} px".format(*each.size, *size)
            return Settled(outcome="other_size", why=found)
    first = answers[0]
    is_one = len({each.entry for each in answers}) == 1
    if is_one or all((each.verdict, each.points) == (first.verdict, first.points) for each in answers):
        return None
    return Settled(outcome="twice", why=" and ".join({each.entry: None for each in answers}))


def _outcome(
    points: Points, visibility: Visibility, predicted: Points | None, *, is_submitted: bool, rules: Rules
) -> str:
    is_same = (
        predicted is not None
        and bool((visibility == 2).all())
        and bool((np.abs(points - predicted) <= _SAME_PX + rules.rounding_px).all())
    )
    if is_same and not is_submitted:
        return "accepted" if rules.take == "all" else "untouched"
    if is_same:
        return "confirmed"
    if visibility.all():
        return "labelled"
    return "incomplete" if rules.take == "complete" else "partial"


def _arrays(answer: Answer, skeleton: Skeleton) -> tuple[Points, Visibility]:
    """Keypoints in the skeleton's order; those that were not placed are at 0, 0, not labelled."""
    placed = [answer.points.get(name) for name in skeleton.keypoint_names]
    points = np.array([(each.x, each.y) if each else (0, 0) for each in placed], np.float64)
    return points, np.array([each.visibility if each else 0 for each in placed], np.uint8)


def _limit(poses: Sequence[tuple[Points, Visibility]], skeleton: Skeleton) -> float:
    """Largest distance of two placements of one keypoint in pixels: 0.2 torsos, as PCK has it."""
    points, visibility = (np.stack(parts) for parts in zip(*poses, strict=True))
    torsos = torso_lengths(points, visibility > 0, skeleton)
    if np.isfinite(torsos).any():
        return PCK_THRESHOLD * float(np.nanmax(torsos))
    placed = points[visibility > 0]
    return _SHARE_OF_EXTENT * float(np.ptp(placed, axis=0).max()) if len(placed) else 0.0


def _spread(poses: Sequence[tuple[Points, Visibility]]) -> NDArray[np.float64]:
    """(K,) the largest distance between two placements of a keypoint; infinite where not all have placed it."""
    spread = np.zeros(len(poses[0][1]))
    for (first, is_first), (second, is_second) in itertools.combinations(poses, 2):
        distance = np.linalg.norm(first - second, axis=1)
        distance[(is_first > 0) != (is_second > 0)] = np.inf
        spread = np.maximum(spread, distance)
    return spread


def _disagree(poses: Sequence[tuple[Points, Visibility]], skeleton: Skeleton) -> bool:
    return len(poses) > 1 and bool((_spread(poses) > _limit(poses, skeleton)).any())


def _consensus(poses: Sequence[tuple[Points, Visibility]], skeleton: Skeleton) -> tuple[Points, Visibility]:
    """The mean of each keypoint on which all agree; the others are not labelled."""
    points, visibility = (np.stack(parts) for parts in zip(*poses, strict=True))
    agreed = (_spread(poses) <= _limit(poses, skeleton)) & visibility.all(axis=0)
    return np.where(agreed[:, None], points.mean(axis=0), 0.0), np.where(agreed, visibility.min(axis=0), 0)


def _is_inside(points: Points, size: tuple[int, int] | None) -> NDArray[np.bool_]:
    if size is None:
        return np.ones(len(points), np.bool_)
    return np.asarray(((points > -0.5) & (points < np.array(size) - 0.5)).all(axis=1))
