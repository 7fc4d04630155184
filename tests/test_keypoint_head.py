"""The keypoint head: what it learns, what it refuses, and that a row's judgement is its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.errors import BundleError, InputError
from model.keypoint_head import KeypointHead, KeypointJudge
from model.keypoint_teaching import Lesson, join_lessons, teach
from model.metrics import spearman
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP

K, F, COUNT = LSP.num_keypoints, 6, 600


def a_lesson(seed: int, *, count: int = COUNT, shift: float = 0.0) -> Lesson:
    """Misses and losses that depend on the first input alone; a tenth of the keypoints is not labelled."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, K, F)) + shift
    inputs[..., 0] += rng.normal(size=(count, 1))  # images differ
    is_missed = (rng.random((count, K)) < 1 / (1 + np.exp(-2 * inputs[..., 0]))).astype(np.float32)
    loss = 0.01 * np.exp(0.5 * inputs[..., 0])
    unknown = rng.random((count, K)) < 0.1
    return Lesson(
        inputs=torch.tensor(inputs, dtype=torch.float32),
        keypoint_loss=torch.tensor(np.where(unknown, np.nan, loss), dtype=torch.float32),
        is_missed=torch.tensor(np.where(unknown, np.nan, is_missed), dtype=torch.float32),
    )


def taught(lesson: Lesson, *, seed: int = 0) -> KeypointJudge:
    judge = KeypointJudge(F)
    teach(judge, lesson, seed=seed)
    return judge


@pytest.fixture(scope="module")
def judge() -> KeypointJudge:
    return taught(a_lesson(0))


def test_what_it_was_not_taught_on_is_ranked_and_its_probabilities_hold(judge: KeypointJudge) -> None:
    fresh = a_lesson(1, count=1500)
    with torch.inference_mode():
        found = judge(fresh.inputs)
    assert spearman(found.predicted_loss.numpy(), fresh.true_loss.numpy()) > 0.9
    known = fresh.is_missed.isfinite()
    probability, missed = found.miss[known].numpy(), fresh.is_missed[known].numpy()
    for part in np.array_split(np.argsort(probability), 8):
        assert probability[part].mean() == pytest.approx(missed[part].mean(), abs=0.05)


def test_the_predicted_loss_is_the_mean_loss_and_the_weighted_share_of_misses(judge: KeypointJudge) -> None:
    lesson = a_lesson(0)
    with torch.inference_mode():
        found, (loss, miss) = judge(lesson.inputs), judge.judge_keypoints(lesson.inputs)
    torch.testing.assert_close(found.predicted_loss, loss.mean(dim=1) + judge.miss_weight * miss.mean(dim=1))
    torch.testing.assert_close(judge.miss_weight, loss.mean(dim=1).std() / miss.mean(dim=1).std(), rtol=1e-4, atol=0)
    labelled = torch.where(lesson.keypoint_loss.isfinite(), loss, torch.nan).nanmean(dim=1)
    torch.testing.assert_close(labelled.mean(), lesson.true_loss.mean(), rtol=1e-4, atol=0)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state_alone() -> None:
    lesson = a_lesson(0, count=60)
    one, other, third = taught(lesson), taught(lesson), taught(lesson, seed=1)
    state = torch.random.get_rng_state()
    teach(third, lesson, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(one.members[0][0].weight, third.members[0][0].weight)
    assert not torch.equal(one.members[0][0].weight, one.members[1][0].weight)


def test_images_without_labels_teach_nothing() -> None:
    lesson = a_lesson(0, count=60)
    nothing = torch.full((5, K), torch.nan)
    blank = Lesson(inputs=100 * torch.ones(5, K, F), keypoint_loss=nothing, is_missed=nothing)
    one, other = taught(lesson), taught(join_lessons((lesson, blank)))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_where_no_torso_tells_a_miss_none_is_known() -> None:
    lesson = a_lesson(0, count=60)
    judge = taught(replace(lesson, is_missed=torch.full((60, K), torch.nan)))
    found = judge(lesson.inputs)
    assert found.miss.isnan().all()
    assert judge.miss_weight == 0
    assert found.predicted_loss.isfinite().all()


def test_one_image_teaches_a_head_whose_answers_are_numbers() -> None:
    found = taught(a_lesson(0, count=1))(a_lesson(1, count=3).inputs)
    assert found.predicted_loss.isfinite().all()
    assert found.miss.isfinite().all()


def some_heatmaps(count: int) -> torch.Tensor:
    return torch.rand(count, K, 32, 32, generator=torch.Generator().manual_seed(2)) ** 4


def test_a_judgement_depends_neither_on_neighbours_nor_on_its_place() -> None:
    head = KeypointHead(LSP, sigma=1.75).eval()
    for judge, seed in ((head.plain, 3), (head.mirrored, 4)):
        assert judge is not None
        torch.manual_seed(seed)
        judge.loss_scale.fill_(1.0)
        judge.miss_weight.fill_(0.5)
        judge.knows_misses.fill_(value=True)
    maps, order = some_heatmaps(16), torch.randperm(16, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        for views in ((maps,), (maps, maps.flip(0))):
            whole = head(*views)
            mixed = head(*(view[order] for view in views))
            assert torch.equal(mixed.predicted_loss, whole.predicted_loss[order])
            assert torch.equal(mixed.miss, whole.miss[order])


def test_until_it_is_taught_it_says_nothing_and_is_refused() -> None:
    model = PoseModel(make_spec("hourglass-small", method="keypoint", skeleton=LSP)).eval()
    prediction = model(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert prediction.predicted_loss.tolist() == [0, 0]
    assert prediction.miss.isnan().all()
    with pytest.raises(BundleError, match="expected a finished training, found one whose keypoint head is not taught"):
        model.check_taught()


def test_a_second_view_wants_a_head_that_reads_it_and_a_skeleton_with_sides() -> None:
    sideless = PoseModel(make_spec("hourglass-small", method="keypoint", skeleton=replace(LSP, flip_pairs=())))
    with pytest.raises(InputError, match=r"--views 2: expected a skeleton with left and right, found one without"):
        sideless.check_views(2)
    other = PoseModel(make_spec("hourglass-small", method="ll++", skeleton=LSP))
    with pytest.raises(InputError, match=r"--views 2: expected a bundle of the method keypoint, found ll\+\+"):
        other.check_views(2)
    for model in (sideless, other):
        model.check_views(1)
