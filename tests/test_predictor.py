"""Predictions one row at a time or many: the same, and an unreadable image costs itself only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from model.bundle import Bundle, load_bundle
from model.example import make_crop
from model.image import invert_affine, transform_points
from model.pose_model import PoseModel, Prediction, make_spec
from model.predictor import Labels, Predictions, Predictor
from model.skeleton import LSP
from model.synthetic import Sample

K = LSP.num_keypoints
B = 8
D = 3
FIELDS = ("predicted_loss", "confidence", "keypoints", "peaks", "embedding", "true_loss")
PEAK_COLUMN, PEAK_ROW = 20, 9  # heatmap pixels; in the input (20.5 * 2 - 0.5, 9.5 * 2 - 0.5) = (40.5, 18.5)


class ScriptedModel(nn.Module):
    """Predicts the grey level in the middle of a crop as its loss, and every keypoint at one place with the peak 0.5.

    A crop of level 250 has the loss NaN, one of 251 infinity, one of 252 heatmaps of NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spec = make_spec("hourglass-small", method="ll++", skeleton=LSP)
        self.batch_sizes: list[int] = []
        self.embedding_dim = D

    def forward(self, pixels: torch.Tensor) -> Prediction:
        self.batch_sizes.append(len(pixels))
        level = pixels[:, 32, 32, 0].float()
        heatmaps = torch.zeros(len(pixels), 1, K, 32, 32)
        heatmaps[..., PEAK_ROW, PEAK_COLUMN] = 0.5
        heatmaps[level == 252] = torch.nan
        loss = torch.where(level == 250, torch.nan, torch.where(level == 251, torch.inf, level))
        return Prediction(heatmaps, loss, level[:, None].expand(-1, K) / 256, level[:, None] + torch.arange(D))


def scripted(*, batch_size: int = B) -> tuple[Predictor, ScriptedModel]:
    model = ScriptedModel()
    return Predictor(Bundle(model=cast(PoseModel, model), bundle_id="scripted"), batch_size=batch_size), model


def flat(level: int, size: tuple[int, int] = (16, 16)) -> bytes:
    return cv2.imencode(".png", np.full((*size, 3), level, np.uint8))[1].tobytes()


def boxes(samples: Sequence[Sample]) -> list[np.ndarray]:
    return [np.array(sample.box) for sample in samples]


def predict(predictor: Predictor, samples: Sequence[Sample]) -> Predictions:
    labels = Labels(
        np.stack([sample.keypoints for sample in samples]).astype(np.float32),
        np.stack([sample.visibility for sample in samples]),
    )
    return predictor.predict([s.image for s in samples], boxes(samples), labels=labels)


def row(predictions: Predictions, index: int) -> list[np.ndarray]:
    return [np.asarray(getattr(predictions, name)[index]) for name in FIELDS]


