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

# MPII Human Pose, 16 joints. Source: Andriluka et al., CVPR 2014; joint ids as in the data set's README.
MPII = Skeleton(
    name="mpii",
    keypoint_names=(
        "right_ankle",
        "right_knee",
        "right_hip",
        "left_hip",
        "left_knee",
        "left_ankle",
        "pelvis",
        "thorax",
        "upper_neck",
        "head_top",
        "right_wrist",
        "right_elbow",
        "right_shoulder",
        "left_shoulder",
        "left_elbow",
        "left_wrist",
    ),
    flip_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    limbs=(
        (0, 1),
        (1, 2),
        (5, 4),
        (4, 3),
        (2, 6),
        (3, 6),
        (6, 7),
        (7, 8),
        (8, 9),
        (7, 12),
        (7, 13),
        (10, 11),
        (11, 12),
        (15, 14),
        (14, 13),
    ),
    torso_diagonals=((13, 2), (12, 3)),
    head_segment=(8, 9),
)

# COCO person keypoints, 17 joints; limbs as in the data set's own `categories`. Source: Lin et al., ECCV 2014.
COCO = Skeleton(
    name="coco",
    keypoint_names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    flip_pairs=((2, 1), (4, 3), (6, 5), (8, 7), (10, 9), (12, 11), (14, 13), (16, 15)),
    limbs=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
    torso_diagonals=((5, 12), (6, 11)),
    head_segment=None,  # neither neck nor head top
)

SKELETONS = {skeleton.name: skeleton for skeleton in (LSP, MPII, COCO)}
