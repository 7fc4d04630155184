"""Two processes with half the batch each take the steps that one takes: the gradients are those of one mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faulty import write_labelled
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.ingest.fleet import row_of
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.training.options import TrainingJob, TrainingOptions
from distributed.training.rank import Notice, Rank
from distributed.training.teaching import teach_head
from model.choices import MethodName
from model.estimator import PoseOutput
from model.fit import Batch, FitOptions, make_optimizer, train_step
from model.loss_head import GapLossHead
from model.pose_model import PoseModel, Prediction, make_spec
from model.skeleton import LSP
from model.synthetic import Sample

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


def taught_weights(labelled: str, *, index: int, num_ranks: int) -> dict[str, torch.Tensor]:
    """Weights of the keypoint head after one rank of several has taught it."""
    torch.manual_seed(0)
    model = PoseModel(make_spec("tiny_poses:tiny", method="keypoint", skeleton=LSP))
    manifest = freeze_labelled(locate(labelled), skeleton=LSP)
    out = locate(labelled).join("out")  # nothing is written
    job = TrainingJob(labelled=manifest, validation=None, out=out, spec=model.spec, options=TrainingOptions(epochs=1))
    rank = Rank(
        index=index,
        world_size=num_ranks,
        attempt=1,
        device=torch.device("cpu"),
        wrap=lambda model: model,
        read_epoch=lambda _: iter(()),
        look_up=lambda: Notice.NONE,
        count_rows=lambda *_: None,
        count_from=lambda _: None,
        end_epoch=lambda _: None,
    )
    teach_head(job, rank, model)
    return model.loss_head.state_dict()


METHODS = ("ll", "ll++")


def one_of_two(rank: int, place: str, labelled: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    for method in METHODS:
        torch.save(take_steps(method, [rank], wrap=DistributedDataParallel).state_dict(), f"{place}/{method}.{rank}")
    torch.save(taught_weights(labelled, index=rank, num_ranks=2), f"{place}/taught.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def labelled(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row_of(sample) for sample in samples]
    return write_labelled(tmp_path_factory.mktemp("labelled") / "table", rows, row_group_bytes=100_000)


@pytest.fixture(scope="module")
def place(labelled: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the weights that two processes have left."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_of_two, (str(folder), labelled), nprocs=2)
    return folder


def weights_of_both(place: Path, name: str) -> list[dict[str, Tensor]]:
    return [torch.load(place / f"{name}.{rank}", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_steps_of_one_that_accumulates_their_halves(method: MethodName, place: Path) -> None:
    expected = take_steps(method, [0, 1])
    before = NormFreeModel()
    first, second = weights_of_both(place, method)
    for name, value in expected.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    moved = (value - before.state_dict()[name] for name, value in expected.state_dict().items())
    assert max(change.abs().max().item() for change in moved) > 1e-2  # far more than the tolerance


def test_two_processes_teach_one_head_all_rows(labelled: str, place: Path) -> None:
    first, second = weights_of_both(place, "taught")
    alone = taught_weights(labelled, index=0, num_ranks=1)
    assert first["plain.loss_scale"] > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name in ("plain.mean", "plain.scale", "mirrored.mean", "mirrored.scale"):
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=1e-4)
