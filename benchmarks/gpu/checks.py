"""Checks of a device, as plain functions of it: `tests/test_gpu.py` runs them too, on the CPU where there is no GPU.

Those of `CUDA_CHECKS` show what only a GPU has. All use a small untrained network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.gpu.device import capture, random_crops
from benchmarks.gpu.networks import new_bundle
from model.bundle import Bundle
from model.device import DeviceModel, RowLabels
from model.pose_model import make_spec
from model.predictor import Predictions, Predictor
from model.skeleton import LSP
from model.synthetic import Sample, generate_fleet

Check = Callable[[torch.device], None]

_NAMES = ("predicted_loss", "confidence", "peaks", "keypoints", "embedding")
_SMALL_MEMORY = 250 * 2**20
# Shares of a quantity's greatest value. TF32 has 10 bits, bfloat16 has 8; a dozen layers.
_FLOAT32_TOLERANCE, _HALF_TOLERANCE = 0.005, 0.05


def float32_is_near_the_cpu(device: torch.device, *, is_compiled: bool = False) -> None:
    """TF32 has 10 bits, and no more is lost."""
    found = _predict(_predictor(device, precision="float32", is_compiled=is_compiled))
    _assert_close(found, _of_cpu(), tolerance=_FLOAT32_TOLERANCE)


def a_row_depends_neither_on_its_neighbours_nor_on_its_place(
    device: torch.device, *, is_compiled: bool = False
) -> None:
    """To the bit."""
    predictor = _predictor(device, is_compiled=is_compiled)
    together, backwards = _predict(predictor), _predict(predictor, _samples()[::-1])
    for name in _NAMES:
        np.testing.assert_array_equal(getattr(together, name), getattr(backwards, name)[::-1], err_msg=name)
    for index in (0, 5, 30):
        alone = _predict(predictor, [_samples()[index]])
        for name in _NAMES:
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[index], err_msg=name)


def two_predictors_agree(device: torch.device) -> None:
    """To the bit, whatever the number of threads that decode."""
    one, other = (_predict(_predictor(device, decode_threads=threads, is_compiled=False)) for threads in (1, 4))
    _assert_equal(one, other)


def many_calls_in_a_row_mix_no_buffers(device: torch.device) -> None:
    """Batches are copied, computed and fetched beside each other, from buffers that are used again."""
    predictor = _predictor(device, batch_size=8, is_compiled=False)
    expected = _predict(predictor)
    for _ in range(20 if device.type == "cuda" else 2):
        _assert_equal(_predict(predictor), expected)


def seconds_of_the_device_are_counted(device: torch.device) -> None:
    """By events in the order of its work."""
    predictor = _predictor(device, is_compiled=False)
    assert predictor.seconds["compute"] == 0
    _predict(predictor)
    assert predictor.seconds["compute"] > 0


def a_row_with_labels_has_its_true_loss(device: torch.device) -> None:
    """That of the CPU, and only rows with labels have one."""
    rows = np.array([0, 3, 7])
    rng = np.random.default_rng(0)
    labels = RowLabels(rows, rng.uniform(0, 64, (3, 14, 2)).astype(np.float32), np.arange(42).reshape(3, 14) % 3 > 0)
    spec = _bundle().spec
    crops = random_crops(spec, 8, torch.device("cpu"))
    losses = []
    for where in (torch.device("cpu"), device):
        model = DeviceModel(_bundle().model, device=where, batch_size=8, precision="float32", is_compiled=False)
        pixels = crops.pin_memory() if where.type == "cuda" else crops
        losses.append(model.start(pixels, num_rows=8, labels=labels).fetch()[0].true_loss)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(losses[1])), rows)
    np.testing.assert_allclose(losses[1][rows], losses[0][rows], rtol=0.01)


def the_default_is_half_precision_and_compiled(device: torch.device) -> None:
    """bfloat16, or float16 on a GPU without it; near the CPU's float32."""
    model = DeviceModel(_bundle().model, device=device, batch_size=16)
    assert model.precision == ("bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16")
    assert model.is_compiled
    _assert_close(_predict(_predictor(device)), _of_cpu(), tolerance=_HALF_TOLERANCE)


def compiled_float32_is_near_the_cpu(device: torch.device) -> None:
    """As uncompiled."""
    float32_is_near_the_cpu(device, is_compiled=True)


