"""The LSP skeleton, joint by joint."""

from __future__ import annotations

import dataclasses
from itertools import chain

import pytest

from model.skeleton import LSP, Skeleton

# Joints of joints.mat as the data set's README numbers them, from 0.
PUBLISHED_LSP = """right ankle, right knee, right hip, left hip, left knee, left ankle, right wrist, right elbow,
right shoulder, left shoulder, left elbow, left wrist, neck, head top"""


def test_the_keypoints_of_lsp_are_in_published_order() -> None:
    published = [name.strip().replace(" ", "_") for name in PUBLISHED_LSP.split(",")]
    assert list(LSP.keypoint_names) == published
    assert LSP.num_keypoints == 14


def test_flipping_swaps_the_names_of_left_and_right_and_no_others() -> None:
    swap = {"right": "left", "left": "right"}
    for name, index in zip(LSP.keypoint_names, LSP.flip_order, strict=True):
        side, _, rest = name.partition("_")
        assert LSP.keypoint_names[index] == (f"{swap[side]}_{rest}" if side in swap else name)


def test_flipping_twice_changes_nothing() -> None:
    assert [LSP.flip_order[index] for index in LSP.flip_order] == list(range(LSP.num_keypoints))


def test_flip_pairs_name_the_right_side_first() -> None:
    for right, left in LSP.flip_pairs:
        assert LSP.keypoint_names[right].startswith("right")
        assert LSP.keypoint_names[left].startswith("left")


def test_torso_diagonals_run_from_a_shoulder_to_the_other_hip() -> None:
    names = {frozenset(LSP.keypoint_names[i] for i in diagonal) for diagonal in LSP.torso_diagonals}
    assert names == {frozenset({"left_shoulder", "right_hip"}), frozenset({"right_shoulder", "left_hip"})}


def test_the_head_segment_runs_from_the_neck_to_the_head_top() -> None:
    assert [LSP.keypoint_names[i] for i in LSP.head_segment] == ["neck", "head_top"]


def test_limbs_join_all_keypoints_into_one_body_that_is_its_own_mirror_image() -> None:
    reached = {0}
    for _ in range(LSP.num_keypoints):
        reached |= set(chain.from_iterable(limb for limb in LSP.limbs if reached & set(limb)))
    assert reached == set(range(LSP.num_keypoints))
    limbs = {frozenset(limb) for limb in LSP.limbs}
    assert {frozenset(LSP.flip_order[i] for i in limb) for limb in limbs} == limbs


def test_a_skeleton_without_pairs_flips_onto_itself() -> None:
    stick = Skeleton(
        name="stick", keypoint_names=("a", "b"), flip_pairs=(), limbs=((0, 1),), torso_diagonals=(), head_segment=(0, 1)
    )
    assert stick.flip_order == (0, 1)


def test_a_skeleton_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LSP.name = "other"  # type: ignore[misc]
