"""Images of a pass and images worth a process: by the size of the network's input."""

from __future__ import annotations

import pytest

from model.sizes import ROW_TILE, choose_batch_size, rows_of_pass, rows_worth_an_actor


@pytest.mark.parametrize(
    ("device", "sizes"), [("cpu", {64: 64, 128: 64, 192: 32, 256: 16, 1024: 16}), ("cuda:1", {64: 1024, 256: 256})]
)
def test_the_larger_the_images_the_fewer_are_in_a_pass(device: str, sizes: dict[int, int]) -> None:
    found = {size: choose_batch_size(size, device=device) for size in sizes}
    assert found == sizes
    assert not any(images % ROW_TILE for images in found.values())


@pytest.mark.parametrize(("num_rows", "computed"), [(1, 16), (16, 16), (17, 32), (63, 64), (64, 64)])
def test_few_rows_are_few_to_compute(num_rows: int, computed: int) -> None:
    assert rows_of_pass(num_rows, batch_size=64) == computed
    assert rows_of_pass(num_rows, batch_size=8) == 8


def test_160_images_of_the_papers_size_are_work_for_two_processes_and_no_padding() -> None:
    assert -(-160 // rows_worth_an_actor(256)) >= 2
    assert 160 % choose_batch_size(256, device="cpu") == 0