def compiled_a_row_depends_neither_on_its_neighbours_nor_on_its_place(device: torch.device) -> None:
    """To the bit."""
    a_row_depends_neither_on_its_neighbours_nor_on_its_place(device, is_compiled=True)


def nothing_in_the_loop_waits_for_the_device(device: torch.device) -> None:
    """PyTorch raises at whatever makes the host wait; only fetching results may, and that waits for an event."""
    for bundle in (_bundle(), _bundle("keypoint")):
        model = DeviceModel(bundle.model, device=device, batch_size=8, is_compiled=False)
        crops = random_crops(bundle.spec, 8, torch.device("cpu")).pin_memory()
        model.start(crops, num_rows=8).fetch()
        torch.cuda.set_sync_debug_mode("error")
        try:
            pending = [model.start(crops, num_rows=8) for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for each in pending:
            each.fetch()


def a_pass_as_a_graph_gives_the_same_scores(device: torch.device) -> None:
    """To the bit."""
    for bundle in (_bundle(), _bundle("keypoint")):
        model = DeviceModel(bundle.model, device=device, batch_size=8, is_compiled=False)
        crops = random_crops(bundle.spec, 8, device)
        _, packed = capture(model, crops)
        expected = model.compute(crops, num_rows=8)[0]
        np.testing.assert_array_equal(packed.cpu().numpy(), expected.cpu().numpy())


def short_of_memory_it_goes_on_with_half(device: torch.device) -> None:
    """And loses nothing."""
    many = (_samples() * 22)[:1024]
    expected = _predict(_predictor(device, batch_size=64, is_compiled=False), many)
    predictor = _predictor(device, batch_size=1024, is_compiled=False)
    with _small_memory(device):
        found = _predict(predictor, many)
    assert predictor.device_model.rows_per_pass < 1024
    _assert_close(found, expected, tolerance=0.02)


CHECKS: tuple[Check, ...] = (
    float32_is_near_the_cpu,
    a_row_depends_neither_on_its_neighbours_nor_on_its_place,
    two_predictors_agree,
    many_calls_in_a_row_mix_no_buffers,
    seconds_of_the_device_are_counted,
    a_row_with_labels_has_its_true_loss,
)
CUDA_CHECKS: tuple[Check, ...] = (
    nothing_in_the_loop_waits_for_the_device,
    a_pass_as_a_graph_gives_the_same_scores,
    the_default_is_half_precision_and_compiled,
    compiled_float32_is_near_the_cpu,
    compiled_a_row_depends_neither_on_its_neighbours_nor_on_its_place,
    short_of_memory_it_goes_on_with_half,
)


def title(check: Check) -> str:
    """A check's name as a sentence."""
    return check.__name__.replace("_", " ")


@functools.cache
def _samples() -> list[Sample]:
    return list(generate_fleet(seed=7, num_samples=48, unreadable_share=0.0))


def _bundle(method: str = "ll++conv") -> Bundle:
    return new_bundle(make_spec("hourglass-small", method=method, skeleton=LSP))  # type: ignore[arg-type]


@functools.cache
def _of_cpu() -> Predictions:
    return _predict(_predictor(torch.device("cpu")))


def _predictor(device: torch.device, *, batch_size: int = 16, **options: object) -> Predictor:
    return Predictor(_bundle(), device=str(device), batch_size=batch_size, **options)  # type: ignore[arg-type]


def _predict(predictor: Predictor, samples: list[Sample] | None = None) -> Predictions:
    some = _samples() if samples is None else samples
    return predictor.predict([sample.image for sample in some], [np.array(sample.box) for sample in some])


def _assert_equal(one: Predictions, other: Predictions) -> None:
    assert one.errors == other.errors
    for name in _NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def _assert_close(one: Predictions, other: Predictions, *, tolerance: float) -> None:
    """Peaks, embeddings and losses within a share of their greatest value. An untrained model's keypoints may jump."""
    assert one.errors == other.errors
    for name in ("predicted_loss", "peaks", "embedding"):
        expected = getattr(other, name)
        np.testing.assert_allclose(
            getattr(one, name), expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name
        )


@contextmanager
def _small_memory(device: torch.device) -> Iterator[None]:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        _SMALL_MEMORY / torch.cuda.get_device_properties(device).total_memory, device
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
