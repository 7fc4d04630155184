"""Forward passes on one device: lack of memory, precision and compilation. `test_gpu.py` has what a GPU alone shows."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.bundle import Bundle
from model.choices import MethodName, Precision, Views
from model.device import DeviceModel, RowLabels
from model.errors import InputError, RunFailedError
from model.folding import fold_norms
from model.packing import Forward, Quantities, predict_packed
from model.pose_model import PoseModel, Prediction, make_spec
from model.predictor import Predictions, Predictor
from model.skeleton import LSP
from model.synthetic import Sample

CPU = torch.device("cpu")
B = 40
NAMES = ("predicted_loss", "confidence", "peaks", "keypoints", "embedding")


def predict(predictor: Predictor, samples: list[Sample]) -> Predictions:
    return predictor.predict([sample.image for sample in samples], [np.array(sample.box) for sample in samples])


def assert_equal(one: Predictions, other: Predictions) -> None:
    assert one.errors == other.errors
    for name in NAMES:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


class CrowdedModel(nn.Module):
    """A pose model for which there is memory for `limit` images at once."""

    def __init__(self, model: PoseModel, *, limit: int) -> None:
        super().__init__()
        self.inner = model
        self.spec = model.spec
        self.embedding_dim = model.embedding_dim
        self.limit = limit
        self.asked: list[int] = []

    def forward(self, pixels: torch.Tensor) -> Prediction:
        self.asked.append(len(pixels))
        if len(pixels) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
        prediction: Prediction = self.inner(pixels)
        return prediction


def crops(count: int = B) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def device_model(model: nn.Module, *, batch_size: int = B, **options: Any) -> DeviceModel:
    return DeviceModel(cast(PoseModel, model), device=CPU, batch_size=batch_size, **options)


def results(model: DeviceModel, pixels: torch.Tensor, *, num_rows: int = B, **options: Any) -> Quantities:
    return model.start(pixels, num_rows=num_rows, **options).fetch()[0]


# Lack of memory


@pytest.mark.parametrize(("limit", "rows_per_pass"), [(40, 40), (39, 24), (24, 24), (16, 16), (15, 8), (8, 8)])
@pytest.mark.parametrize("num_rows", [B, B - 7])
def test_short_of_memory_the_rows_of_a_pass_are_halved_and_nothing_is_lost(
    bundle: Bundle, limit: int, rows_per_pass: int, num_rows: int
) -> None:
    model = device_model(CrowdedModel(bundle.model, limit=limit))
    expected = results(device_model(bundle.model), crops())
    found = results(model, crops(), num_rows=num_rows)
    assert model.rows_per_pass == rows_per_pass
    for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(one[:num_rows], other[:num_rows])


def test_once_halved_it_stays_so_and_rows_of_padding_are_left_out(bundle: Bundle) -> None:
    crowded = CrowdedModel(bundle.model, limit=16)
    model = device_model(crowded)
    results(model, crops())
    assert crowded.asked == [40, 24, 16, 16, 16]
    crowded.asked.clear()
    results(model, crops(), num_rows=17)
    assert crowded.asked == [16, 16]


def test_each_halving_is_one_line_in_the_log(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    model = device_model(CrowdedModel(bundle.model, limit=16))
    with caplog.at_level(logging.WARNING, logger="lossight"):
        results(model, crops())
        results(model, crops())
    assert [record.getMessage() for record in caplog.records] == [
        "cpu: out of memory with 40 images a pass, going on with 24",
        "cpu: out of memory with 24 images a pass, going on with 16",
    ]


def test_a_device_that_cannot_hold_eight_images_ends_the_run_and_says_so(bundle: Bundle) -> None:
    model = device_model(CrowdedModel(bundle.model, limit=7))
    with pytest.raises(RunFailedError, match=r"cpu: expected memory for a batch of 8 images.*20.00 GiB.$"):
        model.start(crops(), num_rows=B)


def test_a_batch_done_again_keeps_its_labels(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    rows = np.array([0, 3, 17, 39])
    labels = RowLabels(rows, rng.uniform(0, 64, (4, 14, 2)).astype(np.float32), np.arange(56).reshape(4, 14) % 3 > 0)
    expected = results(device_model(bundle.model), crops(), labels=labels).true_loss
    found = results(device_model(CrowdedModel(bundle.model, limit=8)), crops(), labels=labels).true_loss
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(found)), rows)
    np.testing.assert_array_equal(found, expected)


def test_a_predictor_short_of_memory_predicts_the_same(bundle: Bundle, samples: list[Sample]) -> None:
    expected = predict(Predictor(bundle, batch_size=16), samples)
    crowded = Bundle(model=cast(PoseModel, CrowdedModel(bundle.model, limit=8)), bundle_id="crowded")
    assert_equal(predict(Predictor(crowded, batch_size=16), samples), expected)


def test_few_rows_are_computed_as_few_and_get_what_they_get_in_a_full_batch(bundle: Bundle) -> None:
    crowded = CrowdedModel(bundle.model, limit=B)
    model = device_model(crowded)
    expected = results(model, crops())
    for num_rows, computed in ((1, 16), (16, 16), (17, 32), (33, B)):
        found = results(model, crops(), num_rows=num_rows)
        assert crowded.asked[-1] == computed
        for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(one[:num_rows], other[:num_rows])


@pytest.mark.nightly  # 50 images of the paper's network
def test_the_papers_network_too_gives_a_row_the_same_bits_in_a_short_pass() -> None:
    plain = PoseModel(make_spec("hourglass", method="keypoint", skeleton=LSP))
    model = device_model(fold_norms(plain), batch_size=32)
    pixels = torch.randint(0, 256, (32, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    together, few = results(model, pixels, num_rows=32), results(model, pixels, num_rows=16)
    for one, other in zip(vars(few).values(), vars(together).values(), strict=True):
        np.testing.assert_array_equal(one[:16], other[:16])


# Precision


def test_on_a_cpu_the_default_is_float32_and_uncompiled(bundle: Bundle) -> None:
    model = device_model(bundle.model)
    assert (model.precision, model.is_compiled) == ("float32", False)


def test_bfloat16_is_close_to_float32_and_its_losses_are_not_rounded_to_it(bundle: Bundle) -> None:
    expected = results(device_model(bundle.model), crops())
    found = results(device_model(bundle.model, precision="bfloat16"), crops())
    scale = np.abs(expected.embedding).max()
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=0.03 * scale)  # 8 bits, a dozen layers
    assert (found.embedding != expected.embedding).any()
    assert found.predicted_loss.dtype == np.float32
    rounded = torch.from_numpy(found.predicted_loss.copy()).bfloat16().float().numpy()
    assert (rounded != found.predicted_loss).any()


def test_an_unknown_precision_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="precision: expected float32, bfloat16, float16, found 'int8'"):
        device_model(bundle.model, precision=cast(Precision, "int8"))


# Compilation


def test_a_compiled_model_is_compiled_for_its_one_shape_before_the_first_batch(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []

    def compile_model(forward: Forward, *, dynamic: bool, options: object) -> Forward:
        assert not dynamic

        def compiled(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            shapes.append(pixels.shape)
            return forward(pixels)

        return compiled

    monkeypatch.setattr(torch, "compile", compile_model)
    model = device_model(bundle.model, is_compiled=True)
    assert shapes == [(B, 64, 64, 3)]
    results(model, crops(), num_rows=3)
    assert shapes == [(B, 64, 64, 3)] * 2


def failing_compiler(forward: Forward, **options: object) -> Forward:
    def compiled(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("Failed to find C compiler.\nPlease specify")

    return compiled


def test_without_a_compiler_it_goes_on_uncompiled_and_says_so_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = results(device_model(bundle.model), crops())
    monkeypatch.setattr(torch, "compile", failing_compiler)
    with caplog.at_level(logging.WARNING, logger="lossight"):
        model = device_model(bundle.model, is_compiled=True)
        found = results(model, crops())
    assert [record.getMessage() for record in caplog.records] == [
        "cpu: the model runs uncompiled: RuntimeError: Failed to find C compiler."
    ]
    assert not model.is_compiled
    for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_compiler_is_not_blamed_for_a_model_that_fails_by_itself(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", failing_compiler)
    del bundle.model.estimator.merges  # type: ignore[union-attr]
    with pytest.raises(AttributeError, match="merges"):
        device_model(bundle.model, is_compiled=True)


def test_lack_of_memory_while_compiling_halves_the_rows_too(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    model = device_model(CrowdedModel(bundle.model, limit=16), is_compiled=True)
    assert (model.rows_per_pass, model.is_compiled) == (16, True)
    with pytest.raises(RunFailedError, match="a batch of 8 images"):
        device_model(CrowdedModel(bundle.model, limit=7), is_compiled=True)


# No waiting


class _HostTensors(TorchDispatchMode):
    """Remembers operations that touch a tensor on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        if any(each.device.type == "cpu" for each in tensors):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize(("method", "views"), [("keypoint", 2), ("keypoint", 1), ("ll++conv", 1), ("ll++", 1)])
def test_a_pass_takes_nothing_from_the_host_and_asks_it_nothing(
    method: MethodName, views: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device "meta" there are no values: whatever asks for one fails; what is copied there is seen."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    model = PoseModel(make_spec("hourglass-small", method=method, skeleton=LSP)).eval().to("meta")
    with torch.inference_mode(), _HostTensors() as on_host:
        packed, _ = predict_packed(model, views=views)(torch.empty(8, 64, 64, 3, dtype=torch.uint8, device="meta"))
    assert (packed.device.type, on_host.found) == ("meta", [])
