"""A bundle loads as what was saved, or says in one line why it can't."""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import Any

import pytest
import safetensors.torch
import torch

from model.bundle import Bundle, dump_bundle, load_bundle
from model.description import BUNDLE_FILE, FORMAT_VERSION, WEIGHTS_FILE, find_doubts
from model.errors import BundleError
from model.pose_model import PoseModel, make_spec
from model.predictor import Predictor
from model.skeleton import LSP

TRAINING = {"rows": 48, "seed": 1}
METRICS = {"pck": 0.5}


@pytest.fixture(scope="module")
def model() -> PoseModel:
    """A model whose batch norms have seen something."""
    torch.manual_seed(3)
    model = PoseModel(make_spec("hourglass-small", method="ll++", skeleton=LSP))
    model(random_pixels())
    return model.eval()


@pytest.fixture(scope="module")
def files(model: PoseModel) -> dict[str, bytes]:
    return dump_bundle(model, training=TRAINING, metrics=METRICS)


def random_pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def with_description(files: dict[str, bytes], change: dict[str, Any]) -> dict[str, bytes]:
    """The bundle with other values in bundle.json; None removes one."""
    description = {**json.loads(files[BUNDLE_FILE]), **change}
    kept = {name: value for name, value in description.items() if value is not None}
    return {**files, BUNDLE_FILE: json.dumps(kept).encode()}


def with_spec(files: dict[str, bytes], change: dict[str, Any]) -> dict[str, bytes]:
    return with_description(files, {"spec": {**json.loads(files[BUNDLE_FILE])["spec"], **change}})


def with_weights(files: dict[str, bytes], weights: bytes) -> dict[str, bytes]:
    """The bundle with other weights, and their right hash."""
    return {**with_description(files, {"weights_sha256": hashlib.sha256(weights).hexdigest()}), WEIGHTS_FILE: weights}


def error_of(files: dict[str, bytes]) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(files)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Round trips


def test_a_loaded_model_predicts_the_same_bit_by_bit(model: PoseModel, files: dict[str, bytes]) -> None:
    with torch.inference_mode():
        expected, found = model(random_pixels()), load_bundle(files).model(random_pixels())
    assert torch.equal(found.heatmaps, expected.heatmaps)
    assert torch.equal(found.predicted_loss, expected.predicted_loss)


def test_a_loaded_bundle_is_as_it_was_written_and_in_evaluation_mode(model: PoseModel, files: dict[str, bytes]) -> None:
    bundle = load_bundle(files)
    assert (bundle.spec, bundle.training, bundle.metrics) == (model.spec, TRAINING, METRICS)
    assert not any(module.training for module in bundle.model.modules())


def test_writing_a_loaded_bundle_again_gives_the_same_bytes_and_id(files: dict[str, bytes]) -> None:
    bundle = load_bundle(files)
    again = dump_bundle(bundle.model, training=bundle.training, metrics=bundle.metrics)
    assert again == files
    assert load_bundle(again).bundle_id == bundle.bundle_id


def test_the_order_of_keys_and_the_memory_layout_of_weights_do_not_count(
    model: PoseModel, files: dict[str, bytes]
) -> None:
    bundle = load_bundle(files)
    Predictor(bundle)  # turns the weights to channels_last
    reversed_training = dict(reversed(TRAINING.items()))
    assert dump_bundle(bundle.model, training=reversed_training, metrics=METRICS) == files


def test_other_weights_and_other_metrics_give_another_id(model: PoseModel, files: dict[str, bytes]) -> None:
    changed = load_bundle(files).model
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    others = [
        dump_bundle(changed, training=TRAINING, metrics=METRICS),
        dump_bundle(model, training={**TRAINING, "seed": 2}, metrics=METRICS),
        dump_bundle(model, training=TRAINING, metrics={"pck": 0.6}),
    ]
    assert len({load_bundle(other).bundle_id for other in [files, *others]}) == 4


def test_the_description_is_written_last(files: dict[str, bytes]) -> None:
    assert list(files) == [WEIGHTS_FILE, BUNDLE_FILE]


def test_further_files_of_the_folder_do_not_disturb(files: dict[str, bytes]) -> None:
    assert load_bundle({**files, "metrics.json": b"{}"}).bundle_id == load_bundle(files).bundle_id


# No pickle


def test_no_file_is_a_pickle(files: dict[str, bytes]) -> None:
    for data in files.values():
        assert not data.startswith((b"\x80", b"PK"))  # a pickle's protocol mark, torch.save's zip
        with pytest.raises((pickle.UnpicklingError, ValueError, EOFError, IndexError, KeyError, OverflowError)):
            pickle.loads(data)  # noqa: S301
    header_size = int.from_bytes(files[WEIGHTS_FILE][:8], "little")
    header = json.loads(files[WEIGHTS_FILE][8 : 8 + header_size])
    last = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
    assert 8 + header_size + last == len(files[WEIGHTS_FILE])  # numbers and nothing else


