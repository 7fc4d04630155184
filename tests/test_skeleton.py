"""The skeletons of the data sets, joint by joint, and those of one's own from a file."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain
from typing import Any

import pytest

from model.errors import InputError
from model.skeleton import COCO, LSP, MPII, SKELETONS, Skeleton, read_skeleton

# Joints as each data set's README or annotations number them, from 0.
PUBLISHED = {
    "lsp": """right ankle, right knee, right hip, left hip, left knee, left ankle, right wrist, right elbow,
right shoulder, left shoulder, left elbow, left wrist, neck, head top""",
    "mpii": """right ankle, right knee, right hip, left hip, left knee, left ankle, pelvis, thorax, upper neck,
head top, right wrist, right elbow, right shoulder, left shoulder, left elbow, left wrist""",
    "coco": """nose, left eye, right eye, left ear, right ear, left shoulder, right shoulder, left elbow, right elbow,
left wrist, right wrist, left hip, right hip, left knee, right knee, left ankle, right ankle""",
}
# The "skeleton" of the person category in COCO's annotations: 1-based.
PUBLISHED_COCO_LIMBS = [
    [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
    [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7],
]  # fmt: skip

each = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=list(SKELETONS))


@each
def test_the_keypoints_are_in_published_order(skeleton: Skeleton) -> None:
    published = [name.strip().replace(" ", "_") for name in PUBLISHED[skeleton.name].split(",")]
    assert list(skeleton.keypoint_names) == published


def test_skeletons_have_the_published_number_of_keypoints() -> None:
    assert {name: skeleton.num_keypoints for name, skeleton in SKELETONS.items()} == {"lsp": 14, "mpii": 16, "coco": 17}


def test_the_limbs_of_coco_are_the_published_ones() -> None:
    assert [[first + 1, second + 1] for first, second in COCO.limbs] == PUBLISHED_COCO_LIMBS


@each
def test_flipping_swaps_the_names_of_left_and_right_and_no_others(skeleton: Skeleton) -> None:
    swap = {"right": "left", "left": "right"}
    for name, index in zip(skeleton.keypoint_names, skeleton.flip_order, strict=True):
        side, _, rest = name.partition("_")
        assert skeleton.keypoint_names[index] == (f"{swap[side]}_{rest}" if side in swap else name)


@each
def test_flipping_twice_changes_nothing(skeleton: Skeleton) -> None:
    order = skeleton.flip_order
    assert [order[index] for index in order] == list(range(skeleton.num_keypoints))


@each
def test_flip_pairs_name_the_right_side_first(skeleton: Skeleton) -> None:
    for right, left in skeleton.flip_pairs:
        assert skeleton.keypoint_names[right].startswith("right")
        assert skeleton.keypoint_names[left].startswith("left")


@each
def test_torso_diagonals_run_from_a_shoulder_to_the_other_hip(skeleton: Skeleton) -> None:
    names = {frozenset(skeleton.keypoint_names[i] for i in diagonal) for diagonal in skeleton.torso_diagonals}
    assert names == {frozenset({"left_shoulder", "right_hip"}), frozenset({"right_shoulder", "left_hip"})}


def test_the_head_segment_runs_from_the_neck_to_the_head_top() -> None:
    assert [LSP.keypoint_names[i] for i in LSP.head_segment or ()] == ["neck", "head_top"]
    assert [MPII.keypoint_names[i] for i in MPII.head_segment or ()] == ["upper_neck", "head_top"]
    assert COCO.head_segment is None


@each
def test_limbs_join_all_keypoints_into_one_body_that_is_its_own_mirror_image(skeleton: Skeleton) -> None:
    reached = {0}
    for _ in range(skeleton.num_keypoints):
        reached |= set(chain.from_iterable(limb for limb in skeleton.limbs if reached & set(limb)))
    assert reached == set(range(skeleton.num_keypoints))
    limbs = {frozenset(limb) for limb in skeleton.limbs}
    assert {frozenset(skeleton.flip_order[i] for i in limb) for limb in limbs} == limbs


def test_a_skeleton_without_pairs_flips_onto_itself() -> None:
    stick = Skeleton(
        name="stick", keypoint_names=("a", "b"), flip_pairs=(), limbs=((0, 1),), torso_diagonals=(), head_segment=(0, 1)
    )
    assert stick.flip_order == (0, 1)


def test_a_skeleton_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LSP.name = "other"  # type: ignore[misc]


# From a file


def read(fields: Any) -> Skeleton:
    return read_skeleton(json.dumps(fields).encode(), where="own.json")


@each
def test_a_skeleton_as_a_bundle_keeps_it_reads_back(skeleton: Skeleton) -> None:
    assert read(dataclasses.asdict(skeleton)) == skeleton


def test_pairs_may_be_named() -> None:
    found = read(
        {
            "name": "stick",
            "keypoint_names": ["top", "left_end", "right_end"],
            "flip_pairs": [["right_end", "left_end"]],
            "limbs": [["top", 1], [0, "right_end"]],
            "head_segment": ["top", "right_end"],
        }
    )
    assert found == Skeleton(
        name="stick",
        keypoint_names=("top", "left_end", "right_end"),
        flip_pairs=((2, 1),),
        limbs=((0, 1), (0, 2)),
        torso_diagonals=(),
        head_segment=(0, 2),
    )


GOOD: dict[str, Any] = {"name": "stick", "keypoint_names": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limbs": [["a", "d"]]}, "limbs: expected a keypoint's name or an index below 3, found 'd'"),
        ({"limbs": [[0, 3]]}, "limbs: expected a keypoint's name or an index below 3, found 3"),
        ({"limbs": [[0, -1]]}, "limbs: expected a keypoint's name or an index below 3, found -1"),
        ({"limbs": [[True, 1]]}, "limbs: expected a keypoint's name or an index below 3, found True"),
        ({"limbs": [[0, 1, 2]]}, r"limbs: expected two keypoints, found \[0, 1, 2\]"),
        ({"limbs": [[1, "b"]]}, r"limbs: expected two different keypoints, found \[1, 'b'\]"),
        ({"limbs": {"a": "b"}}, "limbs: expected pairs of keypoints"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, "flip_pairs: expected each keypoint in one pair at most"),
        ({"keypoint_names": []}, "keypoint_names: expected names"),
        ({"keypoint_names": ["a", 3]}, "keypoint_names: expected names"),
        ({"keypoint_names": ["a", "a"]}, "keypoint_names: expected each name once"),
        ({"name": ""}, "name: expected a text"),
        ({"limb": []}, "expected the keys .*, found .*'limb'"),
    ],
)
def test_a_file_that_is_no_skeleton_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^own\.json: {message}"):
        read({**GOOD, **change})


@pytest.mark.parametrize("data", [b"", b"[", b"\xff", b"[]", b"3", b'{"name": "stick"}'])
def test_what_is_no_json_or_no_mapping_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^own\.json: expected "):
        read_skeleton(data, where="own.json")
