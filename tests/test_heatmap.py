"""The codec: decoding gives back what was encoded, to a fraction of a heatmap pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.heatmap import decode_heatmaps, encode_heatmaps

INPUT, SIZE = 64, 16  # stride 4
STRIDE = INPUT / SIZE
INSIDE = st.floats(-0.5, INPUT - 0.5, width=32)  # from edge to edge of the outermost pixels


def one_keypoint(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[[x, y]]])


def heatmap_of(values: dict[tuple[int, int], float]) -> torch.Tensor:
    """(1, 1, SIZE, SIZE), zero but for `values` at (row, column)."""
    heatmap = torch.zeros(1, 1, SIZE, SIZE)
    for (row, column), value in values.items():
        heatmap[0, 0, row, column] = value
    return heatmap


def centre_of_pixel(row: int, column: int) -> list[float]:
    return [(column + 0.5) * STRIDE - 0.5, (row + 0.5) * STRIDE - 0.5]


def test_encoding_equals_the_gaussian_pixel_by_pixel() -> None:
    x, y, sigma = 20.3, 41.7, 1.75
    expected = np.zeros((SIZE, SIZE))
    for row in range(SIZE):
        for column in range(SIZE):
            centre_x, centre_y = centre_of_pixel(row, column)
            squared = ((centre_x - x) / STRIDE) ** 2 + ((centre_y - y) / STRIDE) ** 2
            expected[row, column] = math.exp(-squared / (2 * sigma**2))
    actual = encode_heatmaps(one_keypoint(x, y), input_size=INPUT, heatmap_size=SIZE, sigma=sigma)
    np.testing.assert_allclose(actual[0, 0].numpy(), expected, atol=1e-6)


def test_a_keypoint_in_the_middle_of_a_heatmap_pixel_peaks_there_at_exactly_one() -> None:
    # Four input pixels, 0 to 3, make the first heatmap pixel: its middle is 1.5, not 0 and not 2.
    heatmap = encode_heatmaps(one_keypoint(1.5, 5.5), input_size=INPUT, heatmap_size=SIZE)[0, 0]
    assert heatmap[1, 0] == 1.0
    assert (heatmap == 1.0).sum() == 1


@given(INSIDE, INSIDE)
def test_mirroring_the_image_mirrors_the_heatmap(x: float, y: float) -> None:
    heatmap = encode_heatmaps(one_keypoint(x, y), input_size=INPUT, heatmap_size=SIZE)
    mirrored = encode_heatmaps(one_keypoint(INPUT - 1 - x, y), input_size=INPUT, heatmap_size=SIZE)
    torch.testing.assert_close(mirrored, heatmap.flip(-1), rtol=0, atol=1e-5)


@given(INSIDE, INSIDE, st.sampled_from([1.0, 1.75, 3.0]), st.sampled_from([1.0, 30.0]))
def test_decoding_gives_back_what_was_encoded_up_to_the_border(x: float, y: float, sigma: float, scale: float) -> None:
    heatmaps = scale * encode_heatmaps(one_keypoint(x, y), input_size=INPUT, heatmap_size=SIZE, sigma=sigma)
    keypoints, peaks = decode_heatmaps(heatmaps, input_size=INPUT)
    # A hundredth of a heatmap pixel: what float32 leaves of the curvature of a wide Gaussian.
    assert (keypoints[0, 0] - torch.tensor([x, y])).abs().max() < 0.01 * STRIDE
    assert peaks.item() == heatmaps.max()


@given(st.integers(0, 2**32 - 1), st.floats(-1, 1))
def test_any_heatmap_decodes_to_within_half_a_pixel_of_its_maximum(seed: int, lowest: float) -> None:
    values = np.random.default_rng(seed).uniform(lowest, 1, (2, 3, 5, 5)).astype(np.float32)
    keypoints, peaks = decode_heatmaps(torch.from_numpy(values), input_size=5)  # stride 1: both frames agree
    index = values.reshape(2, 3, -1).argmax(-1)
    arg_max = np.stack([index % 5, index // 5], axis=-1)
    assert np.abs(keypoints.numpy() - arg_max).max() <= 0.5
    np.testing.assert_array_equal(peaks.numpy(), values.max((2, 3)))


def test_a_nan_keypoint_leaves_its_map_empty_and_the_others_as_they_are() -> None:
    keypoints = torch.tensor([[[10.0, 20.0], [math.nan, 20.0], [10.0, math.nan]]])
    heatmaps = encode_heatmaps(keypoints, input_size=INPUT, heatmap_size=SIZE)
    assert heatmaps.isfinite().all()
    assert heatmaps.sum(dim=(2, 3)).gt(0).tolist() == [[True, False, False]]


def test_a_keypoint_far_outside_leaves_its_map_empty() -> None:
    keypoints = torch.tensor([[[-1e6, 20.0], [math.inf, 20.0]]])
    assert not encode_heatmaps(keypoints, input_size=INPUT, heatmap_size=SIZE).any()


def test_a_tie_goes_to_the_lowest_index() -> None:
    heatmap = heatmap_of({(3, 9): 0.5, (3, 12): 0.5, (8, 2): 0.5})
    assert decode_heatmaps(heatmap, input_size=INPUT).keypoints[0, 0].tolist() == centre_of_pixel(3, 9)


@pytest.mark.parametrize("value", [0.0, -1.0, 0.7])
def test_a_flat_heatmap_decodes_to_its_first_pixel(value: float) -> None:
    keypoints, peaks = decode_heatmaps(torch.full((1, 1, SIZE, SIZE), value), input_size=INPUT)
    assert keypoints[0, 0].tolist() == centre_of_pixel(0, 0)
    assert peaks.item() == pytest.approx(value)


@pytest.mark.parametrize("neighbour", [0.0, -0.2])
def test_a_neighbour_that_has_no_logarithm_leaves_the_arg_max(neighbour: float) -> None:
    heatmap = heatmap_of({(4, 4): 0.9, (4, 5): 0.8, (4, 3): neighbour, (3, 4): 0.3, (5, 4): 0.3})
    assert decode_heatmaps(heatmap, input_size=INPUT).keypoints[0, 0].tolist() == centre_of_pixel(4, 4)


def test_the_sub_pixel_step_is_the_vertex_of_the_parabola_through_the_logarithms_around_the_arg_max() -> None:
    # Along x the logarithms are -1, 0, -1/2: vertex at 1/2 * (-1 + 1/2) / (-1 - 1/2) = 1/6. Along y they are symmetric.
    row = {(4, 3): math.exp(-1), (4, 4): 1.0, (4, 5): math.exp(-0.5), (4, 6): 0.001, (4, 2): 0.001}
    heatmap = heatmap_of(row | {(3, 4): 0.3, (5, 4): 0.3})
    x, y = centre_of_pixel(4, 4)
    decoded = decode_heatmaps(heatmap, input_size=INPUT).keypoints[0, 0].tolist()
    assert decoded == pytest.approx([x + STRIDE / 6, y], abs=1e-5)


@pytest.mark.parametrize("corner", [(0, 0), (0, SIZE - 1), (SIZE - 1, 0), (SIZE - 1, SIZE - 1)])
def test_a_lone_peak_in_a_corner_stays_there(corner: tuple[int, int]) -> None:
    assert decode_heatmaps(heatmap_of({corner: 1.0}), input_size=INPUT).keypoints[0, 0].tolist() == centre_of_pixel(
        *corner
    )


def test_a_heatmap_with_nan_says_so_in_its_peak() -> None:
    keypoints, peaks = decode_heatmaps(heatmap_of({(2, 2): 1.0, (5, 5): math.nan}), input_size=INPUT)
    assert peaks.isnan().all()
    assert keypoints.isfinite().all()


def test_half_precision_heatmaps_decode_in_full_precision() -> None:
    heatmaps = encode_heatmaps(one_keypoint(20.3, 41.7), input_size=INPUT, heatmap_size=SIZE).bfloat16()
    keypoints, peaks = decode_heatmaps(heatmaps, input_size=INPUT)
    assert keypoints.dtype == peaks.dtype == torch.float32
    assert (keypoints[0, 0] - torch.tensor([20.3, 41.7])).abs().max() < 0.1 * STRIDE


def test_an_empty_batch_encodes_and_decodes_to_an_empty_batch() -> None:
    heatmaps = encode_heatmaps(torch.zeros(0, 14, 2), input_size=INPUT, heatmap_size=SIZE)
    keypoints, peaks = decode_heatmaps(heatmaps, input_size=INPUT)
    assert heatmaps.shape == (0, 14, SIZE, SIZE)
    assert keypoints.shape == (0, 14, 2)
    assert peaks.shape == (0, 14)
