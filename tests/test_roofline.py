"""ImageWork counted against hand-worked numbers, and the bound that follows from it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.pose_model import PoseModel, make_spec
from model.roofline import DeviceRates, ImageWork, bound, count_work, measure_device
from model.skeleton import LSP


def test_a_convolution_reads_its_input_writes_its_output_and_shares_its_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    work = count_work(model.eval(), torch.zeros(2, 3, 10, 10), batch_size=5, dtype=torch.bfloat16)
    assert work.flops == 2 * 10 * 10 * 8 * 3 * 9
    assert work.bytes == 2 * (300 + 800) + 2 * (8 * 3 * 9 + 8) / 5


def test_a_fully_connected_layer_is_counted_alike() -> None:
    work = count_work(nn.Linear(6, 4), torch.zeros(1, 6), batch_size=1, dtype=torch.float32)
    assert work == ImageWork(2 * 6 * 4, 4 * (6 + 4 + 24 + 4))


def test_a_transposed_convolution_is_counted_alike() -> None:
    model = nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1, bias=False)
    work = count_work(model, torch.zeros(1, 4, 5, 5), batch_size=1, dtype=torch.float32)
    assert work == ImageWork(2 * 5 * 5 * 4 * 2 * 16, 4 * (100 + 200 + 4 * 2 * 16))


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(6, 4)
    first, second = (count_work(model, torch.zeros(1, 6), batch_size=1, dtype=torch.float32) for _ in range(2))
    assert first == second
    assert not model._forward_hooks


def test_the_papers_hourglass_takes_17_gflop_and_111_mb_an_image() -> None:
    model = PoseModel(make_spec("hourglass", method="ll++conv", skeleton=LSP)).eval()
    pixels = torch.zeros(1, 256, 256, 3, dtype=torch.uint8)
    work = count_work(model, pixels, batch_size=64, dtype=torch.bfloat16)
    head = 2 * 256 * 256 * 4 * (32**2 + 16**2 + 8**2 + 4**2) + 2 * 256 * 256 * 16
    assert work.flops == pytest.approx(2 * 8.33e9 + head, rel=1e-3)  # 8.33 GMAC: see `paper_hourglass`
    assert work.bytes == pytest.approx(111.4e6, rel=1e-3)


def test_the_lower_rate_binds() -> None:
    work = ImageWork(flops=10.0, bytes=4.0)
    by_bytes = bound(work, DeviceRates(flops_per_s=1000.0, bytes_per_s=200.0))
    assert (by_bytes.images_per_s, by_bytes.limit) == (50.0, "bytes")
    by_flops = bound(work, DeviceRates(flops_per_s=300.0, bytes_per_s=200.0))
    assert (by_flops.images_per_s, by_flops.limit) == (30.0, "flops")


def test_this_machines_rates_are_plausible() -> None:
    rates = measure_device(torch.device("cpu"), dtype=torch.float32)
    assert 1e8 < rates.flops_per_s < 1e14
    assert 1e8 < rates.bytes_per_s < 1e13
