"""Two processes with half the batch each take the steps that one takes: the gradients are those of one mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.choices import MethodName
from model.estimator import PoseOutput
from model.fit import Batch, FitOptions, make_optimizer, train_step
from model.loss_head import GapLossHead
from model.pose_model import Prediction, make_spec
from model.skeleton import LSP

pytestmark = pytest.mark.slow

SPEC = make_spec("hourglass-small", method="ll++", skeleton=LSP)
K = LSP.num_keypoints
NUM_STEPS, HALF = 3, 4


class NormFreeModel(nn.Module):
    """A pose model without batch norm, whose statistics would be those of half a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.estimator = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(8, K, 1))
        self.loss_head = GapLossHead(K)

    def forward(self, pixels: Tensor) -> Prediction:
        heatmaps = self.estimator(pixels.permute(0, 3, 1, 2).float() / 255)
        predicted = self.loss_head(PoseOutput(heatmaps[:, None].detach(), (heatmaps.detach(),)))
        return Prediction(heatmaps[:, None], predicted, torch.zeros(len(pixels), K), torch.zeros(len(pixels), 1))


def half_batch(step: int, half: int) -> Batch:
    generator = torch.Generator().manual_seed(10 * step + half)
    return Batch(
        torch.randint(0, 256, (HALF, 64, 64, 3), dtype=torch.uint8, generator=generator),
        64 * torch.rand(HALF, K, 2, generator=generator),
        torch.ones(HALF, K, dtype=torch.bool),
    )


def take_steps(method: MethodName, halves: list[int], wrap: type[nn.Module] | None = None) -> NormFreeModel:
    """The model after some steps on the given halves of each batch, whose pairs are formed inside each half."""
    model, options = NormFreeModel(), FitOptions(learning_rate=1e-2, head_learning_rate=1e-2)
    optimizer = make_optimizer(model, options)  # type: ignore[arg-type]
    wrapped = wrap(model) if wrap else model
    for step in range(NUM_STEPS):
        train_step(
            wrapped,
            optimizer,
            [half_batch(step, half) for half in halves],
            spec=replace(SPEC, method=method),
            options=options,
        )
    return model


def one_of_two(rank: int, meeting_point: str, method: MethodName) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    model = take_steps(method, [rank], wrap=DistributedDataParallel)
    torch.save(model.state_dict(), f"{meeting_point}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("method", ["ll", "ll++"])
def test_two_processes_take_the_steps_of_one_that_accumulates_their_halves(method: MethodName, tmp_path: Path) -> None:
    expected = take_steps(method, [0, 1])
    before = NormFreeModel()
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path / "meet"), method), nprocs=2)
    first, second = (torch.load(tmp_path / f"meet.{rank}", weights_only=True) for rank in (0, 1))
    for name, value in expected.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    moved = (value - before.state_dict()[name] for name, value in expected.state_dict().items())
    assert max(change.abs().max().item() for change in moved) > 1e-2  # far more than the tolerance
