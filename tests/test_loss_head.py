"""The paper's two heads: sizes, what they read, batches of any length."""

import pytest
import torch
from torch import Tensor, nn

from model.errors import InputError
from model.estimator import PoseOutput
from model.loss_head import ConvLossHead, GapLossHead

SIZES = (8, 4, 2)


def some_features(batch_size: int, *, channels: int = 6) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(batch_size, channels, size, size, generator=generator) for size in SIZES)


def some_output(batch_size: int, *, features: tuple[Tensor, ...] | None = None) -> PoseOutput:
    heatmaps = torch.rand(batch_size, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return PoseOutput(heatmaps, some_features(batch_size) if features is None else features)


def some_heads() -> list[nn.Module]:
    torch.manual_seed(0)
    return [GapLossHead(6), ConvLossHead(6, num_scales=3, coarsest_size=2)]


def fully_connected(head: nn.Module, x: Tensor) -> Tensor:
    """The regressor as plain matrix products, from the head's own weights."""
    layers = [layer for layer in head.regressor if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    return (x @ layers[-1].weight.T + layers[-1].bias)[:, 0]


def patches(x: Tensor, size: int) -> Tensor:
    """(B, h, w, C * size * size): the non-overlapping squares that a strided convolution reads."""
    batch, channels, height, width = x.shape
    cut = x.reshape(batch, channels, height // size, size, width // size, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // size, width // size, -1)


def strided(conv: nn.Conv2d, x: Tensor) -> Tensor:
    flat = patches(x, conv.kernel_size[0]) @ conv.weight.flatten(1).T + conv.bias
    return flat.permute(0, 3, 1, 2)


def test_gap_head_is_the_mean_of_the_finest_map_through_the_published_widths() -> None:
    head = some_heads()[0]
    output = some_output(3)
    widths = [layer.in_features for layer in head.regressor if isinstance(layer, nn.Linear)]
    assert widths == [6, 128, 64, 32, 16, 8]
    torch.testing.assert_close(head(output), fully_connected(head, output.features[0].flatten(2).mean(2)))


def test_conv_head_carries_each_scale_down_and_adds_it_to_the_next() -> None:
    head = some_heads()[1]
    fine, middle, coarse = some_features(3)
    carried = strided(head.downs[0], fine).clamp(min=0) + middle
    carried = strided(head.downs[1], carried).clamp(min=0) + coarse
    expected = fully_connected(head, strided(head.to_vector, carried).flatten(1))
    torch.testing.assert_close(head(some_output(3)), expected)


def test_conv_head_on_the_paper_hourglass_has_the_published_size_and_cost() -> None:
    with torch.device("meta"):
        head = ConvLossHead(256, num_scales=5, coarsest_size=4)
    num_parameters = sum(parameter.numel() for parameter in head.parameters())
    # A 2x2 convolution at each of 32, 16, 8, 4 px, then one 4x4: the fully connected layers are 0.04 M.
    macs = 256 * 256 * 4 * (32**2 + 16**2 + 8**2 + 4**2) + 256 * 256 * 16
    assert round(num_parameters / 1e6, 1) == 2.1
    assert round(macs / 1e9, 2) == 0.36


@pytest.mark.parametrize("head", some_heads(), ids=["gap", "conv"])
@pytest.mark.parametrize("batch_size", [0, 1, 3])
@pytest.mark.parametrize("autocast", [True, False])
def test_one_float32_number_an_image_for_any_batch(head: nn.Module, batch_size: int, autocast: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        predicted = head(some_output(batch_size))
    assert predicted.shape == (batch_size,)
    assert predicted.dtype == torch.float32


@pytest.mark.parametrize("head", some_heads(), ids=["gap", "conv"])
def test_every_parameter_of_a_head_learns(head: nn.Module) -> None:
    head(some_output(2)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_half_precision_features_under_autocast_stay_distinguishable() -> None:
    # 64 close predictions: in bfloat16, with its 8 bits, most of them would be ties.
    head = some_heads()[0]
    output = some_output(64, features=tuple(feature.bfloat16() for feature in some_features(64)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(output).unique().numel() == 64


def test_conv_head_accepts_a_single_scale() -> None:
    head = ConvLossHead(6, num_scales=1, coarsest_size=2)
    assert head(some_output(2, features=some_features(2)[-1:])).shape == (2,)


@pytest.mark.parametrize("kept", [slice(0, 2), slice(1, 3)])
def test_conv_head_refuses_features_it_was_not_built_for(kept: slice) -> None:
    with pytest.raises(InputError, match=r"expected .* \(3, 2, 2\), found \(2, "):
        some_heads()[1](some_output(2, features=some_features(2)[kept]))
