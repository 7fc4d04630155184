"""Estimator and head as one module that never train each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from model.choices import MethodName
from model.errors import BundleError, InputError
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP

METHODS: tuple[MethodName, ...] = ("ll++", "ll++conv", "keypoint")


def make_model(method: MethodName) -> PoseModel:
    torch.manual_seed(0)
    return PoseModel(make_spec("hourglass-small", method=method, skeleton=LSP))


def random_pixels(batch_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch_size, 64, 64, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("is_training", [True, False])
def test_crops_give_finite_heatmaps_and_one_loss_each(method: MethodName, batch_size: int, is_training: bool) -> None:
    prediction = make_model(method).train(is_training)(random_pixels(batch_size))
    assert prediction.heatmaps.shape == (batch_size, 1, 14, 32, 32)
    assert prediction.predicted_loss.shape == (batch_size,)
    assert prediction.heatmaps.isfinite().all()
    assert prediction.predicted_loss.isfinite().all()


def test_pixels_are_normalised_by_the_mean_and_deviation_of_the_specification() -> None:
    model = make_model("ll++").eval()
    seen: list[torch.Tensor] = []
    model.estimator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = random_pixels(2)
    model(pixels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["ll++", "ll++conv"])
def test_the_ranking_never_reaches_the_estimator_nor_the_pose_loss_the_head(method: MethodName) -> None:
    model = make_model(method)
    model(random_pixels(2)).predicted_loss.sum().backward()
    assert all(parameter.grad is None for parameter in model.estimator.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.loss_head.parameters())
    model.zero_grad()
    model(random_pixels(2)).heatmaps.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.loss_head.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.estimator.parameters())


def test_the_embedding_is_the_average_of_the_coarsest_features_and_trains_nothing() -> None:
    model = make_model("ll++")
    seen: list[torch.Tensor] = []
    model.estimator.register_forward_hook(lambda *call: seen.append(call[-1].features[-1]))
    embedding = model(random_pixels(2)).embedding
    assert embedding.shape == (2, model.embedding_dim) == (2, 48)
    assert not embedding.requires_grad
    torch.testing.assert_close(embedding, seen[0].flatten(start_dim=2).mean(dim=2))


def test_the_state_holds_weights_and_no_constants() -> None:
    names = set(make_model("ll++conv").state_dict())
    assert {name.split(".")[0] for name in names} == {"estimator", "loss_head"}


def test_the_papers_hourglass_and_its_head_of_all_scales_fit_together() -> None:
    model = PoseModel(make_spec("hourglass", method="ll++conv", skeleton=LSP)).eval()
    with torch.inference_mode():
        prediction = model(torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
    assert prediction.heatmaps.shape == (1, 2, 14, 64, 64)
    assert prediction.predicted_loss.shape == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mlp"}, r"expected ll, ll\+\+, ll\+\+conv, keypoint, found 'mlp'"),
        ({"heatmap_size": 16}, r"expected input_size 2 \* heatmap_size, found 64 and 16"),
        ({"input_size": 256}, r"expected input_size 2 \* heatmap_size, found 256 and 32"),
    ],
)
def test_a_specification_that_fits_no_model_is_refused(change: dict[str, object], message: str) -> None:
    spec = dataclasses.replace(make_spec("hourglass-small", method="ll++", skeleton=LSP), **change)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=message):
        PoseModel(spec)


def test_crops_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 16 px, found 60x60"):
        make_model("ll++")(torch.zeros(1, 60, 60, 3, dtype=torch.uint8))