def assert_same_row(found: Predictions, index: int, expected: list[np.ndarray]) -> None:
    for name, one, other in zip(FIELDS, row(found, index), expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


# Order and conservation


@pytest.mark.parametrize("count", [0, 1, B - 1, B, B + 1, 2 * B, 2 * B + 3])
def test_every_image_gets_its_own_result_in_order(count: int) -> None:
    levels = [(7 * i) % 200 for i in range(count)]
    predictor, model = scripted()
    found = predictor.predict([flat(level) for level in levels], [None] * count)
    assert found.predicted_loss.tolist() == levels
    assert found.errors == [None] * count
    assert [getattr(found, name).shape for name in FIELDS] == [
        *((count,), (count,), (count, K, 2), (count, K), (count, D), (count,))
    ]
    assert model.batch_sizes == [B] * -(-count // B)  # always the same shape


@given(broken=st.lists(st.booleans(), max_size=2 * B + 3))
def test_an_unreadable_image_costs_itself_and_no_other(broken: list[bool]) -> None:
    images = [b"" if is_broken else flat(i) for i, is_broken in enumerate(broken)]
    found = scripted()[0].predict(images, [None] * len(images))
    assert found.errors == ["empty" if is_broken else None for is_broken in broken]
    expected = [np.nan if is_broken else i for i, is_broken in enumerate(broken)]
    np.testing.assert_array_equal(found.predicted_loss, np.array(expected, np.float32))
    for name in ("confidence", "keypoints", "peaks", "embedding"):
        is_missing = np.isnan(getattr(found, name)).reshape(len(broken), -1 if broken else 1)
        np.testing.assert_array_equal(is_missing.all(axis=1), broken)
        np.testing.assert_array_equal(is_missing.any(axis=1), broken)


def test_each_unreadable_image_has_its_reason() -> None:
    images = [b"", b"text", flat(1)[:-20], flat(1), flat(1), flat(5)]
    places = [None, None, None, np.full(4, np.nan), np.array([90.0, 90.0, 99.0, 99.0]), np.array([0.0, 0.0, 9.0, 9.0])]
    assert scripted()[0].predict(images, places).errors == [
        "empty",
        "undecodable",
        "undecodable",
        "bad_box",
        "bad_box",
        None,
    ]


@pytest.mark.parametrize("count", [1, B, B + 3])
def test_where_no_image_can_be_read_the_model_is_not_asked(count: int) -> None:
    predictor, model = scripted()
    labels = Labels(np.zeros((count, K, 2), np.float32), np.ones((count, K), np.uint8))
    found = predictor.predict([b""] * count, [None] * count, labels=labels)
    assert found.errors == ["empty"] * count
    assert all(np.isnan(getattr(found, name)).all() for name in FIELDS)
    assert model.batch_sizes == []


def test_a_predictor_can_be_used_again_after_a_failure() -> None:
    predictor, _ = scripted()
    predictor.predict([b""] * 3, [None] * 3)
    assert predictor.predict([flat(9)], [None]).predicted_loss.tolist() == [9]


def test_memory_views_are_read_like_bytes() -> None:
    predictor, _ = scripted()
    assert predictor.predict([memoryview(flat(9))], [None]).predicted_loss.tolist() == [9]


def test_keypoints_are_in_pixels_of_the_image() -> None:
    predictor, model = scripted()
    places = [None, np.array([10.0, 20.0, 50.0, 40.0]), np.array([-5.0, 0.0, 30.0, 60.0])]
    image = flat(9, (80, 120))
    found = predictor.predict([image] * 3, places)
    for index, box in enumerate(places):
        crop = make_crop(image, box, spec=model.spec)
        in_crop = transform_points(found.keypoints[index], invert_affine(crop.to_image))
        np.testing.assert_allclose(in_crop, np.broadcast_to([40.5, 18.5], (K, 2)), atol=1e-4)
    np.testing.assert_array_equal(found.peaks, np.full((3, K), 0.5))
    np.testing.assert_array_equal(found.confidence, np.full(3, 0.5))


# Faults


@pytest.mark.parametrize("level", [250, 251, 252])
def test_a_result_that_is_not_finite_is_an_error_and_leaves_no_number(level: int) -> None:
    labels = Labels(np.full((3, K, 2), 8, np.float32), np.full((3, K), 2, np.uint8))
    found = scripted()[0].predict([flat(10), flat(level), flat(30)], [None] * 3, labels=labels)
    assert found.errors == [None, "non_finite", None]
    for name in FIELDS:
        values = getattr(found, name)
        assert np.isnan(values[1]).all(), name
        assert np.isfinite(values[[0, 2]]).all(), name


def test_weights_of_nan_give_errors_and_not_a_crash(bundle: Bundle, samples: list[Sample]) -> None:
    with torch.no_grad():
        next(bundle.model.estimator.parameters()).fill_(torch.nan)
    found = predict(Predictor(bundle, batch_size=B), samples[:3])
    assert found.errors == ["non_finite"] * 3
    assert all(np.isnan(getattr(found, name)).all() for name in FIELDS)


def test_a_bug_in_a_decoding_thread_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(image: bytes, box: object, *, spec: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("model.decoding.make_crop", crash)
    with pytest.raises(RuntimeError, match="a bug"):
        scripted()[0].predict([flat(1)] * (2 * B), [None] * (2 * B))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_as_many_boxes_as_images_are_expected(count: int) -> None:
    with pytest.raises(ValueError, match=f"expected 3, one an image, found {count}"):
        scripted()[0].predict([flat(1)] * 3, [None] * count)


# Independence of neighbours


@pytest.mark.parametrize(("asked", "used"), [(1, 8), (7, 8), (8, 8), (9, 16), (64, 64)])
def test_the_batch_is_a_whole_number_of_row_tiles(asked: int, used: int) -> None:
    assert scripted(batch_size=asked)[0].batch_size == used


def test_a_row_does_not_depend_on_its_neighbours_its_place_or_their_number_bit_by_bit(
    bundle: Bundle, samples: list[Sample]
) -> None:
    torch.manual_seed(1)
    for parameter in bundle.model.loss_head.parameters():  # untrained, its losses are too alike to tell rows apart
        nn.init.normal_(parameter, std=0.5)
    predictor = Predictor(bundle, batch_size=7)  # 7 rows, not rounded up, show differences
    some = samples[:12]
    alone = [row(predict(predictor, [sample]), 0) for sample in some]
    rng = np.random.default_rng(0)
    broken = Sample(**{**vars(some[0]), "image": b""})
    for count in (3, 8, 9, 19, 24):
        picked = rng.integers(-1, len(some), count)  # -1: an unreadable one, which lets the others move up
        found = predict(predictor, [some[i] if i >= 0 else broken for i in picked])
        for index in np.flatnonzero(picked >= 0).tolist():
            assert_same_row(found, index, alone[picked[index]])


def test_two_predictors_of_one_bundle_agree_bit_by_bit(bundle_files: dict[str, bytes], samples: list[Sample]) -> None:
    one, other = (
        predict(Predictor(load_bundle(bundle_files), batch_size=B, decode_threads=n), samples[:9]) for n in (1, 3)
    )
    for index in range(9):
        assert_same_row(one, index, row(other, index))


def test_without_labels_all_but_the_true_loss_is_the_same(bundle: Bundle, samples: list[Sample]) -> None:
    predictor = Predictor(bundle, batch_size=B)
    some = samples[:2]
    found = predictor.predict([s.image for s in some], boxes(some))
    expected = predict(predictor, some)
    assert np.isnan(found.true_loss).all()
    assert np.isfinite(expected.true_loss).all()
    for name in FIELDS[:-1]:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_threads_may_share_a_predictor(bundle: Bundle, samples: list[Sample]) -> None:
    predictor = Predictor(bundle, batch_size=B)
    expected = predict(predictor, samples[:20])
    with ThreadPoolExecutor(3) as threads:
        for found in threads.map(lambda _: predict(predictor, samples[:20]), range(6)):
            for index in range(20):
                assert_same_row(found, index, row(expected, index))


# Embedding and seconds


def test_the_embedding_is_the_average_of_the_coarsest_features(bundle: Bundle, samples: list[Sample]) -> None:
    sample = samples[0]
    crop = make_crop(sample.image, np.array(sample.box), spec=bundle.spec)
    images = (crop.pixels / 255 - np.array(bundle.spec.pixel_mean)) / np.array(bundle.spec.pixel_std)
    with torch.inference_mode():
        features = bundle.model.estimator(torch.from_numpy(images.astype(np.float32)).permute(2, 0, 1)[None]).features
    assert [len(feature[0, 0]) for feature in features] == [32, 16, 8, 4]
    predictor = Predictor(bundle, batch_size=B)
    found = predict(predictor, [sample]).embedding
    assert found.shape == (1, predictor.embedding_dim) == (1, 48)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], features[-1][0].numpy().mean(axis=(1, 2)), rtol=1e-3, atol=1e-5)


def test_seconds_add_up_from_zero(bundle: Bundle, samples: list[Sample]) -> None:
    predictor = Predictor(bundle, batch_size=B)
    assert predictor.seconds == {"decode": 0, "wait": 0, "compute": 0}
    predict(predictor, samples[:9])
    once = dict(predictor.seconds)
    predict(predictor, samples[:9])
    assert all(predictor.seconds[stage] > once[stage] > 0 for stage in once)


# True loss


def gaussian(x: float, y: float) -> np.ndarray:
    """(32, 32) of height 1 and deviation 1.75 around a point given in pixels of the 64-pixel crop."""
    rows, columns = np.mgrid[:32, :32]
    return np.exp(-((columns - (x - 0.5) / 2) ** 2 + (rows - (y - 0.5) / 2) ** 2) / (2 * 1.75**2))


def test_the_true_loss_is_the_heatmap_error_of_the_labelled_keypoints(bundle: Bundle, samples: list[Sample]) -> None:
    sample = samples[0]
    visibility = np.where(np.arange(K) % 3 == 0, 0, 2).astype(np.uint8)
    crop = make_crop(sample.image, np.array(sample.box), spec=bundle.spec)
    with torch.inference_mode():
        heatmaps = bundle.model(torch.from_numpy(crop.pixels[None])).heatmaps[0, 0].numpy()
    points = transform_points(sample.keypoints, invert_affine(crop.to_image))
    counted = np.flatnonzero((visibility > 0) & ((points > -0.5) & (points < 63.5)).all(axis=1))
    assert len(counted) > 3
    expected = np.mean([((heatmaps[k] - gaussian(*points[k])) ** 2).mean() for k in counted])
    found = predict(Predictor(bundle, batch_size=B), [Sample(**{**vars(sample), "visibility": visibility})])
    assert found.true_loss[0] == pytest.approx(expected, rel=1e-5)


def test_the_true_loss_is_nan_where_nothing_in_the_crop_is_labelled() -> None:
    keypoints = np.full((4, K, 2), 8, np.float32)
    keypoints[1] = 1e6
    keypoints[2] = np.nan
    visibility = np.full((4, K), 2, np.uint8)
    visibility[0] = 0
    found = scripted()[0].predict([flat(1)] * 4, [None] * 4, labels=Labels(keypoints, visibility))
    assert np.isnan(found.true_loss).tolist() == [True, True, True, False]
    assert found.errors == [None] * 4


def test_labels_stay_with_their_images_when_some_are_unreadable() -> None:
    keypoints = np.full((4, K, 2), 8, np.float32)
    keypoints[[0, 3]] = 3
    labels = Labels(keypoints, np.full((4, K), 2, np.uint8))
    predictor, _ = scripted()
    expected = predictor.predict([flat(1)] * 4, [None] * 4, labels=labels).true_loss
    assert expected[0] != expected[2]
    found = predictor.predict([flat(1), b"", flat(1), flat(1)], [None] * 4, labels=labels).true_loss
    np.testing.assert_array_equal(found[[0, 2, 3]], expected[[0, 2, 3]])
    assert np.isnan(found[1])
