"""Folded batch norms: the same function but for rounding, fewer of them, and the model as it was."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.choices import MethodName
from model.folding import fold_norms
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP

SIZE = 16


def with_lively_norms(model: nn.Module) -> nn.Module:
    """The model in evaluation mode; no norm of it is the identity that a new one is."""
    generator = torch.Generator().manual_seed(0)
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        for values, low, high in (
            (norm.weight, 0.5, 1.5),
            (norm.bias, -0.3, 0.3),
            (norm.running_mean, -0.3, 0.3),
            (norm.running_var, 0.5, 2.0),
        ):
            nn.init.uniform_(cast(Tensor, values), low, high, generator=generator)
    return model.eval()


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


class Named(nn.Module):
    """A network of somebody else's, by its layers and what it does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = type("Spec", (), {"input_size": SIZE})
        self.once, self.once_norm = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shared, self.shared_norms = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.handed_out, self.handed_out_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self.once_norm(self.once(pixels.permute(0, 3, 1, 2).float() / 255))
        read_twice = self.twice(x)
        x = F.relu(self.twice_norm(read_twice)) + read_twice
        for norm in self.shared_norms:
            x = norm(self.shared(x))
        handed_out = self.handed_out(x)
        return handed_out, self.handed_out_norm(handed_out)


def random_pixels(size: int, *, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Of three norms of a pre-activation block the first stays; one follows the stem, one each stack's features.
@pytest.mark.parametrize(
    ("estimator", "method", "num_before", "num_after"),
    [("hourglass-small", "keypoint", 38, 12), ("hourglass", "ll++conv", 96, 31)],
)
def test_a_folded_model_predicts_the_same_but_for_rounding_with_a_third_of_the_norms(
    estimator: str, method: MethodName, num_before: int, num_after: int
) -> None:
    model = cast(PoseModel, with_lively_norms(PoseModel(make_spec(estimator, method=method, skeleton=LSP))))
    folded = fold_norms(model)
    assert (num_norms(model), num_norms(folded)) == (num_before, num_after)
    pixels = random_pixels(model.spec.input_size)[:1]
    with torch.inference_mode():
        expected, found = model(pixels), folded(pixels)
    for name in ("heatmaps", "predicted_loss", "embedding"):
        values = getattr(expected, name)
        torch.testing.assert_close(getattr(found, name), values, rtol=0, atol=1e-5 * float(values.abs().max()))


def test_only_a_norm_that_alone_reads_a_convolution_that_is_used_once_is_folded() -> None:
    model = with_lively_norms(Named())
    folded = fold_norms(cast(PoseModel, model))
    layers = dict(folded.named_modules())
    assert [name for name, layer in layers.items() if isinstance(layer, nn.Identity)] == ["once_norm"]
    for expected, found in zip(model(random_pixels(SIZE)), folded(random_pixels(SIZE)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_folding_leaves_the_model_as_it_was_and_copies_no_other_weight() -> None:
    model = with_lively_norms(Named())
    before = {name: values.clone() for name, values in model.state_dict().items()}
    folded = cast(Named, fold_norms(cast(PoseModel, model)))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert folded.twice.weight is cast(Named, model).twice.weight