def test_loading_never_unpickles(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickle(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, unpickle)
    assert isinstance(load_bundle(files), Bundle)


# What is refused


@pytest.mark.parametrize("name", [BUNDLE_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named_with_what_was_found(files: dict[str, bytes], name: str) -> None:
    rest = {other: data for other, data in files.items() if other != name}
    assert error_of(rest) == f"model bundle: expected the file {name}, found {', '.join(rest)}"


def test_an_empty_folder_is_no_bundle() -> None:
    assert error_of({}) == f"model bundle: expected the file {BUNDLE_FILE}, found nothing"


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, str(FORMAT_VERSION), None])
def test_another_format_version_is_refused(files: dict[str, bytes], version: object) -> None:
    message = error_of(with_description(files, {"format_version": version}))
    assert message == f"{BUNDLE_FILE}: expected format_version {FORMAT_VERSION}, found {version}"


def test_a_bundle_of_the_first_format_says_what_to_do(files: dict[str, bytes]) -> None:
    message = error_of(with_description(files, {"format_version": 1}))
    assert message == f"{BUNDLE_FILE}: expected format_version 2, found 1, an earlier lossight's: train again"


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"not json" * 100])
def test_a_description_that_is_no_json_is_refused(files: dict[str, bytes], data: bytes) -> None:
    assert error_of({**files, BUNDLE_FILE: data}) == f"{BUNDLE_FILE}: expected JSON, found {data[:40]!r}"


@pytest.mark.parametrize("data", [b"[]", b"null", b"3", b"{}"])
def test_json_that_is_no_description_is_refused(files: dict[str, bytes], data: bytes) -> None:
    assert error_of({**files, BUNDLE_FILE: data}).endswith(f"expected format_version {FORMAT_VERSION}, found None")


@pytest.mark.parametrize("name", ["spec", "weights_sha256", "training", "metrics"])
def test_a_description_without_one_of_its_parts_is_refused(files: dict[str, bytes], name: str) -> None:
    assert error_of(with_description(files, {name: None})).startswith(f"{BUNDLE_FILE}: expected {name}, found ")


@pytest.mark.parametrize("place", [0, 1000, -1])
def test_altered_weights_are_refused_with_both_hashes(files: dict[str, bytes], place: int) -> None:
    altered = bytearray(files[WEIGHTS_FILE])
    altered[place] ^= 1
    expected, found = (hashlib.sha256(data).hexdigest() for data in (files[WEIGHTS_FILE], altered))
    message = error_of({**files, WEIGHTS_FILE: bytes(altered)})
    assert message == f"{WEIGHTS_FILE}: expected sha256 {expected}, found {found}"


@pytest.mark.parametrize("weights", [b"", b"garbage" * 20, pickle.dumps({"a": 1})])
def test_weights_that_are_no_safetensors_are_refused(files: dict[str, bytes], weights: bytes) -> None:
    expected = f"{WEIGHTS_FILE}: expected safetensors, found {weights[:40]!r}"
    assert error_of(with_weights(files, weights)) == expected


def test_a_specification_of_another_head_is_refused_with_the_tensor_that_differs(files: dict[str, bytes]) -> None:
    message = error_of(with_spec(files, {"method": "ll++conv"}))
    assert "loss_head.downs.0.bias: expected (48,)" in message
    assert message.endswith("found no such tensor")


def test_a_specification_of_fewer_keypoints_is_refused_with_both_shapes(files: dict[str, bytes]) -> None:
    skeleton = json.loads(files[BUNDLE_FILE])["spec"]["skeleton"]
    fewer = {**skeleton, "keypoint_names": skeleton["keypoint_names"][:-1]}
    message = error_of(with_spec(files, {"skeleton": fewer}))
    assert "to_heatmaps.bias: expected (13,)" in message
    assert message.endswith("found (14,)")


def test_a_tensor_that_the_model_does_not_have_is_refused(files: dict[str, bytes]) -> None:
    tensors = {**safetensors.torch.load(files[WEIGHTS_FILE]), "extra": torch.zeros(2)}
    message = error_of(with_weights(files, safetensors.torch.save(tensors)))
    assert message == f"{WEIGHTS_FILE}: extra: expected no such tensor by {BUNDLE_FILE}, found (2,)"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"estimator": "vit"}, "vit"),
        ({"method": "mlp"}, "expected ll, ll++, ll++conv, keypoint, found 'mlp'"),
        ({"heatmap_size": 16}, "found 64 and 16"),
        ({"skeleton": "lsp"}, "AttributeError"),
        ({"skeleton": {"name": "lsp"}}, "keypoint_names"),
        ({"pixel_mean": [0.5, 0.5]}, "shape"),
        ({"pixel_std": ["a", "b", "c"]}, "ValueError"),
        ({"new_field": 1}, "new_field"),
    ],
)
def test_a_specification_of_no_model_is_refused(files: dict[str, bytes], change: dict[str, Any], named: str) -> None:
    assert named in error_of(with_spec(files, change))


@pytest.mark.parametrize("spec", [[], "hourglass", 3])
def test_a_specification_that_is_no_mapping_is_refused(files: dict[str, bytes], spec: object) -> None:
    assert "expected the specification of a model" in error_of(with_description(files, {"spec": spec}))


@pytest.mark.parametrize(
    ("loss", "confidence", "num_judged", "doubts"),
    [
        (0.5, 0.4, 49, ["not calibrated, so no failures to expect: it takes 50 rows with a PCK, found 49 "]),
        (0.4, 0.5, 49, ["predicted loss ranks the validation rows worse", "not calibrated"]),
        (None, None, 0, ["not calibrated, so no failures to expect: it takes 50 rows with a PCK, found 0 "]),
    ],
)
def test_doubts_about_predicted_losses_are_a_line_each(
    loss: float | None, confidence: float | None, num_judged: int, doubts: list[str]
) -> None:
    rho = {"predicted_loss": loss, "confidence": confidence}
    found = find_doubts({"validation": {"spearman": rho, "num_judged": num_judged}}, None)
    assert [line.startswith(start) for line, start in zip(found, doubts, strict=True)] == [True] * len(doubts)
