"""Skeletons: keypoint names, left/right pairs, limbs, and the lengths that PCK and PCKh are normalised by.

Keypoint order is the data set's own, so that published annotations need no re-indexing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """One body layout. Indices are 0-based positions in `keypoint_names`."""

    name: str
    keypoint_names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]  # (right, left): swapped when an image is mirrored
    limbs: tuple[tuple[int, int], ...]  # drawn as lines
    torso_diagonals: tuple[tuple[int, int], ...]  # PCK: normalised by the longer one that is labelled; may be none
    head_segment: tuple[int, int] | None  # PCKh: neck to head top; None: there is no head

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints, K."""
        return len(self.keypoint_names)

    @property
    def flip_order(self) -> tuple[int, ...]:
        """Permutation of length K that swaps left and right: keypoint i of the mirrored body is flip_order[i]."""
        order = list(range(self.num_keypoints))
        for right, left in self.flip_pairs:
            order[right], order[left] = left, right
        return tuple(order)


# Leeds Sports Pose, 14 joints. Source: Johnson & Everingham, BMVC 2010; joint order as in joints.mat.
LSP = Skeleton(
    name="lsp",
    keypoint_names=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
        "neck",
        "head_top",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    limbs=(
        (0, 1),
        (1, 2),
        (5, 4),
        (4, 3),
        (2, 3),
        (2, 8),
        (3, 9),
        (8, 9),
        (6, 7),
        (7, 8),
        (11, 10),
        (10, 9),
        (12, 13),
        (8, 12),
        (9, 12),
    ),
    torso_diagonals=((9, 2), (8, 3)),
    head_segment=(12, 13),
)
