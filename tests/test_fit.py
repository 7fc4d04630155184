"""Steps that lower the loss, images without labels that teach nothing, and rates that follow the progress."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.choices import MethodName
from model.example import make_example
from model.fit import (
    Batch,
    FitOptions,
    Losses,
    compute_losses,
    make_optimizer,
    rate_share,
    train_step,
)
from model.pose_model import PoseModel, Prediction, make_spec
from model.skeleton import LSP
from model.spec import ModelSpec
from model.synthetic import Sample

SPEC = make_spec("hourglass-small", method="ll++conv", skeleton=LSP)
K = LSP.num_keypoints
RANKED: tuple[MethodName, ...] = ("ll", "ll++")  # methods with a ranking loss beside the pose loss


def spec_of(method: MethodName) -> ModelSpec:
    return replace(SPEC, method=method)


class ScriptedModel(nn.Module):
    """Heatmaps and predicted losses are parameters, looked up by an image's first pixel: images share nothing."""

    def __init__(self, num_images: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.heatmaps = nn.Parameter(torch.rand(num_images, 1, K, 32, 32, generator=generator))
        self.predicted_loss = nn.Parameter(torch.rand(num_images, generator=generator))

    def forward(self, pixels: Tensor) -> Prediction:
        images = pixels[:, 0, 0, 0].long()
        return Prediction(
            self.heatmaps[images], self.predicted_loss[images], torch.zeros(len(images), K), torch.zeros(len(images), 1)
        )


def scripted_batch(images: list[int], *, unlabelled: tuple[int, ...] = ()) -> Batch:
    pixels = torch.zeros(len(images), 64, 64, 3, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor(images)
    every = torch.rand(8, K, 2, generator=torch.Generator().manual_seed(6)) * 64
    labelled = torch.tensor([[image not in unlabelled] * K for image in images])
    return Batch(pixels, every[images], labelled)


def real_batch(samples: list[Sample]) -> Batch:
    made = [
        make_example(s.image, np.array(s.box), keypoints=s.keypoints, visibility=s.visibility, spec=SPEC)
        for s in samples[:4]
    ]
    pixels, keypoints, labelled = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    return Batch(pixels, keypoints, labelled)


def blank_batch() -> Batch:
    return Batch(
        torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(1, K, 2),
        torch.zeros(1, K, dtype=torch.bool),
    )


def make_model() -> PoseModel:
    torch.manual_seed(0)
    return PoseModel(SPEC)


def total(losses: Losses) -> Tensor:
    return losses.pose + losses.ranking


def gradients(model: nn.Module, batch: Batch, spec: ModelSpec = SPEC) -> list[Tensor]:
    model.zero_grad()
    total(compute_losses(model, batch, spec=spec, options=FitOptions())).backward()  # type: ignore[no-untyped-call]
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


# Losses


def test_the_pose_loss_is_the_mean_of_the_images_losses() -> None:
    model = ScriptedModel(3)
    each = [compute_losses(model, scripted_batch([i]), spec=SPEC, options=FitOptions()).pose.item() for i in range(3)]
    together = compute_losses(model, scripted_batch([0, 1, 2]), spec=SPEC, options=FitOptions()).pose.item()
    assert together == pytest.approx(np.mean(each), rel=1e-6)


def test_the_ranking_loss_of_a_pair_is_the_divergence_of_its_shares() -> None:
    model = ScriptedModel(2)
    first, second = (
        compute_losses(model, scripted_batch([i]), spec=SPEC, options=FitOptions()).pose.item() for i in (0, 1)
    )
    p = first / (first + second)
    one, other = model.predicted_loss.tolist()
    q = 1 / (1 + math.exp(other - one))
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = compute_losses(model, scripted_batch([0, 1]), spec=spec_of("ll++"), options=FitOptions()).ranking.item()
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("method", RANKED)
def test_images_without_labels_teach_nothing(method: MethodName) -> None:
    spec = spec_of(method)
    model = ScriptedModel(7)
    expected = gradients(model, scripted_batch([0, 1, 2, 3]), spec)
    found = gradients(model, scripted_batch([4, 0, 1, 5, 2, 3, 6], unlabelled=(4, 5, 6)), spec)
    assert len(found) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert not one[4:].any()


@pytest.mark.parametrize("method", RANKED)
def test_the_ranking_bends_no_heatmap(method: MethodName) -> None:
    model = ScriptedModel(4)
    losses = compute_losses(model, scripted_batch([0, 1, 2, 3]), spec=spec_of(method), options=FitOptions())
    losses.ranking.backward()  # type: ignore[no-untyped-call]
    assert model.heatmaps.grad is None
    assert model.predicted_loss.grad is not None


@pytest.mark.parametrize("method", RANKED)
def test_a_blank_batch_has_finite_losses_of_zero_and_a_gradient_for_every_parameter(method: MethodName) -> None:
    model = make_model()
    losses = compute_losses(model, blank_batch(), spec=spec_of(method), options=FitOptions())
    assert [loss.item() for loss in losses] == [0, 0, 0]
    total(losses).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():  # a worker whose gradients are missing would stall the others
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


# Steps


def test_steps_on_one_batch_lower_its_losses(samples: list[Sample]) -> None:
    model, batch, options = make_model(), real_batch(samples), FitOptions()
    optimizer = make_optimizer(model, options)
    losses = [train_step(model, optimizer, [batch], spec=SPEC, options=options) for _ in range(12)]
    assert losses[-1].pose < 0.5 * losses[0].pose
    assert not losses[0].pose.requires_grad


@pytest.mark.parametrize("method", RANKED)
def test_steps_teach_the_order_of_the_losses(method: MethodName) -> None:
    model, options, spec = ScriptedModel(6), FitOptions(), spec_of(method)
    with torch.no_grad():
        model.heatmaps.mul_(torch.linspace(1, 3, 6).view(6, 1, 1, 1, 1))  # so that the true losses rise
        model.predicted_loss.copy_(torch.linspace(1, -1, 6))
    optimizer = torch.optim.Adam([model.predicted_loss], lr=0.1)
    for _ in range(60):
        train_step(model, optimizer, [scripted_batch([0, 1, 2, 3, 4, 5])], spec=spec, options=options)
    low, high = model.predicted_loss.view(2, 3)  # image i is paired with i + 3 alone
    assert (low < high).all()


def test_a_step_returns_the_losses_before_it(samples: list[Sample]) -> None:
    model, batch, options = make_model(), real_batch(samples), FitOptions()
    before = compute_losses(copy.deepcopy(model), batch, spec=SPEC, options=options)
    found = train_step(model, make_optimizer(model, options), [batch], spec=SPEC, options=options)
    assert (found.pose.item(), found.ranking.item()) == (before.pose.item(), before.ranking.item())


def test_a_step_on_a_blank_batch_changes_no_weight() -> None:
    model, options = make_model(), FitOptions()
    before = [parameter.clone() for parameter in model.parameters()]
    train_step(model, make_optimizer(model, options), [blank_batch()], spec=SPEC, options=options)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


# Optimiser and schedule


def test_the_optimiser_has_every_parameter_once_at_its_own_rate() -> None:
    model, options = make_model(), FitOptions(learning_rate=0.5, head_learning_rate=0.25)
    estimator, head = make_optimizer(model, options).param_groups
    assert (estimator["lr"], head["lr"]) == (0.5, 0.25)
    assert {id(p) for p in head["params"]} == {id(p) for p in model.loss_head.parameters()}
    held = [id(parameter) for group in (estimator, head) for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters()}


# Accumulated, clipped


def test_accumulated_batches_make_the_step_of_the_mean_of_their_losses() -> None:
    batches = [scripted_batch([0, 1, 2]), scripted_batch([3, 4, 5])]
    model, options = ScriptedModel(6), FitOptions()
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for batch in batches:
        parts = gradients(model, batch)
        expected = [sum_ + part / 2 for sum_, part in zip(expected, parts, strict=True)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = train_step(model, optimizer, batches, spec=SPEC, options=options)
    for parameter, old, gradient in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), old - gradient)
    assert losses.num_pairs == 2  # (0, 1) and (3, 4): pairs are formed inside a batch


@pytest.mark.parametrize(("method", "expected"), [("ll", 1), ("ll++", 2), ("keypoint", 0)])
def test_the_number_of_pairs_is_told_and_equal_losses_don_t_count_where_they_teach_nothing(
    method: MethodName, expected: int
) -> None:
    batch = scripted_batch([0, 1, 0, 2, 3])  # the halves pair image 0 with itself, and 1 with 2
    losses = compute_losses(ScriptedModel(4), batch, spec=spec_of(method), options=FitOptions())
    assert losses.num_pairs == expected


def test_a_head_that_is_taught_afterwards_stays_as_it_is(samples: list[Sample]) -> None:
    torch.manual_seed(0)
    spec = spec_of("keypoint")
    model, options = PoseModel(spec), FitOptions()
    before = copy.deepcopy(model.state_dict())
    train_step(model, make_optimizer(model, options), [real_batch(samples)], spec=spec, options=options)
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"estimator"}


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_gradients_of_estimator_and_head_are_clipped_each_by_itself(clip_norm: float, samples: list[Sample]) -> None:
    model, batch = make_model(), real_batch(samples)
    gradients(model, batch)
    parts = (model.estimator, model.loss_head)
    plain = [torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None]) for part in parts]
    options = FitOptions(clip_norm=clip_norm)
    train_step(
        model, torch.optim.SGD(make_optimizer(model, options).param_groups, lr=0.0), [batch], spec=SPEC, options=options
    )
    for part, before in zip(parts, plain, strict=True):
        found = torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
        expected = before * min(1.0, clip_norm / before.norm().item())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_a_step_in_bfloat16_lowers_the_loss_of_weights_that_stay_in_float32(samples: list[Sample]) -> None:
    model, batch, options = make_model(), real_batch(samples), FitOptions(precision="bfloat16")
    optimizer = make_optimizer(model, options)
    losses = [train_step(model, optimizer, [batch], spec=SPEC, options=options) for _ in range(12)]
    assert losses[-1].pose < 0.5 * losses[0].pose
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# Rates


def test_the_rate_warms_up_and_falls_along_a_cosine_to_one_percent() -> None:
    warming = [rate_share(progress) for progress in (0.0, 0.0125, 0.025, 0.0499)]
    assert warming == pytest.approx([0.01, 0.25, 0.5, 0.998])
    progress = np.linspace(0.05, 1, 40)
    falling = 0.01 + 0.99 * (1 + np.cos(np.pi * (progress - 0.05) / 0.95)) / 2
    assert [rate_share(float(p)) for p in progress] == pytest.approx(falling.tolist())
    assert rate_share(1.3) == pytest.approx(0.01)
