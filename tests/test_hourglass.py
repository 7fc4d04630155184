"""The hourglass against its published size, shapes and skip."""

import pytest
import torch
from torch import Tensor, nn

from model.errors import InputError
from model.estimator import PoseOutput
from model.hourglass import HourglassConfig, StackedHourglass, paper_hourglass, small_hourglass


def tiny_hourglass(*, num_stacks: int = 2, stem_stride: int = 4) -> StackedHourglass:
    torch.manual_seed(0)
    config = HourglassConfig(num_keypoints=3, num_stacks=num_stacks, channels=8, depth=2, stem_stride=stem_stride)
    return StackedHourglass(config).eval()


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(model: nn.Module, images: Tensor) -> tuple[int, PoseOutput]:
    """Multiply-accumulates of every convolution, counted where it runs."""
    macs = 0

    def count(conv: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * conv.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    output = model(images)
    return macs, output


def test_paper_hourglass_has_the_published_size_once_the_projections_that_never_run_are_added() -> None:
    with torch.device("meta"):
        num_parameters = count_parameters(paper_hourglass(14))
    # Each of 2 stacks: 13 residual blocks in the hourglass, one after it; the stem has one of 128 to 128.
    never_run = 2 * (13 + 1) * (256 * 256 + 256) + (128 * 128 + 128)
    assert num_parameters == 6_568_860
    assert round((num_parameters + never_run) / 1e6, 2) == 8.43


def test_paper_hourglass_has_the_published_cost_and_shapes() -> None:
    # A sixteenth of the pixels: every map is a quarter as wide, every count a sixteenth, and the test is quick.
    macs, output = count_macs(paper_hourglass(14).eval(), torch.zeros(1, 3, 256 // 4, 256 // 4))
    assert 16 * macs / 1e9 == pytest.approx(8.34, abs=0.015)  # 8.328 for 14 keypoints, 8.335 for 16
    assert output.heatmaps.shape == (1, 2, 14, 64 // 4, 64 // 4)
    assert [feature.shape for feature in output.features] == [
        (1, 256, size // 4, size // 4) for size in (64, 32, 16, 8, 4)
    ]


@pytest.mark.parametrize("batch_size", [0, 1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_small_hourglass_keeps_the_shape_contract_for_any_batch(batch_size: int, training: bool) -> None:
    output = small_hourglass(14).train(training)(torch.zeros(batch_size, 3, 64, 64))
    assert output.heatmaps.shape == (batch_size, 1, 14, 32, 32)
    assert [feature.shape for feature in output.features] == [(batch_size, 48, size, size) for size in (32, 16, 8, 4)]


def test_an_empty_training_batch_leaves_the_running_statistics_finite() -> None:
    model = tiny_hourglass().train()
    model(torch.zeros(0, 3, 32, 32))
    assert all(buffer.isfinite().all() for buffer in model.buffers())


def test_the_next_stack_reads_the_previous_stacks_input_plus_what_is_merged() -> None:
    model = tiny_hourglass(num_stacks=3)
    inputs: list[Tensor] = []
    for stack in model.stacks:
        stack.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    images = torch.randn(2, 3, 32, 48)
    model(images)
    assert torch.equal(inputs[0], model.stem(images))
    for s, merge in enumerate(model.merges):
        heatmaps, features = model.stacks[s](inputs[s].clone())
        expected = inputs[s] + merge.features(features[0]) + merge.heatmaps(heatmaps)
        torch.testing.assert_close(inputs[s + 1], expected)


def test_features_are_the_last_stacks_decoder_outputs_and_what_its_heatmaps_are_made_from() -> None:
    model = tiny_hourglass()
    decoded: list[Tensor] = []
    for decoder in model.stacks[-1].hourglass.decoders:
        decoder.register_forward_hook(lambda *call: decoded.append(call[-1].clone()))
    heatmaps, features = model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(model.stacks[-1].to_heatmaps(features[0]), heatmaps[:, -1])
    for feature, expected in zip(features[1:], reversed(decoded), strict=True):
        assert torch.equal(feature, expected)


@pytest.mark.parametrize("stem_stride", [2, 4])
def test_heatmaps_train_every_parameter(stem_stride: int) -> None:
    model = tiny_hourglass(stem_stride=stem_stride).train()
    model(torch.randn(2, 3, 32, 32)).heatmaps.square().sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == []


def test_an_image_gets_the_same_heatmaps_alone_and_in_a_batch() -> None:
    model = tiny_hourglass()
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model(images).heatmaps[1:2], model(images[1:2]).heatmaps)


@pytest.mark.parametrize("size", [(30, 32), (32, 24)])
def test_an_input_that_cannot_be_halved_so_often_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"multiples of 16 px, found {size[0]}x{size[1]}"):
        tiny_hourglass()(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    "fault", [{"stem_stride": 3}, {"channels": 6}, {"channels": 0}, {"depth": 0}, {"num_stacks": 0}]
)
def test_an_impossible_size_is_refused(fault: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(fault))):
        HourglassConfig(num_keypoints=3, **fault)
